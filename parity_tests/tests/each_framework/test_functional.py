"""`functional.weighted_sum`: its errors, its formats, and weights that no balancer has."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from loss_balancers import spec
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import arithmetic


@pytest.fixture
def weighted_sum(framework):
    """The function."""
    return framework.balancers.functional.weighted_sum


#: By what is wrong: terms and weights, the class of the error, and some of its words.
WRONG = {
    "no-terms": lambda f, one: ([], [], ValueError, ["`terms` must hold at least one array"]),
    "no-weights": lambda f, one: ([one], [], ValueError, ["equally many", "1 terms and 0 weights"]),
    "count": lambda f, one: ([one], [0.5, 0.5], ValueError, ["equally many", "1 terms and 2 weights"]),
    "nan": lambda f, one: ([one], [math.nan], ValueError, ["`weights[0]` must be finite", "Received nan"]),
    "inf": lambda f, one: ([one, one], [1, math.inf], ValueError, ["`weights[1]` must be finite", "Received inf"]),
    "int-beyond-float64": lambda f, one: ([one], [-(10**400)], ValueError, ["that float64 holds", "Received -1000"]),
    "bool": lambda f, one: ([one], [True], TypeError, ["`weights[0]` must be a real number", "True of type bool"]),
    "string": lambda f, one: ([one], ["1"], TypeError, ["`weights[0]` must be a real number", "'1' of type str"]),
    "array": lambda f, one: ([one], [f.xp.ones(1)], TypeError, ["`weights[0]` must be a real number", f"of type {f.ARRAY}"]),
    "matrix": lambda f, one: ([one], f.xp.ones((1, 1)), TypeError, ["`weights[0]` must be a real number", f"of type {f.ARRAY}"]),
    "bool-array": lambda f, one: ([one], [one == 1], TypeError, ["`weights[0]` must be a real number", f"of type {f.ARRAY}"]),
    "number": lambda f, one: ([one], 0.5, TypeError, ["`weights` must be a sequence of numbers, or a vector", "0.5 of type float"]),
    "scalar": lambda f, one: (
        [one],
        one,
        TypeError,
        ["`weights` must be a sequence of numbers, or a vector", f"of type {f.ARRAY}"],
    ),
    "float-term": lambda f, one: ([1.0], [0.5], TypeError, ["The loss 'terms[0]' must be a floating-point array", "float"]),
    "int-term": lambda f, one: ([f.array(1, f.INTEGER)], [0.5], TypeError, ["'terms[0]'", f"an array of {f.INTEGER}"]),
    "shapes": lambda f, one: ([one, f.xp.ones(2)], [0.5, 0.5], ValueError, ["one shape", "'terms[0]': (), 'terms[1]': (2,)"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(framework, weighted_sum, wrong):
    terms, weights, error, words = WRONG[wrong](framework, framework.array(1.0))
    with pytest.raises(error) as caught:
        weighted_sum(terms, weights)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["int32", "bool", "complex64", "float8_e4m3fn"])
def test_dtypes_that_are_not_supported(framework, weighted_sum, name):
    with pytest.raises(TypeError, match=f"`dtype` must be bfloat16, float16, float32 or float64. Received {name}"):
        weighted_sum([framework.array(1.0)], [1.0], dtype=getattr(framework.xp, name))


def test_a_narrow_term_is_not_supported(framework, weighted_sum):
    with pytest.raises(TypeError, match="an array of float8_e4m3fn"):
        weighted_sum([framework.array(1.0, "float8_e4m3fn")], [1.0])


@pytest.mark.parametrize(
    "weights", [(0.25, 0.75), [np.float64(0.25), np.float32(0.75)], np.array([0.25, 0.75])], ids=["tuple", "numpy", "array"]
)
def test_weights_may_be(framework, weighted_sum, weights):
    assert_same_bits(weighted_sum([framework.array(2.0), framework.array(4.0)], weights), framework.array(3.5))


def test_the_order_is_the_one_given(framework, weighted_sum):
    large, one = framework.array(1e8), framework.array(1.0)
    assert_same_bits(weighted_sum([large, one, -large], [1, 1, 1]), framework.array(0.0))
    assert_same_bits(weighted_sum([large, -large, one], [1, 1, 1]), framework.array(1.0))


def test_one_term_twice(framework, weighted_sum):
    total, gradients = framework.differentiate(lambda x: weighted_sum([x[0], x[0]], [0.25, 0.5]), [framework.loss(3.0)])
    assert_same_bits(total, framework.array(2.25))
    assert_same_bits(gradients[0], framework.array(0.75))


@pytest.fixture
def check(framework, weighted_sum):
    """Compares value and gradient with the exact reference."""

    def check(formats, values, weights, cotangent, result):
        def array(value, fmt, kind=framework.array):
            return kind(value, spec.FORMATS[fmt].dtype)

        terms = [array(x, fmt, framework.loss) for x, fmt in zip(values, formats, strict=True)]
        fmt = result or spec.result_format(formats)
        total, gradients = framework.differentiate(
            lambda terms: weighted_sum(terms, weights, dtype=result and framework.DTYPES[result]), terms, array(cotangent, fmt)
        )
        assert_same_bits(total, array(arithmetic.weighted_sum(values, formats, weights, result), fmt), nan="class")
        expected = arithmetic.weighted_sum_gradient(cotangent, formats, weights, result)
        for gradient, value, fmt in zip(gradients, expected, formats, strict=True):
            assert_same_bits(gradient, array(value, fmt), nan="class" if fmt == "bf16" else framework.NAN)

    return check


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("result", spec.FORMATS)
@pytest.mark.parametrize("fmt", spec.FORMATS)
def test_dtype(framework, check, fmt, result):
    rng = random.Random(f"{fmt} {result}")
    with framework.float64():
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
def test_weights_beyond_one(check, fmt, cotangent, values, weights):
    check([fmt] * len(values), values, weights, cotangent, None)
