"""How an operator of an exported graph is called, and what it was given. Pure."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx


def operator_name(node: "fx.Node") -> str:
    """Of an operator, without overload and without the mark of one that works in place."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2].rstrip("_") if schema is not None else getattr(node.target, "__name__", "")


def operator_argument(node: "fx.Node", name: str) -> Any:  # noqa: ANN401 - of any type
    """An argument of an operator by its name in the schema, or its default."""
    schema = node.target._schema.arguments  # type: ignore[union-attr] # noqa: SLF001 - the only place that has it
    index = next(index for index, argument in enumerate(schema) if argument.name == name)
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, schema[index].default_value)
