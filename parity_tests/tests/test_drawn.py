"""Drawn cases: torch against jax.jit against the exact reference, as bits.

14 signatures of 160 drawn calls, 2,240 in all, from hypothesis with the fixed seed 20260101. The signatures are fixed, so that
each is compiled once; the values are any that the format has, NaN, infinities, zeros and subnormals among them.
"""

import random

import pytest
from cases import by_jax, by_spec, by_torch, has_subnormal_partial_sum, jitted, odd_one_out
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.bits import from_bits
from loss_balancers.spec import STUDENT_LOSS_KEY, StaticLossBalancerSettings, result_format

SEED = 20260101
EXAMPLES = 160
WIDTH = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64}

SIGNATURES = {
    "number-f32": (0.5, ["f32", "f32"]),
    "number-summed-f32": (0.7, ["f32"] * 5),
    "number-summed-f16": (0.3, ["f16"] * 4),
    "sequence-f32": ([0.1, 0.3, 0.25], ["f32"] * 4),
    "sequence-long-f32": ([0.04] * 24, ["f32"] * 25),
    "sequence-bf16": ([0.1, 0.7], ["bf16"] * 3),
    "sequence-f16": ([0.35, 0.15, 0.2], ["f16"] * 4),
    "sequence-f64": ([0.1, 0.2, 0.3, 0.05], ["f64"] * 5),
    "mapping-f32": ({"KL_2": 0.3, "MSE_10": 0.6}, ["f32"] * 3),
    "mapping-student-bf16": ({"KL": 0.3, "MSE": 0.1, STUDENT_LOSS_KEY: 0.6}, ["bf16"] * 3),
    "mixed-f32-bf16": ([0.2, 0.5], ["bf16", "f32", "bf16"]),
    "mixed-bf16-f16": ([0.2, 0.5], ["bf16", "f16", "f16"]),
    "mixed-f64-narrow": ([0.2, 0.5, 0.1], ["bf16", "f64", "f16", "f32"]),
    "mixed-summed-f64": (0.9, ["f32", "f64", "f32", "bf16"]),
}


def test_at_least_2000_cases_are_drawn() -> None:
    assert EXAMPLES * len(SIGNATURES) >= 2000


def _numbers(fmt: str) -> st.SearchStrategy[float]:
    """Any value of the format, by its bits, and ordinary losses as often."""
    anything = st.integers(0, 2 ** WIDTH[fmt] - 1).map(lambda bits: from_bits(bits, fmt))
    exponent_bits = {"bf16": 7, "f16": 10, "f32": 23, "f64": 52}[fmt]
    one = (127 if fmt in ("bf16", "f32") else 15 if fmt == "f16" else 1023) << exponent_bits
    ordinary = st.integers(one - (4 << exponent_bits), one + (4 << exponent_bits)).map(lambda bits: from_bits(bits, fmt))
    return anything | ordinary


@pytest.mark.parametrize("signature", SIGNATURES)
def test_three_witnesses_agree(signature: str) -> None:
    kd_loss_weight, formats = SIGNATURES[signature]
    if isinstance(kd_loss_weight, dict):
        kd = [name for name in kd_loss_weight if name != STUDENT_LOSS_KEY]
    else:
        kd = [f"MSELoss_{i}" for i in range(len(formats) - 1)]
    names = [*kd, STUDENT_LOSS_KEY]
    random.Random(SEED).shuffle(names)
    format_of = dict(zip(names, formats, strict=True))
    result = result_format(formats)
    checked = StaticLossBalancerSettings(kd_loss_weight)
    torch_balancer = loss_balancers.torch.StaticLossBalancer(kd_loss_weight)
    jax_step = jitted(loss_balancers.jax.StaticLossBalancer(kd_loss_weight))
    compared = 0

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(values=st.tuples(*(_numbers(format_of[name]) for name in names)), cotangent=_numbers(result))
    def check(values: tuple[float, ...], cotangent: float) -> None:
        nonlocal compared
        losses = {name: (format_of[name], value) for name, value in zip(names, values, strict=True)}
        assume(not has_subnormal_partial_sum(checked, losses))
        spec = by_spec(checked, losses, result, cotangent)
        found = odd_one_out(spec, by_torch(torch_balancer, losses, result, cotangent), by_jax(jax_step, losses, result, cotangent))
        compared += 1
        assert not found, "\n".join(found)

    check()
    assert compared >= EXAMPLES
