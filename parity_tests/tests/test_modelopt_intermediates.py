"""NVIDIA ModelOpt's balancer for Megatron as third witness of `LogitsAndIntermediatesLossBalancer`: values and gradients."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import JAX_DTYPES, TORCH_DTYPES, jitted
from modelopt_megatron import SOURCE, Theirs

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits, to_bits, ulp_distance
from loss_balancers.parity.jax_versions import enable_x64

CASES = {"f32": 1000, "f64": 1000}
ROWS = 100  # cases that share settings and names, and so a compilation

Values = Mapping[str, float]  # of the aggregate, and of the gradient to each loss


def _theirs(*settings: Any) -> Callable[[Any], torch.Tensor]:
    balancer = Theirs(*settings)

    def aggregate(losses: dict[str, torch.Tensor]) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of how it copies a tensor
            return balancer(losses)["kd_loss"]

    return aggregate


def _in_torch(balancer: Callable[[Any], torch.Tensor], losses: Values, fmt: str, cotangent: float) -> Values:
    x = {name: torch.tensor(value, dtype=TORCH_DTYPES[fmt], requires_grad=True) for name, value in losses.items()}
    aggregate = balancer(dict(x))
    gradients = torch.autograd.grad(
        aggregate, list(x.values()), torch.tensor(cotangent, dtype=TORCH_DTYPES[fmt]), allow_unused=True, materialize_grads=True
    )
    return {"aggregate": aggregate.item()} | {name: g.item() for name, g in zip(x, gradients, strict=True)}


def _in_jax(step: Any, losses: Values, fmt: str, cotangent: float) -> Values:
    with enable_x64(fmt == "f64"):
        x = {name: jnp.asarray(np.asarray(value, JAX_DTYPES[fmt])) for name, value in losses.items()}
        aggregate, gradients = step(x, jnp.asarray(np.asarray(cotangent, JAX_DTYPES[fmt])))
        return {"aggregate": aggregate.item()} | {name: g.item() for name, g in gradients.items()}


def _largest_distance(ours: Values, theirs: Values, fmt: str) -> int:
    distances = [ulp_distance(to_bits(ours[what], fmt), to_bits(theirs[what], fmt), fmt) for what in theirs]
    assert None not in distances  # no NaN among cases in which both are defined
    return max(distances)  # type: ignore[reportArgumentType]


def _ours(*settings: Any) -> tuple[Any, Any]:
    ours = loss_balancers.torch.LogitsAndIntermediatesLossBalancer(*settings).eval()
    twin = loss_balancers.jax.LogitsAndIntermediatesLossBalancer(*settings)
    twin.eval()
    return ours, jitted(twin)


@pytest.mark.parametrize("fmt", CASES)
def test_values_and_gradients_of_modelopt(fmt: str) -> None:
    """Not an ulp apart, however many intermediates there are."""
    rng = np.random.default_rng(20260204)
    worst = compared = 0
    while compared < CASES[fmt]:
        count, skip = (compared // ROWS) % 6, bool((compared // ROWS) % 4 == 3)
        scale = float(rng.uniform(0.1, 4.0))
        theirs, (ours, step) = _theirs(scale, skip), _ours(scale, skip)
        names = ["LogitsKLLoss_0", *(f"MSELoss_{i}" for i in range(1, count + 1)), "student_loss"]
        for row in rng.lognormal(0, 3, (ROWS, len(names))).astype(np.float32 if fmt == "f32" else np.float64).tolist():
            losses, cotangent = dict(zip(names, row, strict=True)), float(np.float32(rng.lognormal()))
            witness = _in_torch(theirs, losses, fmt, cotangent)
            mine = _in_torch(ours, losses, fmt, cotangent)
            assert mine == _in_jax(step, losses, fmt, cotangent)
            worst = max(worst, _largest_distance(mine, witness, fmt))
            compared += 1
    print(f"{compared} cases of {fmt}, 0 to 5 intermediates: at most {worst} ulp apart")
    assert compared >= CASES[fmt]
    assert worst == 0


def test_the_comparison_sees_an_ulp() -> None:
    theirs = {"aggregate": 1.5, "MSELoss_1": 0.25}
    ours = {"aggregate": 1.5, "MSELoss_1": float(np.nextafter(np.float32(0.25), np.float32(1)))}
    assert _largest_distance(ours, theirs, "f32") == 1


def test_the_witness_is_another_implementation() -> None:
    assert Theirs.__name__ == "LogitsAndIntermediatesLossBalancer"
    assert SOURCE.name == "megatron.py"
    assert not issubclass(Theirs, loss_balancers.torch.LogitsAndIntermediatesLossBalancer)


@pytest.mark.parametrize(
    ("losses", "skip"),
    [
        pytest.param({"LogitsKLLoss_0": 2.0, "MSELoss_1": 0.0, "student_loss": 3.0}, False, id="intermediate-0"),
        pytest.param({"LogitsKLLoss_0": 0.0, "MSELoss_1": 4.0, "student_loss": 3.0}, False, id="logits-0"),
        pytest.param({"LogitsKLLoss_0": 2.0, "MSELoss_1": 4.0, "student_loss": 0.0}, False, id="student-0"),
        pytest.param({"LogitsKLLoss_0": 2.0, "MSELoss_1": 4.0, "student_loss": -1.0}, False, id="student-negative"),
        pytest.param({"LogitsKLLoss_0": -5.0, "MSELoss_1": 4.0, "student_loss": 1.0}, False, id="distilled-negative"),
        pytest.param({"LogitsKLLoss_0": 0.0, "MSELoss_1": 0.0, "student_loss": 0.0}, False, id="all-0"),
        pytest.param({"LogitsKLLoss_0": 2.0, "MSELoss_1": 4.0, "student_loss": 9.0}, True, id="skip"),
        pytest.param({"LogitsKLLoss_0": 2.0, "student_loss": 9.0}, True, id="skip-logits-alone"),
    ],
)
def test_where_a_ratio_is_not_taken(losses: Values, skip: bool) -> None:
    ours, step = _ours(1.5, skip)
    witness = _in_torch(_theirs(1.5, skip), losses, "f32", 1.0)
    assert _in_torch(ours, losses, "f32", 1.0) == _in_jax(step, losses, "f32", 1.0) == witness


def test_where_it_is_not_followed() -> None:
    """Documented deviations: intermediates below 0 or NaN keep their gradient, a subnormal sum counts as none."""
    ours, _ = _ours(1.0, True)

    def both(losses: Values) -> tuple[Values, Values]:
        return _in_torch(ours, losses, "f32", 1.0), _in_torch(_theirs(1.0, True), losses, "f32", 1.0)

    mine, theirs = both({"LogitsKLLoss_0": 2.0, "MSELoss_1": -4.0, "student_loss": 1.0})
    assert (mine["aggregate"], mine["MSELoss_1"]) == (-2.0, 1.0)
    assert (theirs["aggregate"], theirs["MSELoss_1"]) == (-2.0, 0.0)
    mine, theirs = both({"LogitsKLLoss_0": 2.0, "MSELoss_1": float("nan"), "student_loss": 1.0})
    assert (np.isnan(mine["aggregate"]), mine["MSELoss_1"]) == (True, 1.0)
    assert (np.isnan(theirs["aggregate"]), theirs["MSELoss_1"]) == (True, 0.0)
    mine, theirs = both({"LogitsKLLoss_0": 2.0, "MSELoss_1": 2.0**-140, "student_loss": 1.0})
    assert (mine["aggregate"], mine["MSELoss_1"]) == (2.0, 0.0)
    assert (theirs["aggregate"], np.isnan(theirs["MSELoss_1"]) or np.isinf(theirs["MSELoss_1"])) == (float("inf"), True)


def test_the_callers_dict_is_left_alone_and_theirs_is_not() -> None:
    losses = {name: torch.tensor(1.0) for name in ("LogitsKLLoss_0", "MSELoss_1", "student_loss")}
    loss_balancers.torch.LogitsAndIntermediatesLossBalancer()(losses)
    assert list(losses) == ["LogitsKLLoss_0", "MSELoss_1", "student_loss"]
    Theirs()(losses)
    assert list(losses) == ["MSELoss_1"]


def test_ema_normalised_without_memory_is_the_ratio() -> None:
    """With beta 0, eps 0, the logits loss as unit and one intermediate, `EMANormalizedLossBalancer` gives the same float32."""
    rng = np.random.default_rng(18)
    names: tuple[str, ...] = ("LogitsKLLoss_0", "MSELoss_1")
    ratio, by_ratio = _ours(1.0, True)
    settings = {"beta": 0.0, "eps": 0.0, "target": "LogitsKLLoss_0"}
    ema = loss_balancers.torch.EMANormalizedLossBalancer(names, **settings).eval()
    twin = loss_balancers.jax.EMANormalizedLossBalancer(names, **settings)
    twin.eval()
    by_ema = jitted(twin)
    for row in rng.lognormal(0, 3, (200, 2)).astype(np.float32).tolist():
        losses: Values = dict(zip(names, row, strict=True))
        cotangent = float(np.float32(rng.lognormal()))
        expected = _in_torch(ratio, losses, "f32", cotangent)
        assert expected == _in_torch(ema, losses, "f32", cotangent)
        assert expected == _in_jax(by_ratio, losses, "f32", cotangent) == _in_jax(by_ema, losses, "f32", cotangent)


def test_a_student_loss_that_is_skipped_has_no_gradient() -> None:
    """Spec L1: zeros in JAX; in PyTorch, which tells the two apart, none, as if it had not been passed."""
    kd, alone = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    of_torch = loss_balancers.torch.LogitsAndIntermediatesLossBalancer(skip_original_loss=True)

    def aggregate() -> torch.Tensor:
        return of_torch({"student_loss": kd * alone, "LogitsKL_0": kd * 2, "MSE_1": kd.square()})

    assert torch.autograd.grad(aggregate(), [kd, alone], allow_unused=True)[1] is None
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(aggregate(), [kd, alone])
    aggregate().backward()
    assert alone.grad is None
    with_gradient = alone.grad = torch.tensor(5.0)
    aggregate().backward()
    assert alone.grad is with_gradient
    assert alone.grad == 5.0

    def jax_aggregate(kd: jax.Array, alone: jax.Array) -> jax.Array:
        balancer = loss_balancers.jax.LogitsAndIntermediatesLossBalancer(skip_original_loss=True)
        return balancer({"student_loss": kd * alone, "LogitsKL_0": kd * 2, "MSE_1": kd**2})

    gradients = jax.grad(jax_aggregate, (0, 1))(jnp.float32(2.0), jnp.float32(3.0))
    assert kd.grad is not None
    assert float(gradients[0]) == float(kd.grad) / 2  # of two backwards
    assert_same_bits(gradients[1], jnp.float32(0.0))
