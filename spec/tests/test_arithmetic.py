"""The exact reference against an independent evaluation in NumPy, where nothing is special; and where something is."""

import math

import numpy as np
import pytest

from loss_balancers.spec import StaticLossBalancerSettings, static_reference
from loss_balancers.spec.arithmetic import weighted_sum, weighted_sum_gradient

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
TINY = 2.0**-126


def numpy_sum(terms, weights, compute):
    products = [compute(x) * compute(w) for x, w in zip(terms, weights, strict=True)]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def numpy_narrow(x, dtype):
    return float(x if dtype is np.float64 else dtype(np.float32(x)))  # from float64 through float32


@pytest.mark.parametrize(
    ("formats", "compute", "result"),
    [
        (["f32"] * 5, np.float32, np.float32),
        (["f16"] * 5, np.float32, np.float16),
        (["f64"] * 5, np.float64, np.float64),
        (["f16", "f32", "f16", "f32", "f32"], np.float32, np.float32),
        (["f16", "f32", "f64", "f32", "f64"], np.float64, np.float64),
    ],
    ids=["f32", "f16", "f64", "f16-and-f32", "three-formats"],
)
def test_weighted_sum_against_numpy(formats, compute, result):
    rng = np.random.default_rng(7)
    inexact = 0
    for _ in range(300):
        terms = [float(DTYPES[fmt](rng.normal() * 2.0 ** rng.integers(-4, 4))) for fmt in formats]
        weights = rng.uniform(0, 1, len(terms)).tolist()
        cotangent = float(result(rng.normal()))
        expected = numpy_narrow(numpy_sum(terms, weights, compute), result)
        assert weighted_sum(terms, formats, weights) == expected
        gradient = [numpy_narrow(compute(w) * compute(cotangent), DTYPES[fmt]) for fmt, w in zip(formats, weights, strict=True)]
        assert weighted_sum_gradient(cotangent, formats, weights) == gradient
        inexact += expected != math.fsum(w * x for w, x in zip(weights, terms, strict=True))
    assert inexact > 50  # the order of the roundings matters in these draws


@pytest.mark.parametrize("student", [True, False], ids=["student", "no-student"])
@pytest.mark.parametrize("form", ["number", "sequence", "mapping"])
def test_static_reference_against_numpy(form, student):
    rng = np.random.default_rng(11)
    f = np.float32
    for _ in range(200):
        values = rng.normal(size=4).astype(f)
        kd, last = values[:3], values[3]
        w = rng.dirichlet(np.ones(4))[:3].tolist()
        names = ["M_0", "M_1", "M_2"]
        given = {"number": w[0], "sequence": w, "mapping": dict(zip(names, w, strict=True))}[form]
        settings = StaticLossBalancerSettings(given)
        weight = [w[0]] * 3 if form == "number" else w
        expected = f(w[0]) * (kd[0] + kd[1] + kd[2]) if form == "number" else numpy_sum(kd, w, f)
        rest = 1.0 - (w[0] if form == "number" else w[0] + w[1] + w[2])
        losses = {name: ("f32", float(x)) for name, x in zip(names, kd, strict=True)}
        gradient = {name: float(f(x)) for name, x in zip(names, weight, strict=True)}
        if student:
            expected = expected + f(rest) * last
            losses = {"student_loss": ("f32", float(last)), **losses}
            gradient["student_loss"] = float(f(rest))
        assert static_reference(settings, losses) == (float(expected), gradient)


@pytest.mark.parametrize(
    ("terms", "weights", "expected"),
    [
        pytest.param([1e-38], [1.0], 0.0, id="subnormal-loss"),
        pytest.param([2 * TINY], [0.5], 0.0, id="product-at-the-smallest-normal"),
        pytest.param([-2 * TINY], [0.5], 0.0, id="flushed-to-plus-zero"),
        pytest.param([4 * TINY], [0.5], 2 * TINY, id="product-above"),
        pytest.param([1.5 * TINY, -1.25 * TINY], [1.0, 1.0], 0.0, id="subnormal-sum"),
        pytest.param([-0.0, -0.0], [0.5, 0.5], 0.0, id="minus-zero"),
        pytest.param([2.0**127, 2.0**127], [1.0, 1.0], math.inf, id="overflow"),
        pytest.param([math.inf, 1.0], [0.5, 0.5], math.inf, id="inf"),
        pytest.param([math.inf, 1.0], [0.0, 0.5], math.nan, id="inf-times-zero"),
        pytest.param([math.inf, -math.inf], [0.5, 0.5], math.nan, id="inf-minus-inf"),
        pytest.param([math.nan, 1.0], [0.0, 1.0], math.nan, id="nan-with-weight-zero"),
        pytest.param([1.0], [2.0**-149], 0.0, id="subnormal-weight"),
    ],
)
def test_special_values(terms, weights, expected):
    got = weighted_sum(terms, ["f32"] * len(terms), weights)
    assert np.float64(got).tobytes() == np.float64(expected).tobytes() or (math.isnan(got) and math.isnan(expected))


def test_half_precision_overflows_at_the_final_rounding_only():
    largest = 65504.0
    assert weighted_sum([largest, largest, -largest], ["f16"] * 3, [1.0, 1.0, 1.0]) == largest
    assert weighted_sum([largest, largest], ["f16"] * 2, [1.0, 1.0]) == math.inf
    assert weighted_sum([largest, largest], ["f16"] * 2, [1.0, 1.0], "f32") == 2 * largest
