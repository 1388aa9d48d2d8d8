"""Which devices are in a wave: a hash bucket and a predicate on attributes, the same on the device and on the server.

Pure. ``where`` is a small expression language: ``site == 'north' and engine in ['litert'] and not model_a == 'x'``; names are
attributes, comparisons are ``== != < <= > >= in``, joined by ``and``, ``or``, ``not``. An attribute that a device lacks makes
a comparison false, so ``not site == 'north'`` holds for a device without a site.
"""

import ast
import hashlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

from edgeops.errors import InputError

BUCKETS = 10_000
"""A device is in one of this many buckets; one bucket is 0.01 %."""

Attribute = str | int | float | bool


class _Missing:
    """The value of an attribute that a device lacks; false by itself, and in every comparison."""

    def __bool__(self) -> bool:
        return False


_MISSING = _Missing()

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
}


def bucket(device: str) -> int:
    """The bucket of a device, 0 to 9999: SHA-256 of its id, modulo 10000.

    >>> bucket("camera-1")
    7251
    """
    return int.from_bytes(hashlib.sha256(device.encode()).digest()) % BUCKETS


def in_wave(device: str, *, percent: float, rotation: int) -> bool:
    """Whether a device is among the first ``percent`` of the fleet, counted from a rotation that differs by rollout."""
    return position(device, rotation=rotation) < percent * (BUCKETS / 100)


def position(device: str, *, rotation: int) -> int:
    """Where a device stands in the order of a rollout, 0 (first) to 9999."""
    return (bucket(device) + rotation) % BUCKETS


def matches(where: str, attributes: Mapping[str, Attribute]) -> bool:
    """Whether a device's attributes fulfil a predicate; the empty predicate holds for all.

    Raises:
        InputError: The expression is outside the language.
    """
    return not where.strip() or bool(_evaluate(_parse(where), attributes))


def check_where(where: str) -> None:
    """Refuse an expression that is outside the language, before it reaches a device.

    Raises:
        InputError: It says which part.
    """
    if where.strip():
        _check(_parse(where))


def _parse(where: str) -> ast.expr:
    try:
        return ast.parse(where.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"where {where[:100]!r}: not an expression: {error}") from error


def _check(node: ast.expr) -> None:
    match node:
        case ast.BoolOp():
            for value in node.values:
                _check(value)
        case ast.UnaryOp(op=ast.Not()):
            _check(node.operand)
        case ast.Compare(ops=[single], comparators=[right]) if type(single) in _COMPARISONS:
            _check(node.left)
            _check(right)
        case ast.Name() | ast.Constant(value=str() | int() | float()):
            pass
        case ast.List() | ast.Tuple():
            for element in node.elts:
                _check(element)
        case _:
            raise InputError(
                f"where: {ast.unparse(node)!r} is not part of the language (names, constants, "
                "one comparison, and, or, not)"
            )


def _evaluate(node: ast.expr, attributes: Mapping[str, Attribute]) -> Any:  # noqa: ANN401 - a small interpreter
    _check(node)
    match node:
        case ast.BoolOp(op=ast.And()):
            return all(_evaluate(value, attributes) for value in node.values)
        case ast.BoolOp():
            return any(_evaluate(value, attributes) for value in node.values)
        case ast.UnaryOp():
            return not _evaluate(node.operand, attributes)
        case ast.Compare():
            left = _evaluate(node.left, attributes)
            right = _evaluate(node.comparators[0], attributes)
            return _compare(type(node.ops[0]), left, right)
        case ast.Name():
            return attributes.get(node.id, _MISSING)
        case ast.List() | ast.Tuple():
            return [_evaluate(element, attributes) for element in node.elts]
        case _:
            return node.value if isinstance(node, ast.Constant) else None


def _compare(kind: type[ast.cmpop], left: Any, right: Any) -> bool:  # noqa: ANN401 - attributes and constants
    if left is _MISSING or right is _MISSING:
        return False
    try:
        return _COMPARISONS[kind](left, right)
    except TypeError:
        return False
