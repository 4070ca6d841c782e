"""The exact reference: the arithmetic of the spec, evaluated with fractions. Slow, obvious, and independent of any library.

Every value is a Python float that its format represents; every operation is exact, then rounded once by
:func:`~loss_balancers.spec.formats.round_to`. NaN, infinity and signed zero follow IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from loss_balancers.spec.formats import compute_format, flush, result_format, round_to, round_weight


def multiply(a: float, b: float, fmt: str) -> float:
    """RN(a * b)."""
    if math.isfinite(a) and math.isfinite(b) and a != 0 and b != 0:
        return round_to(Fraction(a) * Fraction(b), fmt)
    return a * b  # NaN, infinity, zero: IEEE 754 leaves nothing to round


def add(a: float, b: float, fmt: str) -> float:
    """RN(a + b)."""
    if math.isfinite(a) and math.isfinite(b) and a != -b:
        return round_to(Fraction(a) + Fraction(b), fmt)
    return a + b


def widen(value: float, fmt: str) -> float:
    """A loss in the compute format (spec A3): flushed (f16 in f32, where all its values are normal), then exact."""
    return flush(value, "f64" if fmt == "f64" else "f32")


def narrow(value: float, fmt: str) -> float:
    """RN(value) in a loss's or the aggregate's format (spec A7): through f32, flushed there, if the format is not f64."""
    if fmt == "f64" or not math.isfinite(value):
        return value
    value = flush(_round(value, "f32"), "f32")
    return _round(value, fmt)


def _round(value: float, fmt: str) -> float:
    return round_to(Fraction(value), fmt) if math.isfinite(value) and value != 0 else value


def weighted_sum(terms: Sequence[float], formats: Sequence[str], weights: Sequence[float], dtype: str | None = None) -> float:
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
        product = flush(multiply(round_weight(weight, compute), widen(term, fmt), compute), compute)
        total = product if total is None else add(total, product, compute)
    assert total is not None  # the callers have checked that there are terms
    return narrow(flush(total, compute), result)


def weighted_sum_gradient(
    cotangent: float, formats: Sequence[str], weights: Sequence[float], dtype: str | None = None
) -> list[float]:
    """The gradient of :func:`weighted_sum` to each term (spec A8): keep(RN(w * g)) in the compute format, rounded."""
    result = dtype or result_format(formats)
    compute = compute_format([*formats, result])
    return [
        narrow(flush(multiply(round_weight(weight, compute), widen(cotangent, result), compute), compute), fmt)
        for weight, fmt in zip(weights, formats, strict=True)
    ]


def balance(
    terms: Sequence[float], formats: Sequence[str], factors: Sequence[float], cotangent: float
) -> tuple[float, list[float]]:
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
        return weighted_sum(terms, formats, factors), weighted_sum_gradient(cotangent, formats, factors)
    ones = (1.0,) * shared
    first = weighted_sum(terms[:shared], formats[:shared], ones, compute)
    outer_formats = [compute, *formats[shared:]]
    aggregate = weighted_sum([first, *terms[shared:]], outer_formats, factors, result)
    outer = weighted_sum_gradient(cotangent, outer_formats, factors, result)
    inner = weighted_sum_gradient(outer[0], formats[:shared], ones, compute)
    return aggregate, [*inner, *outer[1:]]


def div(a: float, b: float, fmt: str) -> float:
    """The quotient of spec A10, for operands in f32 or in f64: flushed, divided, rounded, flushed."""
    a, b = flush(a, fmt), flush(b, fmt)
    if math.isfinite(a) and math.isfinite(b) and a != 0 and b != 0:
        return flush(round_to(Fraction(a) / Fraction(b), fmt), fmt)
    if b == 0:  # +0, since it is flushed; Python itself raises here
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
    return flush(a / b, fmt)  # NaN, infinity, zero: IEEE 754 leaves nothing to round


def rmul(a: float, b: float, fmt: str) -> float:
    """The product of spec A11, for operands in f32 or in f64: flushed, multiplied, rounded, flushed."""
    return flush(multiply(flush(a, fmt), flush(b, fmt), fmt), fmt)


def div_gradient(cotangent: float, a: float, b: float, fmt: str) -> tuple[float, float]:
    """The gradient of :func:`div` to both operands (spec A12)."""
    scaled = div(cotangent, b, fmt)
    return scaled, rmul(scaled, -div(a, b, fmt), fmt)


def rmul_gradient(cotangent: float, a: float, b: float, fmt: str) -> tuple[float, float]:
    """The gradient of :func:`rmul` to both operands (spec A12)."""
    return rmul(cotangent, b, fmt), rmul(cotangent, a, fmt)
