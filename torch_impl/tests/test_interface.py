"""What a call refuses in PyTorch alone. What holds in both frameworks stands in `parity_tests/tests/each_framework`."""

import numpy as np
import pytest
import torch

from loss_balancers.torch import StaticLossBalancer

ONE = torch.tensor(1.0)


@pytest.mark.parametrize("call", ["forward", "canonical"])
def test_a_scalar_of_numpy(call):
    with pytest.raises(TypeError) as caught:
        getattr(StaticLossBalancer(), call)({"M": np.float32(1)})
    for word in ("'M'", "Received numpy.float32"):
        assert word in str(caught.value)


def test_devices_that_differ():
    with pytest.raises(ValueError, match="must all be on one device") as caught:
        StaticLossBalancer(0.5)({"M_0": ONE, "M_1": ONE.to("meta")})
    assert "'M_0': 'cpu', 'M_1': 'meta'" in str(caught.value)
