"""The comparators can fail: each is given what it must not let pass."""

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from loss_balancers.parity import assert_same_bits, ulp_distance
from loss_balancers.parity.bits import from_bits, same, to_bits

ONE = np.float32(1.0)
NAN = np.float32(np.nan)
OTHER_NAN = np.array([0x7FC00001], np.uint32).view(np.float32)


@pytest.mark.parametrize("array", [np.asarray, torch.tensor, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_equal_arrays_pass(array) -> None:
    assert_same_bits(array([1.0, -0.0, np.nan, np.inf]), array([1.0, -0.0, np.nan, np.inf]))


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (np.float32(-0.0), np.float32(0.0), "1 ulp"),
        (OTHER_NAN, np.array([NAN]), "NaN"),
        (np.float64(1.0), ONE, "dtypes differ: float64 is not float32"),
        (np.nextafter(ONE, np.float32(2)), ONE, "0x1.0000020000000p+0 is not 0x1.0000000000000p+0 (f32, 1 ulp)"),
        (np.ones(1, np.float32), ONE, "shapes differ: (1,) is not ()"),
        (np.array([1, 2, 3], np.float32), np.array([1, 5, 4], np.float32), "2 of 3 elements differ, first at (1,)"),
        (np.asarray(1.0078125, ml_dtypes.bfloat16), np.asarray(1.0, ml_dtypes.bfloat16), "(bf16, 1 ulp)"),
        (np.array([1]), np.array([2]), "1 is not 2"),
    ],
    ids=["minus-zero", "another-nan", "float64", "one-ulp", "shape", "first-index", "bfloat16", "integers"],
)
def test_a_difference_fails_and_says_where(actual, expected, words) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_same_bits(actual, expected)
    assert words in str(raised.value)


def test_nan_by_class_lets_another_nan_pass_and_nothing_else() -> None:
    assert_same_bits(OTHER_NAN, np.array([NAN]), nan="class")
    with pytest.raises(AssertionError):
        assert_same_bits(np.array([ONE]), np.array([NAN]), nan="class")
    with pytest.raises(AssertionError):
        assert_same_bits(np.float32(-0.0), np.float32(0.0), nan="class")


def test_frameworks_compare_across() -> None:
    assert_same_bits(torch.tensor([1.5, -0.0], dtype=torch.bfloat16), jnp.asarray([1.5, -0.0], jnp.bfloat16))
    with pytest.raises(AssertionError):
        assert_same_bits(torch.tensor(1.0), jnp.nextafter(jnp.float32(1.0), jnp.float32(2.0)))


@pytest.mark.parametrize("fmt", ["bf16", "f16", "f32", "f64"])
def test_bits_round_trip_and_ulp_counts_numbers(fmt: str) -> None:
    for value in (0.0, -0.0, 1.0, -1.5, math.inf, -math.inf):
        assert math.copysign(1, from_bits(to_bits(value, fmt), fmt)) == math.copysign(1, value)
        assert from_bits(to_bits(value, fmt), fmt) == value
    assert math.isnan(from_bits(to_bits(math.nan, fmt), fmt))
    one, minus = to_bits(1.0, fmt), to_bits(-1.0, fmt)
    assert ulp_distance(one, one + 1, fmt) == 1
    assert ulp_distance(one, one, fmt) == 0
    assert ulp_distance(to_bits(0.0, fmt), to_bits(-0.0, fmt), fmt) == 1
    assert ulp_distance(minus, one, fmt) == 2 * one + 1
    assert ulp_distance(to_bits(math.nan, fmt), one, fmt) is None
    assert not same(one, one + 1, fmt)
    assert not same(to_bits(0.0, fmt), to_bits(-0.0, fmt), fmt)
    assert same(to_bits(math.nan, fmt), to_bits(math.nan, fmt) | 1, fmt)


@pytest.mark.parametrize(("value", "fmt"), [(1 + 2**-10, "bf16"), (1 + 2**-20, "f16"), (1 + 2**-40, "f32")])
def test_a_value_that_the_format_does_not_hold_is_refused(value: float, fmt: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        to_bits(value, fmt)
