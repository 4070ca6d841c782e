"""The exact reference: the arithmetic of the spec, evaluated with fractions. Slow, obvious, and independent of any library.

Every value is a Python float that its format represents; every operation is exact, then rounded once by
:func:`~loss_balancers.spec.formats.round_to`. NaN, infinity and signed zero follow IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from loss_balancers.spec import elementary, formats
from loss_balancers.spec.formats import round_to
from loss_balancers.spec.ops import Ops


class Exact(Ops):
    """The operations on exact numbers."""

    def multiply(self, a: float, b: float, fmt: str) -> float:
        if math.isfinite(a) and math.isfinite(b) and a != 0 and b != 0:
            return round_to(Fraction(a) * Fraction(b), fmt)
        return a * b  # NaN, infinity, zero: IEEE 754 leaves nothing to round

    def add(self, a: float, b: float, fmt: str) -> float:
        if math.isfinite(a) and math.isfinite(b) and a != -b:
            return round_to(Fraction(a) + Fraction(b), fmt)
        return a + b

    def div(self, a: float, b: float, fmt: str) -> float:
        a, b = self.flush(a, fmt), self.flush(b, fmt)
        if math.isfinite(a) and math.isfinite(b) and a != 0 and b != 0:
            return self.flush(round_to(Fraction(a) / Fraction(b), fmt), fmt)
        if b == 0:  # +0, since flushed; Python refuses
            return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
        return self.flush(a / b, fmt)  # NaN, infinity, zero: IEEE 754 leaves nothing to round

    def round(self, a: float, fmt: str) -> float:
        return round_to(Fraction(a), fmt) if math.isfinite(a) and a != 0 else a

    def flush(self, a: float, fmt: str) -> float:
        return formats.flush(a, fmt)

    def negate(self, a: float, fmt: str) -> float:
        return self.flush(-a, fmt)

    def exp(self, a: float) -> float:
        return elementary.exp(a)

    def log(self, a: float) -> float:
        return elementary.log(a)

    def sqrt(self, a: float) -> float:
        return elementary.sqrt(a)

    def total(self, powers: Sequence[float]) -> float:
        return elementary.total(powers)

    def magnitude(self, a: float) -> float:
        return abs(a)

    def above(self, a: float, b: float) -> bool:
        return a > b

    def equal(self, a: float, b: float) -> bool:
        return a == b

    def finite(self, a: float) -> bool:
        return math.isfinite(a)

    def every(self, truths: Sequence[bool]) -> bool:
        return all(truths)

    def choose(self, truth: bool, yes: float, no: float) -> float:
        return yes if truth else no


EXACT = Exact()

multiply, add, div, rmul = EXACT.multiply, EXACT.add, EXACT.div, EXACT.rmul
widen, narrow, balance = EXACT.widen, EXACT.narrow, EXACT.balance
weighted_sum, weighted_sum_gradient = EXACT.weighted_sum, EXACT.weighted_sum_gradient
div_gradient, rmul_gradient = EXACT.div_gradient, EXACT.rmul_gradient
softmax, logsumexp = EXACT.softmax, EXACT.logsumexp
