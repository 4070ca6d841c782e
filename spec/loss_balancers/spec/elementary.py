"""The exact `exp`, `log` and `sqrt` of float32, and the sum of `softmax` (spec A13, A15): 60 digits by `decimal`, then a rounding.

Sixty digits are enough: a result that is not itself the middle of two float32 numbers is at least 2^-58 of itself from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from fractions import Fraction

from loss_balancers.spec.formats import flush, round_to

DIGITS = Context(prec=60)
#: Above the first, e^x is infinity in float32; below the second, +0.
OVERFLOW, UNDERFLOW = 89.0, -88.0
#: `softmax` counts in units of 2^-40, and at most so many numbers: then the sum is below 2^62, in an int64.
UNIT, MOST_NUMBERS = 2**40, 2**22 - 1


def exp(x: float) -> float:
    """keep(RN(e^keep(x))) of a float32 number (spec A13)."""
    x = flush(x, "f32")
    if math.isnan(x):
        return x
    if not UNDERFLOW <= x <= OVERFLOW:
        return math.inf if x > 0 else 0.0
    return _rounded(DIGITS.exp, x)


def log(x: float) -> float:
    """RN(ln keep(x)) of a float32 number (spec A13)."""
    x = flush(x, "f32")
    if not 0 < x < math.inf:
        return -math.inf if x == 0 else x if x > 0 else math.nan
    return _rounded(DIGITS.ln, x)


def sqrt(x: float) -> float:
    """RN of the root of keep(x), a float32 number (spec A13)."""
    x = flush(x, "f32")
    if not 0 < x < math.inf:
        return x if x >= 0 else math.nan
    return _rounded(DIGITS.sqrt, x)


def _rounded(function: Callable[[Decimal], Decimal], x: float) -> float:
    return flush(round_to(Fraction(function(Decimal(x))), "f32"), "f32")


def total(powers: Sequence[float]) -> float:
    """RN(2^-40 times the sum of floor(2^40 e)) over numbers in [0, 1]; NaN if one is NaN (spec A15)."""
    if any(map(math.isnan, powers)):
        return math.nan
    return round_to(Fraction(sum(math.floor(Fraction(power) * UNIT) for power in powers), UNIT), "f32")
