"""Our two balancers give the same bits, on the lanes that `--parity-lanes` names."""

import pytest
from your_twins import jax_blend, torch_blend

NAMES = ["student_loss", "MSELoss_0", "KLDivLoss_1"]


@pytest.mark.parametrize("fmt", ["f32", "bf16", "f16", "mixed"])
def test_twins(parity, fmt):
    parity.assert_twins(torch_blend.Blend(), jax_blend.Blend(), names=NAMES, formats=[fmt])
