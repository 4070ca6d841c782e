"""What the operations in a dump do to words: floats and integers as they are defined, so that emitted code can be executed.

A word is a uint32, whatever it stands for; a truth is 0 or 1. A wide word is a uint64, an integer or a float64; the operations that
give one begin with ``w.``. All functions take and return NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loss_balancers.audit.expressions import doubles

#: uint32, or uint64 of wide words.
Words = np.ndarray[Any, np.dtype[Any]]

#: What a conversion gives where no integer is near enough: the compilers guard it, and nothing may depend on it.
NO_INTEGER = 0x5A5A5A5A
#: The same of 64 bits.
NO_WIDE_INTEGER = 0x5A5A5A5A5A5A5A5A
#: Divisions and reciprocals. Whatever their rounding, they are estimates only: compilers rewrite and approximate them.
QUOTIENTS = ("div", "div.full.f32", "div.approx.f32", "rcp.approx.f32", "rcp.approx.ftz.f32", "vrcp.f32")
#: Roots, and reciprocals of roots.
ROOTS = ("sqrt", "sqrt.rn.f32", "sqrt.approx.f32", "sqrt.approx.ftz.f32", "vrsqrt.f32")
ESTIMATES = (*QUOTIENTS, *ROOTS)


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


def _root(a: Words) -> Words:
    return words(np.sqrt(floats(a)))


def _reciprocal_root(a: Words) -> Words:
    return words((1 / np.sqrt(floats(a).astype(np.float64))).astype(np.float32))


def _leading_zeros(a: Any) -> Any:
    """Of integers of either width: the width itself for 0."""
    width = 8 * a.dtype.itemsize
    count, rest = np.zeros(a.shape, np.uint32), a
    for step in (32, 16, 8, 4, 2, 1)[width == 32 :]:
        low = (rest >> a.dtype.type(width - step)) == 0
        count, rest = count + np.where(low, step, 0).astype(np.uint32), np.where(low, rest << a.dtype.type(step), rest)
    return np.where(a == 0, np.uint32(width), count)


def _wide_shift(direction: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def result(a: Any, n: Any) -> Any:
        n = n.astype(np.uint64)
        return np.where(n < 64, direction(a, n & np.uint64(63)), np.uint64(NO_WIDE_INTEGER))

    return result


def _of_class(a: Words, mask: Words) -> Words:
    """Whether a float is of one of the classes of LLVM's `is.fpclass`, by their bits."""
    magnitude, positive = a & np.uint32(0x7FFFFFFF), a < 0x80000000
    nan = np.where(magnitude & np.uint32(0x400000), 1, 0)
    # From -infinity to +infinity: 2 to 9.
    size = np.select([magnitude == 0, magnitude < 0x800000, magnitude < 0x7F800000], [0, 1, 2], 3)
    bit = np.where(magnitude > 0x7F800000, nan, np.where(positive, 6 + size, 5 - size))
    return words((mask >> bit.astype(np.uint32)) & np.uint32(1))


def _longs(a: Any) -> Any:
    return a.view(np.int64)


def _shift(direction: Callable[[Any, Any], Any]) -> Callable[[Words, Words], Words]:
    return lambda a, n: np.where(n < 32, direction(a, n & np.uint32(31)), np.uint32(NO_INTEGER))


def _ordered(compare: Callable[[Any, Any], Any], unordered: bool) -> Callable[[Words, Words], Words]:
    def result(a: Words, b: Words) -> Words:
        x, y = floats(a), floats(b)
        neither = np.isnan(x) | np.isnan(y)
        return words((compare(x, y) & ~neither) | (neither if unordered else False))

    return result


_COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}

#: Reciprocals of float64 that a device estimates.
WIDE_ESTIMATES = ("w.double.rcp",)
#: Operations that round, and flush where the processor does.
ROUNDED: dict[str, Callable[..., Words]] = {
    "mul": lambda a, b: words(floats(a) * floats(b)),
    "add": lambda a, b: words(floats(a) + floats(b)),
    "sub": lambda a, b: words(floats(a) - floats(b)),
    **{name: _reciprocal if "rcp" in name else _quotient for name in QUOTIENTS},
    **doubles.ROUNDED,
    **{name: _reciprocal_root if "rsqrt" in name else _root for name in ROOTS},
}

