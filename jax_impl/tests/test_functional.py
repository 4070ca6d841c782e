"""`functional.weighted_sum`: its errors, its formats, and weights that no balancer has."""

import math
import random
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_balancers import spec
from loss_balancers.jax.functional import weighted_sum
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import arithmetic

DTYPES = {name: jnp.dtype(fmt.dtype) for name, fmt in spec.FORMATS.items()}
ONE = jnp.float32(1.0)


@pytest.mark.parametrize(
    ("terms", "weights", "error", "words"),
    [
        pytest.param([], [], ValueError, ["`terms` must hold at least one array"], id="no-terms"),
        pytest.param([ONE], [], ValueError, ["equally many", "1 terms and 0 weights"], id="no-weights"),
        pytest.param([ONE], [0.5, 0.5], ValueError, ["equally many", "1 terms and 2 weights"], id="count"),
        pytest.param([ONE], [math.nan], ValueError, ["`weights[0]` must be finite", "Received nan"], id="nan"),
        pytest.param([ONE, ONE], [1, math.inf], ValueError, ["`weights[1]` must be finite", "Received inf"], id="inf"),
        pytest.param([ONE], [-(10**400)], ValueError, ["`weights[0]` must be finite", "Received -inf"], id="int-beyond-float64"),
        pytest.param([ONE], [True], TypeError, ["`weights[0]` must be a real number", "True of type bool"], id="bool"),
        pytest.param([ONE], ["1"], TypeError, ["`weights[0]` must be a real number", "'1' of type str"], id="string"),
        pytest.param([ONE], [jnp.ones(1)], TypeError, ["`weights[0]` must be a real number", "of type ArrayImpl"], id="array"),
        pytest.param([ONE], jnp.ones((1, 1)), TypeError, ["`weights[0]` must be a real number", "of type ArrayImpl"], id="matrix"),
        pytest.param([ONE], [ONE == 1], TypeError, ["`weights[0]` must be a real number", "of type ArrayImpl"], id="bool-array"),
        pytest.param(
            [ONE], 0.5, TypeError, ["`weights` must be a sequence of numbers, or a vector", "0.5 of type float"], id="number"
        ),
        pytest.param(
            [ONE], ONE, TypeError, ["`weights` must be a sequence of numbers, or a vector", "of type ArrayImpl"], id="scalar"
        ),
        pytest.param([1.0], [0.5], TypeError, ["The loss 'terms[0]' must be a floating-point array", "float"], id="float-term"),
        pytest.param([jnp.int32(1)], [0.5], TypeError, ["'terms[0]'", "an array of int32"], id="int-term"),
        pytest.param([ONE, jnp.ones(2)], [0.5, 0.5], ValueError, ["one shape", "'terms[0]': (), 'terms[1]': (2,)"], id="shapes"),
    ],
)
def test_errors(terms, weights, error, words):
    with pytest.raises(error) as caught:
        weighted_sum(terms, weights)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(jnp.int32, "int32"), (jnp.bool, "bool"), (jnp.complex64, "complex64"), (jnp.float8_e4m3fn, "float8_e4m3fn")],
)
def test_dtypes_that_are_not_supported(dtype, name):
    with pytest.raises(TypeError, match=f"`dtype` must be bfloat16, float16, float32 or float64. Received {name}"):
        weighted_sum([ONE], [1.0], dtype=dtype)


def test_float64_is_refused_while_it_is_off():
    with pytest.raises(TypeError, match="`dtype` is float64, which JAX has switched off"):
        weighted_sum([ONE], [1.0], dtype=jnp.float64)
    with enable_x64(True):
        assert weighted_sum([ONE], [1.0], dtype=jnp.float64).dtype == jnp.float64


def test_numpy_arrays_as_terms():
    terms: Any = [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float16)]
    assert_same_bits(weighted_sum(terms, [0.5, 0.5]), jnp.asarray([2.0, 3.0]))


def test_a_narrow_term_is_not_supported():
    with pytest.raises(TypeError, match="an array of float8_e4m3fn"):
        weighted_sum([jnp.asarray(1.0, jnp.float8_e4m3fn)], [1.0])


