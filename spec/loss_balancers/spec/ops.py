"""The arithmetic of the spec, written once, over the few operations that it is made of.

`arithmetic.EXACT` has these operations on exact numbers. The audit has them on nodes of expressions, so that what it expects of
compiled code is the reference itself. An operand that is a Python float is a constant.

What names, formats and missing losses decide is an ``if`` of Python. What values decide is a :meth:`Ops.choose`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any

from loss_balancers.spec.formats import compute_format, result_format

#: A number, or what stands for one.
Value = Any
#: True or False, or what stands for it.
Truth = Any


class Ops(ABC):
    """The operations that the reference is made of, and the arithmetic of the spec (A3 to A15) made of them."""

    @abstractmethod
    def multiply(self, a: Value, b: Value, fmt: str) -> Value:
        """RN(a * b)."""

    @abstractmethod
    def add(self, a: Value, b: Value, fmt: str) -> Value:
        """RN(a + b)."""

    @abstractmethod
    def div(self, a: Value, b: Value, fmt: str) -> Value:
        """The quotient of spec A10, of operands in f32 or in f64: flushed, divided, rounded, flushed."""

    @abstractmethod
    def round(self, a: Value, fmt: str) -> Value:
        """RN(a)."""

    @abstractmethod
    def flush(self, a: Value, fmt: str) -> Value:
        """keep(a) of spec A4."""

    @abstractmethod
    def negate(self, a: Value, fmt: str) -> Value:
        """keep(-a)."""

    @abstractmethod
    def exp(self, a: Value) -> Value:
        """keep(RN(e^keep(a))) of spec A13, in f32 as all that follows from it."""

    @abstractmethod
    def log(self, a: Value) -> Value:
        """RN(ln keep(a)) of spec A13."""

    @abstractmethod
    def sqrt(self, a: Value) -> Value:
        """RN of the root of keep(a) (spec A13)."""

    @abstractmethod
    def total(self, powers: Sequence[Value]) -> Value:
        """RN(2^-40 times the sum of floor(2^40 e)) over numbers in [0, 1] (spec A15)."""

    @abstractmethod
    def magnitude(self, a: Value) -> Value:
        """|a|."""

    @abstractmethod
    def above(self, a: Value, b: Value) -> Truth:
        """Whether a > b; false if one is NaN."""

    @abstractmethod
    def equal(self, a: Value, b: Value) -> Truth:
        """Whether a = b; false if one is NaN."""

    @abstractmethod
    def finite(self, a: Value) -> Truth:
        """Whether ``a`` is neither NaN nor infinite."""

    @abstractmethod
    def every(self, truths: Sequence[Truth]) -> Truth:
        """Whether all are true."""

    @abstractmethod
    def choose(self, truth: Truth, yes: Value, no: Value) -> Value:
        """``yes`` if it is true, else ``no``."""

    def rmul(self, a: Value, b: Value, fmt: str) -> Value:
        """The product of spec A11, of operands in f32 or in f64: flushed, multiplied, rounded, flushed."""
        return self.flush(self.multiply(self.flush(a, fmt), self.flush(b, fmt), fmt), fmt)

    def widen(self, value: Value, fmt: str) -> Value:
        """A loss in the compute format (spec A3): flushed (f16 in f32, where none of its values is subnormal), then exact."""
        return self.flush(value, "f64" if fmt == "f64" else "f32")

    def narrow(self, value: Value, fmt: str) -> Value:
        """RN(value) in a loss's or the aggregate's format (spec A7): through f32, flushed there, if the format is not f64."""
        return value if fmt == "f64" else self.round(self.flush(self.round(value, "f32"), "f32"), fmt)

    def weighted_sum(
        self, terms: Sequence[Value], formats: Sequence[str], weights: Sequence[Value], dtype: str | None = None
    ) -> Value:
        """The weighted sum of spec A4 to A7: products flushed, added in order, the sum flushed and rounded.

        Args:
            terms: The values, each representable in its format.
            formats: The format of each.
            weights: As many weights, in float64.
            dtype: The format of the result; None for the common type of ``formats``.
        """
        result = dtype or result_format(formats)
        compute = compute_format([*formats, result])
        total = None
        for term, fmt, weight in zip(terms, formats, weights, strict=True):
            product = self._weighted(weight, self.widen(term, fmt), compute)
            total = product if total is None else self.add(total, product, compute)
        assert total is not None  # the callers have checked that there are terms
        return self.narrow(self.flush(total, compute), result)

    def weighted_sum_gradient(
        self, cotangent: Value, formats: Sequence[str], weights: Sequence[Value], dtype: str | None = None
    ) -> list[Value]:
        """The gradient of :meth:`weighted_sum` to each term (spec A8): keep(RN(w * g)) in the compute format, rounded."""
        result = dtype or result_format(formats)
        compute = compute_format([*formats, result])
        g = self.widen(cotangent, result)
        return [self.narrow(self._weighted(weight, g, compute), fmt) for weight, fmt in zip(weights, formats, strict=True)]

    def _weighted(self, weight: Value, x: Value, compute: str) -> Value:
        """keep(RN(w * x)), the weight rounded to the compute format and flushed (spec A3)."""
        return self.flush(self.multiply(self.flush(self.round(weight, compute), compute), x, compute), compute)

    def balance(
        self, terms: Sequence[Value], formats: Sequence[str], factors: Sequence[Value], cotangent: Value
    ) -> tuple[Value, list[Value]]:
        """A balancer's aggregate, and the gradient to each term (spec A5, A8).

        Args:
            terms: The values in canonical order.
            formats: The format of each.
            factors: As many weights, or fewer: then the leading terms share the first of them, and are added before it is applied.
            cotangent: The gradient of what follows to the aggregate, in the aggregate's format.
        """
        result, compute = result_format(formats), compute_format(formats)
        shared = len(terms) - len(factors) + 1
        if shared == 1:
            return self.weighted_sum(terms, formats, factors), self.weighted_sum_gradient(cotangent, formats, factors)
        ones = (1.0,) * shared
        first = self.weighted_sum(terms[:shared], formats[:shared], ones, compute)
        outer_formats = [compute, *formats[shared:]]
        aggregate = self.weighted_sum([first, *terms[shared:]], outer_formats, factors, result)
        outer = self.weighted_sum_gradient(cotangent, outer_formats, factors, result)
        inner = self.weighted_sum_gradient(outer[0], formats[:shared], ones, compute)
        return aggregate, [*inner, *outer[1:]]

    def div_gradient(self, cotangent: Value, a: Value, b: Value, fmt: str) -> tuple[Value, Value]:
        """The gradient of :meth:`div` to both operands (spec A12)."""
        scaled = self.div(cotangent, b, fmt)
        return scaled, self.rmul(scaled, self.negate(self.div(a, b, fmt), fmt), fmt)

    def rmul_gradient(self, cotangent: Value, a: Value, b: Value, fmt: str) -> tuple[Value, Value]:
        """The gradient of :meth:`rmul` to both operands (spec A12)."""
        return self.rmul(cotangent, b, fmt), self.rmul(cotangent, a, fmt)

    def exp_gradient(self, cotangent: Value, a: Value) -> Value:
        """The gradient of :meth:`exp` (spec A14)."""
        return self.rmul(cotangent, self.exp(a), "f32")

    def log_gradient(self, cotangent: Value, a: Value) -> Value:
        """The gradient of :meth:`log` (spec A14)."""
        return self.div(cotangent, a, "f32")

    def sqrt_gradient(self, cotangent: Value, a: Value) -> Value:
        """The gradient of :meth:`sqrt` (spec A14)."""
        y = self.sqrt(a)
        return self.div(cotangent, self.add(y, y, "f32"), "f32")

    def greatest(self, numbers: Sequence[Value]) -> Value:
        """The greatest of them. If one is NaN, what it gives is not defined."""
        return reduce(lambda most, x: self.choose(self.above(x, most), x, most), numbers)

    def softmax(self, numbers: Sequence[Value]) -> list[Value]:
        """The softmax of float32 numbers (spec A15)."""
        _, powers, total = self._powers(numbers)
        return [self.div(power, total, "f32") for power in powers]

    def logsumexp(self, numbers: Sequence[Value]) -> Value:
        """The logarithm of the sum of e^x over float32 numbers (spec A15)."""
        most, _, total = self._powers(numbers)
        return self.add(most, self.log(total), "f32")

    def powers_and_total(self, numbers: Sequence[Value]) -> tuple[list[Value], Value]:
        """The powers that a softmax is made of, and their sum, which is NaN where the softmax is."""
        _, powers, total = self._powers(numbers)
        return powers, total

    def _powers(self, numbers: Sequence[Value]) -> tuple[Value, list[Value], Value]:
        """The greatest number m, the powers e^(x - m), and their sum, which is NaN where the result is."""
        kept = [self.flush(x, "f32") for x in numbers]
        most = self.greatest(kept)
        powers = [self.exp(self.add(x, self.negate(most, "f32"), "f32")) for x in kept]
        valid = self.every([*(self.above(math.inf, x) for x in kept), self.above(most, -math.inf)])
        return most, powers, self.choose(valid, self.total(powers), math.nan)
