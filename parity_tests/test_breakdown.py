"""`breakdown`: the same names and bits in both twins, the weights that `weights` has, parts that add up to the total."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_same_bits
from loss_balancers.parity.bits import as_numpy
from loss_balancers.parity.jax_versions import enable_x64

NAMES = ("student_loss", "KL_1", "LogitsKLLoss_0")
VALUES = dict(zip(NAMES, (1.7, 0.3, 2.9), strict=True))
BALANCERS = {
    "static-number": ("StaticLossBalancer", (0.3,)),
    "static-sequence": ("StaticLossBalancer", ([0.15, 0.3],)),
    "scheduled": ("ScheduledLossBalancer", ([0.15, 0.3], NAMES)),
    "weighted-sum": ("WeightedSumLossBalancer", ({"KL_1": 0.7, "LogitsKLLoss_0": 1.3}, 0.4)),
    "ema": ("EMANormalizedLossBalancer", (NAMES,)),
    "logits": ("LogitsAndIntermediatesLossBalancer", ()),
}


def breakdowns(kind: str, dtypes: dict[str, str]):
    name, arguments = BALANCERS[kind]
    of_torch, of_jax = (getattr(part, name)(*arguments) for part in (loss_balancers.torch, loss_balancers.jax))
    losses = {n: np.asarray(value, jnp.dtype(dtypes[n])) for n, value in VALUES.items()}
    given = {n: torch.tensor(float(x), dtype=getattr(torch, dtypes[n])) for n, x in losses.items()}
    return of_torch.breakdown(given), of_jax.breakdown({n: jnp.asarray(x) for n, x in losses.items()}), of_torch.weights(given)


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize(
    "dtypes",
    [("float32",) * 3, ("bfloat16",) * 3, ("float64",) * 3, ("float64", "float32", "bfloat16")],
    ids=["f32", "bf16", "f64", "mixed"],
)
def test_twins_agree(kind: str, dtypes: tuple[str, ...]) -> None:
    with enable_x64("float64" in dtypes):
        of_torch, of_jax, weights = breakdowns(kind, dict(zip(NAMES, dtypes, strict=True)))
        expected = [f"{name}/{part}" for name in weights for part in ("raw", "weight", "weighted")]
        assert list(of_torch) == list(of_jax) == [*expected, "total"]
        for name, part in of_torch.items():
            assert not part.requires_grad
            assert_same_bits(part, of_jax[name])
        for name, weight in weights.items():
            shown = as_numpy(of_torch[f"{name}/weight"])
            assert shown == shown.dtype.type(float(weight))


@pytest.mark.parametrize("kind", [kind for kind in BALANCERS if kind not in ("static-number", "logits")])  # others add first
def test_the_parts_add_up_in_order(kind: str) -> None:
    parts, _, weights = breakdowns(kind, dict.fromkeys(NAMES, "float32"))
    total = torch.zeros(())
    for name in weights:
        total = total + parts[f"{name}/weighted"]
    assert_same_bits(total, parts["total"])
