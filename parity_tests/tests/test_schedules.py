"""Scheduled runs of 1,000 steps: every schedule in every form, in torch, in JAX and by the exact reference. Every bit of each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from runs import make

from loss_balancers import spec
from loss_balancers.spec import reference, schedules

STEPS = 1000

SCHEDULES = {
    "constant": schedules.constant(0.1),
    "linear": schedules.linear(0.0, 0.12, 900),
    "cosine": schedules.cosine(0.12, 0.01, 700),
    "piecewise-linear": schedules.piecewise_linear({10: 0.1, 300: 0.02, 301: 0.11, 1500: 0.0}),
    "warmup-constant": schedules.warmup_constant(0.09, 100),
    "warmup-linear": schedules.warmup_linear(0.12, 50, 0.03, 800),
    "warmup-cosine": schedules.warmup_cosine(0.12, 333, 1e-6, 999, start=0.01),
    "tabulate-python": schedules.tabulate(lambda step: 0.1 / (1 + step), 600),
    "tabulate-optax": schedules.tabulate(
        np.asarray(jax.vmap(optax.exponential_decay(0.1, 10, 0.9))(jnp.arange(400))).astype(np.float64).item, 400
    ),
}

KD = tuple(f"MSELoss_{i}" for i in range(len(SCHEDULES)))
NAMES = ("student_loss", *KD)
CURVES = tuple(SCHEDULES.values())

RUNS: dict[str, Any] = {
    **{f"shared-{name}": spec.ScheduledLossBalancerSettings(one, ("student_loss", "A", "B")) for name, one in SCHEDULES.items()},
    "sequence-of-all": spec.ScheduledLossBalancerSettings(CURVES, NAMES),
    "mapping-of-all": spec.ScheduledLossBalancerSettings(dict(zip(KD, CURVES, strict=True))),
    "mapping-with-student": spec.ScheduledLossBalancerSettings(
        {"A": schedules.cosine(0.0, 1.0, 800), "student_loss": schedules.cosine(1.0, 0.0, 800)}
    ),
    "weighted-sum-of-all": spec.WeightedSumLossBalancerSettings(dict(zip(KD, CURVES, strict=True)), CURVES[-1]),
    "logits-scale": spec.LogitsAndIntermediatesLossBalancerSettings(SCHEDULES["warmup-cosine"], False, "MSELoss_0"),
    "ema-of-all": spec.EMANormalizedLossBalancerSettings(NAMES, dict(zip(KD, CURVES, strict=True)), 0.9),
}  # fmt: skip


class Run(NamedTuple):
    """By step; losses in canonical order."""

    aggregate: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray
    state: np.ndarray  # all entries one after the other: the counters, exact in float32, too

    def differing(self, other: "Run") -> dict[str, int]:
        """How many numbers differ in a bit (all NaN count as one)."""
        return {
            name: int(np.sum((ours.view(np.int32) != theirs.view(np.int32)) & ~(np.isnan(ours) & np.isnan(theirs))))
            for name, ours, theirs in zip(self._fields, self, other, strict=True)
        }


def _names(settings: Any) -> tuple[str, ...]:
    return settings.names or (*KD[:4], "student_loss")


def _losses(settings: Any) -> np.ndarray:
    rng = np.random.default_rng(4)
    names = _names(settings)
    return (rng.lognormal(0, 1, (STEPS, len(names))) * 10.0 ** rng.uniform(-2, 2, len(names))).astype(np.float32)


def _stacked(rows: list[tuple[Any, Any, Any, Any]]) -> Run:
    return Run(*(np.array(column, np.float32) for column in zip(*rows, strict=True)))


def _flat(state: dict[str, Any]) -> list[float]:
    return [float(x) for value in state.values() for x in np.ravel(value)]


def _by_reference(settings: Any) -> Run:
    names, rows = _names(settings), []
    steps = ({name: ("f32", x) for name, x in zip(names, row, strict=True)} for row in _losses(settings).tolist())
    for answer in reference.run(settings, ((losses, 1.0) for losses in steps)):
        rows.append((answer.aggregate, [*answer.gradients.values()], [*answer.weights.values()], _flat(answer.state)))
    return _stacked(rows)


def _by_torch(settings: Any) -> Run:
    balancer, names, rows = make("torch", settings), _names(settings), []
    for row in torch.from_numpy(_losses(settings)):
        losses = {name: x.clone().requires_grad_() for name, x in zip(names, row.unbind(), strict=True)}
        weights = [x.item() for x in balancer.weights(losses).values()]
        aggregate = balancer(losses)
        gradients = torch.autograd.grad(aggregate, list(losses.values()))
        balancer.step()
        rows.append((aggregate.item(), [x.item() for x in gradients], weights, _flat(balancer.export_state()["state"])))
    return _stacked(rows)


def _by_jax(settings: Any) -> Run:
    """The whole run in one `jax.jit`: a scan that carries the state."""
    names = _names(settings)
    graph, state = nnx.split(make("jax", settings))

    def one(state: Any, row: Any) -> Any:
        balancer = nnx.merge(graph, state)
        losses = dict(zip(names, row, strict=True))
        weights = balancer.weights(losses)
        aggregate, gradients = nnx.value_and_grad(lambda losses, balancer: balancer(losses))(losses, balancer)
        balancer.step()
        entries = [getattr(balancer, entry.name)[...].astype(jnp.float32).ravel() for entry in settings.state]
        outcome = (
            aggregate,
            jnp.stack([gradients[name] for name in names]),
            jnp.stack([*weights.values()]),
            jnp.concatenate(entries),
        )
        return nnx.split(balancer)[1], outcome

    _, outcome = jax.jit(lambda state, rows: jax.lax.scan(one, state, rows))(state, _losses(settings))
    return Run(*(np.asarray(x) for x in outcome))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", RUNS)
def test_a_thousand_steps(name: str) -> None:
    settings = RUNS[name]
    expected = _by_reference(settings)
    none = dict.fromkeys(Run._fields, 0)
    assert _by_torch(settings).differing(expected) == none
    assert _by_jax(settings).differing(expected) == none
    assert len(expected.aggregate) == STEPS
    assert expected.state[-1, 0] == STEPS  # every step was counted
    assert len(np.unique(expected.weights, axis=0)) > 100 or name == "shared-constant"


def test_the_comparison_sees_a_bit_in_each_part() -> None:
    run = Run(*(np.full(shape, 0.5, np.float32) for shape in (3, (3, 2), (3, 2), (3, 4))))
    assert run.differing(run) == dict.fromkeys(Run._fields, 0)
    for part in Run._fields:
        for value in (np.nextafter(np.float32(0.5), np.float32(1)), np.float32(-0.5), np.float32(np.nan)):
            changed = getattr(run, part).copy()
            changed.flat[1] = value
            assert run._replace(**{part: changed}).differing(run) == {**dict.fromkeys(Run._fields, 0), part: 1}


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_step_is_an_optimizer_step_however_many_forwards_it_has(framework: str) -> None:
    """The schedule that rises per micro-batch ends early; this one does not."""
    balancer = make(framework, spec.ScheduledLossBalancerSettings(schedules.linear(0.0, 1.0, 4), ("student_loss", "A")))
    array = {"torch": torch.tensor, "jax": jnp.asarray}[framework]
    losses = {"student_loss": array(1.0), "A": array(0.0)}
    seen = []
    for _ in range(6):
        seen.append([float(balancer(losses)) for _ in range(3)])
        balancer.step()
    assert seen == [[x] * 3 for x in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)]
