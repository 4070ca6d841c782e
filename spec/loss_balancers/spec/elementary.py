"""The exact `exp`, `log`, `sqrt` and `softmax` of float32 (spec A13 to A15): 60 digits by `decimal`, then the spec's rounding.

Sixty digits are enough: a result that is not itself the middle of two float32 numbers is at least 2^-58 of itself from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from fractions import Fraction

from loss_balancers.spec.arithmetic import EXACT
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


def exp_gradient(cotangent: float, x: float) -> float:
    """The gradient of :func:`exp` (spec A14)."""
    return EXACT.rmul(cotangent, exp(x), "f32")


def log_gradient(cotangent: float, x: float) -> float:
    """The gradient of :func:`log` (spec A14)."""
    return EXACT.div(cotangent, x, "f32")


def sqrt_gradient(cotangent: float, x: float) -> float:
    """The gradient of :func:`sqrt` (spec A14)."""
    y = sqrt(x)
    return EXACT.div(cotangent, y + y, "f32")


def softmax(numbers: Sequence[float]) -> list[float]:
    """The softmax of float32 numbers (spec A15)."""
    _, powers, total = _powers(numbers)
    return [EXACT.div(power, total, "f32") for power in powers]


def logsumexp(numbers: Sequence[float]) -> float:
    """The logarithm of the sum of e^x over float32 numbers (spec A15)."""
    most, _, total = _powers(numbers)
    return EXACT.add(most, log(total), "f32")


def _powers(numbers: Sequence[float]) -> tuple[float, list[float], float]:
    """The greatest number m, the powers e^(x - m), and their sum; m and the sum are NaN where the result is."""
    numbers = [flush(x, "f32") for x in numbers]
    if not all(x < math.inf for x in numbers) or max(numbers) == -math.inf:
        return math.nan, [math.nan] * len(numbers), math.nan
    most = max(numbers)
    powers = [exp(EXACT.add(x, -most, "f32")) for x in numbers]
    total = sum(math.floor(Fraction(power) * UNIT) for power in powers)
    return most, powers, round_to(Fraction(total, UNIT), "f32")
