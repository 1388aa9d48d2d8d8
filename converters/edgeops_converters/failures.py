"""What the libraries' exceptions mean to the person whose model it is: which layer, which operator, what to change."""

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_HINTS = (
    (
        re.compile(r"data-dependent|ConcretizationTypeError|must be statically specified|dynamic control flow"),
        "a shape or a branch depends on the values of the input; use torch.where, a mask, or fixed sizes instead",
    ),
    (
        re.compile(r"No ONNX function found|No decompositions registered|Lowering not found|not implemented for|No lowering"),
        "the format has no form of this operator; write the layer with others, or leave it to post-processing",
    ),
    (
        re.compile(r"expected (m1|scalar type|mat1)|must have the same dtype|Expected tensor for argument|same dtype"),
        "the weights are {dtype}, and what comes in is not; call .float() on the model and give float32 (--processing makes it)",
    ),
    (
        re.compile(r"mat1 and mat2|size mismatch|is invalid for input of size|Expected .*D .*input|Given groups"),
        "the shape of the rows is not what this layer takes; look at the shapes in the data and at reshapes with a fixed batch",
    ),
    (
        re.compile(r"onstraint|specialized"),
        "the model fixes the number of rows; use x.shape[0] or -1 in reshapes",
    ),
)  # fmt: skip
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|Lowering not found: ([\w.]+)|target=torch\.ops\.([\w.]+)\]")
_USER_LINE = re.compile(r'File "([^"]+)", line (\d+), in ([\w<>]+)\n\s+([^\n]+)')
_LIBRARY_PATHS = ("site-packages", "edgeops_converters")
_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class Explanation:
    """What a failure means.

    Attributes:
        layer: Path of the layer in the user's model; empty for the outermost module.
        kind: Its class; empty when no layer is known.
        line: The user's own line, where the library has kept it.
        said: What the library says.
        change: What to change, as far as known.
    """

    layer: str
    kind: str
    line: str
    said: str
    change: str

    def __str__(self) -> str:
        place = f"layer {self.layer!r} ({self.kind})" if self.layer else self.kind
        message = ": ".join(part for part in (place, self.line, self.said) if part)
        return f"{message}; {self.change}" if self.change else message


def explain(error: BaseException, module: "nn.Module") -> Explanation:
    """One sentence for a failure while running or exporting a module.

    Args:
        error: What was raised; its causes and its traceback are read too.
        module: The user's model, to name the layer.

    Returns:
        As a string ``layer 'a.b' (Linear): file.py line 3: what the library says (operator …); what to change``.
    """
    text = "\n".join(str(link) for link in _chain(error))
    said = _summary(error)
    operators = [next(filter(None, match)) for match in _OPERATOR.findall(text)]
    if operators:
        said = f"{said}: operator {operators[-1].removesuffix('.default')}"
    name, kind, layer = _layer(error, module)
    return Explanation(
        layer="" if name == "module" else name.removeprefix("module."),
        kind=kind,
        line=user_line(text),
        said=said,
        change=next((hint for pattern, hint in _HINTS if pattern.search(text)), "").format(dtype=_weight_dtype(layer)),
    )


def _weight_dtype(layer: "nn.Module | None") -> str:
    weight = next(iter(layer.parameters()), None) if layer is not None else None
    return str(weight.dtype).removeprefix("torch.") if weight is not None else "another"


def _chain(error: BaseException) -> list[BaseException]:
    links = [error]
    while (cause := links[-1].__cause__) is not None and cause not in links:
        links.append(cause)
    return links


def _summary(error: BaseException) -> str:
    """The first telling line of the innermost cause."""
    for link in reversed(_chain(error)):
        for line in str(link).splitlines():
            if line.strip() and not line.startswith(("Failed to", "- ", "#")):
                return f"{type(link).__name__}: {line.strip()[:_MAX_CHARACTERS]}"
    return type(error).__name__


def _layer(error: BaseException, module: "nn.Module") -> "tuple[str, str, nn.Module | None]":
    """Name and class of the innermost layer in whose ``forward`` it happened; ours around the whole is called ``module``."""
    layers = {name: layer for name, layer in module.named_modules() if name}
    names = {id(layer): name for name, layer in layers.items()}
    found, kind = "", ""
    for link in _chain(error):
        for frame in _frames(link.__traceback__):
            if name := names.get(id(frame.get("self"))):
                found, kind = name, type(layers[name]).__name__
            elif traced := _traced_layer(frame, layers):
                found, kind = traced
    return found, kind, layers.get(found)


def _traced_layer(frame: dict[str, Any], layers: "dict[str, nn.Module]") -> tuple[str, str] | None:
    """The layer that a node of an exported graph came from; its exporters hold the node in a variable of that name."""
    meta = getattr(frame.get("node"), "meta", None)
    stack = meta.get("nn_module_stack") if isinstance(meta, dict) else None
    for path, kind in reversed((stack or {}).values()):
        for name in sorted(layers, key=len, reverse=True):
            if str(path).replace("']", "").endswith(f".{name}") or path == name:
                return name, own_layer({"": (path, kind)})[1]
        if str(path).startswith("module."):  # a rewritten graph has no module for a layer without weights
            return path, own_layer({"": (path, kind)})[1]
    return None


def own_layer(stack: Mapping[str, Any]) -> tuple[str, str]:
    """The layer that a node of an exported graph came from, as its author names it.

    Args:
        stack: The node's ``nn_module_stack``.

    Returns:
        Path in the model and class; the path is empty for the outermost module.

    >>> own_layer({"L['self']": ("", "nets.Net"), "L['self'].stem": ("stem", "torch.nn.modules.conv.Conv2d")})
    ('stem', 'Conv2d')
    """
    path, kind = next(reversed(list(stack.values())), ("", ""))
    name = kind if isinstance(kind, str) else kind.__qualname__
    return str(path).removeprefix("module").removeprefix("."), name.rpartition(".")[2]


def _frames(trace: TracebackType | None) -> list[dict[str, Any]]:
    return [frame.f_locals for frame, _ in traceback.walk_tb(trace)]


def user_line(text: str) -> str:
    """The innermost line of the user's own in a stack trace, where the library has kept it."""
    lines = [match for match in _USER_LINE.findall(text) if not any(path in match[0] for path in _LIBRARY_PATHS)]
    if not lines:
        return ""
    file, number, function, code = lines[-1]
    return f"{file} line {number}, in {function}: {code.strip()}"