@pytest.mark.parametrize(
    "weights", [(0.25, 0.75), [np.float64(0.25), np.float32(0.75)], np.array([0.25, 0.75])], ids=["tuple", "numpy", "array"]
)
def test_weights_may_be(weights):
    assert_same_bits(weighted_sum([jnp.float32(2.0), jnp.float32(4.0)], weights), jnp.float32(3.5))


def test_the_order_is_the_one_given():
    large, one = jnp.float32(1e8), jnp.float32(1.0)
    assert_same_bits(weighted_sum([large, one, -large], [1, 1, 1]), jnp.float32(0.0))
    assert_same_bits(weighted_sum([large, -large, one], [1, 1, 1]), jnp.float32(1.0))


def test_one_term_twice():
    total, gradient = jax.value_and_grad(lambda x: weighted_sum([x, x], [0.25, 0.5]))(jnp.float32(3.0))
    assert_same_bits(total, jnp.float32(2.25))
    assert_same_bits(gradient, jnp.float32(0.75))


def check(formats, values, weights, cotangent, result):
    """Value and gradient against the exact reference."""
    terms = [jnp.asarray(x, DTYPES[fmt]) for x, fmt in zip(values, formats, strict=True)]
    total, vjp = jax.vjp(lambda terms: weighted_sum(terms, weights, dtype=result and DTYPES[result]), terms)
    fmt = result or spec.result_format(formats)
    assert_same_bits(total, jnp.asarray(arithmetic.weighted_sum(values, formats, weights, result), DTYPES[fmt]), nan="class")
    (gradients,) = vjp(jnp.asarray(cotangent, DTYPES[fmt]))
    expected = arithmetic.weighted_sum_gradient(cotangent, formats, weights, result)
    for gradient, value, fmt in zip(gradients, expected, formats, strict=True):
        assert_same_bits(gradient, jnp.asarray(value, DTYPES[fmt]), nan="class")


@pytest.mark.parametrize("result", spec.FORMATS)
@pytest.mark.parametrize("fmt", spec.FORMATS)
@enable_x64(True)
def test_dtype(fmt, result):
    rng = random.Random(f"{fmt} {result}")
    for _ in range(5):
        values = [spec.round_to(Fraction(rng.gauss(0, 1)), fmt) for _ in range(5)]
        check([fmt] * 5, values, [rng.random() for _ in values], spec.round_to(Fraction(rng.random()), result), result)
    largest = spec.round_to(Fraction(2) ** 16 - 2**5, fmt)
    check([fmt] * 2, [largest, largest], [1.0, 1.0], 1.0, result)  # beyond float16


TINY = 2.0**-126
LARGE_WEIGHTS = {
    "subnormal-terms": ([TINY / 2, 1.0], [1e10, 0.5]),
    "the-smallest-normal": ([TINY, -TINY], [3.0, 4.0]),
    "above-the-smallest-normal": ([TINY * 1.5, TINY / 4], [3.0, 1e30]),
    "negative": ([1.5, 2.5], [-2.0, 0.3]),
    "overflow": ([2.0**120, 1.0], [2.0**10, -1.0]),
    "weight-beyond-float32": ([1.0, 0.5], [1e39, 1.0]),
    "inf": ([math.inf, 1.0], [2.0, -3.0]),
    "five-terms": ([TINY / 2, TINY, 1.0, 3.0, -0.0], [2.0**40, 8.0, 0.1, 7.0, -5.0]),
}


@pytest.mark.parametrize(("values", "weights"), LARGE_WEIGHTS.values(), ids=LARGE_WEIGHTS)
@pytest.mark.parametrize("cotangent", [1.0, TINY / 2, TINY, TINY * 2], ids=["1", "subnormal", "tiny", "2-tiny"])
@pytest.mark.parametrize("fmt", ["f32", "bf16"])
def test_weights_beyond_one(fmt, cotangent, values, weights):
    check([fmt] * len(values), values, weights, cotangent, None)