#: All others.
EXACT: dict[str, Callable[..., Words]] = {
    **doubles.EXACT,
    "abs": lambda a: a & np.uint32(0x7FFFFFFF),
    "abs.ftz": lambda a: flushed(a) & np.uint32(0x7FFFFFFF),
    "neg": lambda a: a ^ np.uint32(0x80000000),
    "keep": lambda a: np.where((a & np.uint32(0x7FFFFFFF)) <= 0x00800000, np.uint32(0), a),
    "select": lambda c, a, b: np.where(c != 0, a, b),
    "maximum": lambda a, b: words(np.maximum(floats(a), floats(b))),
    "minimum": lambda a, b: words(np.minimum(floats(a), floats(b))),
    "trunc": lambda a: words(np.trunc(floats(a))),
    "floor": lambda a: words(np.floor(floats(a))),
    "ceil": lambda a: words(np.ceil(floats(a))),
    "is_of_class": _of_class,
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
    "i.shl.out": lambda a, n: np.where(n < 32, a << (n & np.uint32(31)), np.uint32(0)),
    "i.shr.out": lambda a, n: np.where(n < 32, a >> (n & np.uint32(31)), np.uint32(0)),
    "i.sar.out": lambda a, n: words(_signed(a) >> np.minimum(n, np.uint32(31)).view(np.int32)),
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
    "i.clz": _leading_zeros,
    # Of wide integers, and from and to them.
    "w.add": lambda a, b: a + b,
    "w.sub": lambda a, b: a - b,
    "w.mul": lambda a, b: a * b,
    "w.and": lambda a, b: a & b,
    "w.or": lambda a, b: a | b,
    "w.xor": lambda a, b: a ^ b,
    "w.shl": _wide_shift(np.left_shift),
    "w.shr": _wide_shift(np.right_shift),
    "w.sar": _wide_shift(lambda a, n: (_longs(a) >> n.view(np.int64)).view(np.uint64)),
    "w.min": lambda a, b: np.minimum(_longs(a), _longs(b)).view(np.uint64),
    "w.max": lambda a, b: np.maximum(_longs(a), _longs(b)).view(np.uint64),
    "w.umin": np.minimum,
    "w.umax": np.maximum,
    "w.usub.sat": lambda a, b: np.where(a < b, np.uint64(0), a - b),
    "w.zext": lambda a: a.astype(np.uint64),
    "w.sext": lambda a: _signed(a).astype(np.int64).view(np.uint64),
    "w.pair": lambda low, high: low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32)),
    "low": lambda a: a.astype(np.uint32),
    "high": lambda a: (a >> np.uint64(32)).astype(np.uint32),
    "clz": _leading_zeros,
    "wide_to_float": lambda a: words(_longs(a).astype(np.float32)),
    "wide_to_float.u": lambda a: words(a.astype(np.float32)),
    **{f"wide.{name}": (lambda a, b, compare=compare: words(compare(_longs(a), _longs(b)))) for name, compare in _COMPARE.items()},
    **{f"wide.u{name}": (lambda a, b, compare=compare: words(compare(a, b))) for name, compare in _COMPARE.items()},
}


def is_wide(op: str) -> bool:
    """Whether an operation gives a wide word. `select` gives one if it chooses among such."""
    return op.startswith("w.") or op == "wide"


def folded(op: str, *values: int, wide: Sequence[bool] = ()) -> int | None:
    """The result on constants of what never rounds; None for any other operation. ``wide`` says which constants are."""
    if op not in EXACT:
        return None
    kinds = [np.uint64 if each else np.uint32 for each in wide or [False] * len(values)]
    with np.errstate(all="ignore"):
        return int(EXACT[op](*(np.array([value], kind) for value, kind in zip(values, kinds, strict=True)))[0])
