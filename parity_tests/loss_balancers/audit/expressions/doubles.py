"""What the operations in a dump do to float64, which are wide words: so that emitted code can be executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: Words of 64 bits.
Wide = np.ndarray[Any, np.dtype[np.uint64]]
#: What takes a number apart into two of half as many digits.
SPLIT = 2.0**27 + 1


def numbers(a: Wide) -> Any:
    """The words as float64."""
    return a.view(np.float64)


def wide(x: Any) -> Wide:
    """float64 as words."""
    return np.asarray(x, np.float64).view(np.uint64)


def fused(a: Wide, b: Wide, c: Wide) -> Wide:
    """RN(a * b + c), as a fused multiply-add rounds, by Boldo and Melquiond (IEEE Trans. Computers 57, 2008), algorithm 5.

    The error of the product and those of two sums are exact, and the last but one sum is rounded to odd. That holds as long as
    nothing overflows, nor the errors are subnormal: then, as for what is not finite, it is the rounded product and sum.
    """
    x, y, z = numbers(a), numbers(b), numbers(c)
    high, low = _product(x, y)
    th, tl = _sum(z, low)
    vh, vl = _sum(high, th)
    result = vh + _to_odd(tl, vl)
    plain = x * y + z
    return wide(np.where(np.isfinite(result) & np.isfinite(plain), result, plain))


def _product(x: Any, y: Any) -> tuple[Any, Any]:
    p = x * y
    (xh, xl), (yh, yl) = _halves(x), _halves(y)
    return p, xl * yl - (((p - xh * yh) - xl * yh) - xh * yl)


def _halves(x: Any) -> tuple[Any, Any]:
    scaled = SPLIT * x
    high = scaled - (scaled - x)
    return high, x - high


def _sum(x: Any, y: Any) -> tuple[Any, Any]:
    s = x + y
    rest = s - x
    return s, (x - (s - rest)) + (y - rest)


def _to_odd(x: Any, y: Any) -> Any:
    """The sum, rounded to odd: towards the float whose last bit is 1, where it is inexact."""
    s, error = _sum(x, y)
    even = (s.view(np.uint64) & np.uint64(1)) == 0
    towards = np.where((error > 0) == (s >= 0), 1, -1)
    moved = (s.view(np.int64) + towards).view(np.float64)
    # At zero there is no neighbour in the bits: an inexact sum is never zero.
    return np.where((error != 0) & even & np.isfinite(s), moved, s)


def reciprocal(a: Wide) -> Wide:
    """An estimate that has the upper 32 bits of a float64, as of a device that gives no more."""
    return wide(1 / numbers(a)) & np.uint64(0xFFFFFFFF00000000)


def _ordered(compare: Callable[[Any, Any], Any], unordered: bool) -> Callable[[Wide, Wide], Any]:
    def result(a: Wide, b: Wide) -> Any:
        x, y = numbers(a), numbers(b)
        neither = np.isnan(x) | np.isnan(y)
        return ((compare(x, y) & ~neither) | (neither if unordered else False)).astype(np.uint32)

    return result


_COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}

#: Operations that round, each once.
ROUNDED: dict[str, Callable[..., Any]] = {
    "w.double.mul": lambda a, b: wide(numbers(a) * numbers(b)),
    "w.double.add": lambda a, b: wide(numbers(a) + numbers(b)),
    "w.double.sub": lambda a, b: wide(numbers(a) - numbers(b)),
    "w.double.fma": fused,
    "w.double.sqrt": lambda a: wide(np.sqrt(numbers(a))),
    "w.double.rcp": reciprocal,
    "double_to_float": lambda a: numbers(a).astype(np.float32).view(np.uint32),
}
#: All others.
EXACT: dict[str, Callable[..., Any]] = {
    "w.double.neg": lambda a: a ^ np.uint64(1 << 63),
    "w.double.abs": lambda a: a & np.uint64((1 << 63) - 1),
    "w.double.widened": lambda a: wide(a.view(np.float32).astype(np.float64)),
    **{f"double.{name}": _ordered(compare, False) for name, compare in _COMPARE.items()},
    **{f"double.{name}u": _ordered(compare, True) for name, compare in _COMPARE.items()},
}
