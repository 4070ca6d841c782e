"""`breakdown`: the same names and bits in both twins, the weights that `weights` has, parts that add up to the total."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_same_bits
from loss_balancers.parity.bits import as_numpy
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES
VALUES = dict(zip(NAMES, (2.9, 0.3, 1.7), strict=True))
BALANCERS = registry.examples()
#: Whose KD losses are added before their weight is applied, and those of ratios.
ADD_FIRST = ("static", "scheduled", "logits", "logits-reference")


def breakdowns(kind: str, dtypes: dict[str, str]):
    of_torch, of_jax = (registry.make(BALANCERS[kind], part) for part in (loss_balancers.torch, loss_balancers.jax))
    losses = {n: np.asarray(value, jnp.dtype(dtypes[n])) for n, value in VALUES.items()}
    given = {n: torch.tensor(float(x), dtype=getattr(torch, dtypes[n])) for n, x in losses.items()}
    return of_torch.breakdown(given), of_jax.breakdown({n: jnp.asarray(x) for n, x in losses.items()}), of_torch.weights(given)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize(
    "dtypes",
    [("float32",) * 3, ("bfloat16",) * 3, ("float64",) * 3, ("float64", "float32", "bfloat16")],
    ids=["f32", "bf16", "f64", "mixed"],
)
def test_twins_agree(kind: str, dtypes: tuple[str, ...]) -> None:
    if not BALANCERS[kind].takes_float64:
        dtypes = tuple(dtype.replace("float64", "float16") for dtype in dtypes)
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


@pytest.mark.parametrize(
    "kind", [kind for kind, settings in BALANCERS.items() if kind not in ADD_FIRST and settings.weights_are != "derivatives"]
)
def test_the_parts_add_up_in_order(kind: str) -> None:
    parts, _, weights = breakdowns(kind, dict.fromkeys(NAMES, "float32"))
    total = torch.zeros(())
    for name in weights:
        total = total + parts[f"{name}/weighted"]
    assert_same_bits(total, parts["total"])


@pytest.mark.parametrize("hooks", ["offloaded", "checkpointed", "their-own"])
@pytest.mark.parametrize("kind", BALANCERS)
def test_where_hooks_take_what_is_saved_for_a_backward(kind: str, hooks: str) -> None:
    """`torch.func` refuses to differentiate there. The hooks see nothing of it, and a forward of a checkpoint is repeated once."""
    balancer, seen = registry.make(BALANCERS[kind], loss_balancers.torch).eval(), []
    losses = {name: torch.tensor(value, requires_grad=True) for name, value in VALUES.items()}
    expected = balancer.breakdown(losses)

    def logged(losses):
        seen.append(balancer.breakdown(losses))
        return balancer(losses)

    def fail(x):
        raise AssertionError("a hook was called")

    if hooks == "checkpointed":
        checkpoint(logged, losses, use_reentrant=False).backward()
        assert len(seen) <= 2  # once where a backward needs nothing that was saved
    elif hooks == "offloaded":
        with torch.autograd.graph.save_on_cpu():
            logged(losses).backward()
    else:
        balancer.requires_grad_(requires_grad=False)
        losses = {name: x.detach() for name, x in losses.items()}
        with torch.autograd.graph.saved_tensors_hooks(fail, fail):
            seen.append(balancer.breakdown(losses))
    for parts in seen:
        assert list(parts) == list(expected)
        for name, part in parts.items():
            assert not part.requires_grad
            assert_same_bits(part, expected[name].detach())
