"""The exact quotient and product against IEEE 754 division and multiplication where nothing is flushed; and where something is."""

import math
from fractions import Fraction

import numpy as np
import pytest

from loss_balancers.spec import FORMATS
from loss_balancers.spec.arithmetic import div, div_gradient, rmul, rmul_gradient

DTYPES = {"f32": np.float32, "f64": np.float64}
INF, NAN = math.inf, math.nan


def same(a, b):
    return np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))


def drawn(fmt, count, seed):
    """Numbers of all exponents but the lowest quarter's and the highest's, so that quotient and product are normal."""
    rng = np.random.default_rng(seed)
    reach = FORMATS[fmt].max_exponent // 2 - 1
    return [float(DTYPES[fmt](rng.uniform(1, 2) * 2.0 ** rng.integers(-reach, reach) * rng.choice([-1, 1]))) for _ in range(count)]


@pytest.mark.parametrize("fmt", DTYPES)
def test_against_ieee_754_of_the_processor(fmt):
    dtype = DTYPES[fmt]
    inexact = 0
    for a, b in zip(drawn(fmt, 20_000, 1), drawn(fmt, 20_000, 2), strict=True):
        assert div(a, b, fmt) == dtype(a) / dtype(b)
        assert rmul(a, b, fmt) == dtype(a) * dtype(b)
        inexact += Fraction(div(a, b, fmt)) * Fraction(b) != Fraction(a)
    assert inexact > 19_000


@pytest.mark.parametrize("fmt", DTYPES)
def test_gradients_against_ieee_754_of_the_processor(fmt):
    dtype = DTYPES[fmt]
    rng = np.random.default_rng(3)
    for g, a, b in rng.uniform(-4, 4, (2000, 3)).astype(dtype):
        got = div_gradient(float(g), float(a), float(b), fmt)
        assert got == (g / b, (g / b) * -(a / b))
        assert rmul_gradient(float(g), float(a), float(b), fmt) == (g * b, g * a)


@pytest.mark.parametrize("fmt", DTYPES)
def test_special_quotients(fmt):
    tiny = FORMATS[fmt].tiny
    ulp = 2.0 ** (1 - FORMATS[fmt].precision)
    largest = (2 - ulp) * 2.0 ** FORMATS[fmt].max_exponent
    for a, b, expected in [
        (0.0, 0.0, NAN),
        (-0.0, 3.0, 0.0),
        (0.0, -3.0, 0.0),
        (3.0, 0.0, INF),
        (3.0, -0.0, INF),  # -0 counts as +0
        (-3.0, 0.0, -INF),
        (-3.0, -0.0, -INF),
        (INF, 0.0, INF),
        (-INF, -0.0, -INF),
        (INF, INF, NAN),
        (INF, -2.0, -INF),
        (-INF, -2.0, INF),
        (2.0, -INF, 0.0),
        (0.0, INF, 0.0),
        (NAN, 0.0, NAN),
        (0.0, NAN, NAN),
        (NAN, INF, NAN),
        (INF, NAN, NAN),
        (tiny, 1.0, 0.0),  # the smallest normal is flushed
        (1.0, tiny, INF),
        (1.0, -tiny / 2, INF),  # a subnormal is +0
        (tiny / 2, tiny / 4, NAN),
        (tiny * 2, 1.0, tiny * 2),
        (tiny * 2, 2.0, 0.0),
        (-tiny * 2, 2.0, 0.0),
        (tiny * (2 + 2 * ulp), 2.0, tiny * (1 + ulp)),
        (tiny * (2 - ulp), 2 - ulp, 0.0),
        (tiny * 2, 2 - ulp, tiny * (1 + ulp)),
        (largest, 1.0, largest),
        (largest, -0.5, -INF),
        (largest, 1 - ulp / 2, INF),
        (largest, largest, 1.0),
        (1.0, largest, 0.0),
        (1.0, 3.0, float(DTYPES[fmt](1) / DTYPES[fmt](3))),
    ]:
        assert same(div(a, b, fmt), expected), (a, b)


@pytest.mark.parametrize("fmt", DTYPES)
def test_special_products(fmt):
    tiny = FORMATS[fmt].tiny
    for a, b, expected in [
        (0.0, -3.0, 0.0),
        (-0.0, 3.0, 0.0),
        (INF, 0.0, NAN),
        (INF, -tiny / 2, NAN),
        (INF, -tiny * 2, -INF),
        (NAN, 0.0, NAN),
        (tiny / 2, 4.0, 0.0),  # the operand is flushed, though the product is normal
        (tiny, 4.0, 0.0),
        (tiny * 2, 0.5, 0.0),
        (tiny * 2, -0.375, 0.0),
        (tiny * 4, -0.5, tiny * -2),
    ]:
        assert same(rmul(a, b, fmt), expected), (a, b)
