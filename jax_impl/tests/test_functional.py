"""`functional.weighted_sum` in JAX: float64 that is switched off, and arrays of NumPy.

What holds in both frameworks stands in `parity_tests/tests/each_framework`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from loss_balancers.jax.functional import weighted_sum
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64

ONE = jnp.float32(1.0)


def test_float64_is_refused_while_it_is_off():
    with pytest.raises(TypeError, match="`dtype` is float64, which JAX has switched off"):
        weighted_sum([ONE], [1.0], dtype=jnp.float64)
    with enable_x64(True):
        assert weighted_sum([ONE], [1.0], dtype=jnp.float64).dtype == jnp.float64


def test_numpy_arrays_as_terms():
    terms: Any = [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float16)]
    assert_same_bits(weighted_sum(terms, [0.5, 0.5]), jnp.asarray([2.0, 3.0]))
