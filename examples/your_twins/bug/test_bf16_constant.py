"""Fails, to show what a failure looks like: `pytest bug`."""

from your_twins import jax_blend_bf16, torch_blend

NAMES = ["student_loss", "MSELoss_0", "KLDivLoss_1"]


def test_twins(parity):
    parity.assert_twins(torch_blend.Blend(), jax_blend_bf16.Blend(), names=NAMES)
