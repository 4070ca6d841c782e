"""What a call refuses in JAX alone. What holds in both frameworks stands in `parity_tests/tests/each_framework`."""

import numpy as np
import pytest

from loss_balancers.jax import StaticLossBalancer


class Foreign:
    """Has what an array of another framework has."""

    dtype, shape = np.dtype("float32"), ()


@pytest.mark.parametrize("call", ["__call__", "canonical"])
@pytest.mark.parametrize(
    ("loss", "word"),
    [
        pytest.param(np.int32(1), "Received numpy.int32.", id="numpy-int"),
        pytest.param(Foreign(), "Received Foreign", id="array-of-another-framework"),
    ],
)
def test_errors(call, loss, word):
    with pytest.raises(TypeError) as caught:
        getattr(StaticLossBalancer(), call)({"M": loss})
    assert "'M'" in str(caught.value)
    assert word in str(caught.value)
