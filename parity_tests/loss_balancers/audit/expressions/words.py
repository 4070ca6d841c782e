"""What the operations in a dump do to 32-bit words: float32 and integers as they are defined, so that emitted code can be executed.

A word is a uint32, whatever it stands for; a truth is 0 or 1. All functions take and return NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint32]]

#: What a conversion gives where no integer is near enough: the compilers guard it, and nothing may depend on it.
NO_INTEGER = 0x5A5A5A5A
#: Divisions and reciprocals. Whatever their rounding, they are estimates only: compilers rewrite and approximate them.
ESTIMATES = ("div", "div.full.f32", "div.approx.f32", "rcp.approx.f32", "rcp.approx.ftz.f32", "vrcp.f32")


def floats(a: Words) -> Any:
    """The words as float32."""
    return a.view(np.float32)


def words(x: Any) -> Words:
    """float32, integers or truths as words."""
    return np.asarray(x).view(np.uint32) if np.asarray(x).dtype.itemsize == 4 else np.asarray(x).astype(np.uint32)


def flushed(a: Words) -> Words:
    """Zero with its sign for a subnormal number: what a processor makes of it that flushes."""
    return np.where(a & np.uint32(0x7F800000), a, a & np.uint32(0x80000000))


def _signed(a: Words) -> Any:
    return a.view(np.int32)


def away_from_zero(a: Words) -> Words:
    """Rounded to the integer that is not nearer to zero."""
    x = floats(a)
    return words(np.copysign(np.ceil(np.abs(x)), x).astype(np.float32))


def to_int(a: Words) -> Words:
    """Rounded towards zero and converted."""
    x = np.trunc(floats(a))
    possible = (x >= -(2.0**31)) & (x < 2.0**31)
    return np.where(possible, np.where(possible, x, 0).astype(np.int32).view(np.uint32), np.uint32(NO_INTEGER))


def _quotient(a: Words, b: Words) -> Words:
    return words(floats(a) / floats(b))


def _reciprocal(a: Words) -> Words:
    return words(np.float32(1) / floats(a))


def _shift(direction: Callable[[Any, Any], Any]) -> Callable[[Words, Words], Words]:
    return lambda a, n: np.where(n < 32, direction(a, n & np.uint32(31)), np.uint32(NO_INTEGER))


def _ordered(compare: Callable[[Any, Any], Any], unordered: bool) -> Callable[[Words, Words], Words]:
    def result(a: Words, b: Words) -> Words:
        x, y = floats(a), floats(b)
        neither = np.isnan(x) | np.isnan(y)
        return words((compare(x, y) & ~neither) | (neither if unordered else False))

    return result


_COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}

#: Operations that round, and flush where the processor does.
ROUNDED: dict[str, Callable[..., Words]] = {
    "mul": lambda a, b: words(floats(a) * floats(b)),
    "add": lambda a, b: words(floats(a) + floats(b)),
    "sub": lambda a, b: words(floats(a) - floats(b)),
    **{name: _reciprocal if "rcp" in name else _quotient for name in ESTIMATES},
}

#: All others.
EXACT: dict[str, Callable[..., Words]] = {
    "abs": lambda a: a & np.uint32(0x7FFFFFFF),
    "neg": lambda a: a ^ np.uint32(0x80000000),
    "keep": lambda a: np.where((a & np.uint32(0x7FFFFFFF)) <= 0x00800000, np.uint32(0), a),
    "select": lambda c, a, b: np.where(c != 0, a, b),
    "maximum": lambda a, b: words(np.maximum(floats(a), floats(b))),
    "trunc": lambda a: words(np.trunc(floats(a))),
    "floor": lambda a: words(np.floor(floats(a))),
    "ceil": lambda a: words(np.ceil(floats(a))),
    "is_weird": lambda a: words(~np.isfinite(floats(a))),
    "to_int": to_int,
    "to_float": lambda a: words(_signed(a).astype(np.float32)),
    "to_float.u": lambda a: words(a.astype(np.float32)),
    "i.add": lambda a, b: a + b,
    "i.sub": lambda a, b: a - b,
    "i.mul": lambda a, b: a * b,
    "i.and": lambda a, b: a & b,
    "i.or": lambda a, b: a | b,
    "i.xor": lambda a, b: a ^ b,
    "i.shl": _shift(np.left_shift),
    "i.shr": _shift(np.right_shift),
    "i.sar": _shift(lambda a, n: words(_signed(a) >> n.view(np.int32))),
    "i.min": lambda a, b: words(np.minimum(_signed(a), _signed(b))),
    "i.max": lambda a, b: words(np.maximum(_signed(a), _signed(b))),
    "i.umin": np.minimum,
    "i.umax": np.maximum,
    **{f"cmp.{name}": _ordered(compare, False) for name, compare in _COMPARE.items()},
    **{f"cmp.{name}u": _ordered(compare, True) for name, compare in _COMPARE.items()},
    "cmp.uno": lambda a, b: words(np.isnan(floats(a)) | np.isnan(floats(b))),
    "cmp.ord": lambda a, b: words(~(np.isnan(floats(a)) | np.isnan(floats(b)))),
    **{f"i.{name}": (lambda a, b, compare=compare: words(compare(_signed(a), _signed(b)))) for name, compare in _COMPARE.items()},
    **{f"i.u{name}": (lambda a, b, compare=compare: words(compare(a, b))) for name, compare in _COMPARE.items()},
}


def folded(op: str, *values: int) -> int | None:
    """The result on constants, of what never rounds; None for any other operation."""
    if op not in EXACT:
        return None
    with np.errstate(all="ignore"):
        return int(EXACT[op](*(np.array([value], np.uint32) for value in values))[0])
