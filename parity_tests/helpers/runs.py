"""What the tests of whole runs share: every balancer that changes over time, losses for it, and one step of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES

#: The examples of every balancer that changes over time.
BALANCERS = {name: settings for name, settings in registry.examples().items() if settings.state}

FRAMEWORKS = ("torch", "jax")

Losses = Mapping[str, np.ndarray]
Outcome = dict[str, bytes]


def drawn(steps: int, names: tuple[str, ...] = NAMES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Losses of scales that are decades apart and drift; one in ten steps holds a NaN, an infinity, a zero or a large one."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-3, 3, len(names))
    rows = rng.lognormal(0, 0.5, (steps, len(names))) * scales * np.linspace(1, 0.1, steps)[:, None]
    hard = rng.random(steps) < 0.1
    rows[hard, rng.integers(0, len(names), hard.sum())] = rng.choice([np.nan, np.inf, 0.0, 1e6, 1e-40], hard.sum())
    return [{name: np.array(x, np.float32) for name, x in zip(names, row, strict=True)} for row in rows]


def make(framework: str, settings: Any) -> Any:
    """The balancer of these settings in a framework."""
    module = {"torch": loss_balancers.torch, "jax": loss_balancers.jax}[framework]
    return registry.make(settings, module)


def forward(balancer: Any, losses: Losses) -> Outcome:
    """A training forward and its gradients, as bytes; and an `update()` with half the losses, of a balancer that has it."""
    if isinstance(balancer, torch.nn.Module):
        x = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in losses.items()}
        aggregate = balancer(x)
        gradients = dict(zip(x, torch.autograd.grad(aggregate, list(x.values())), strict=True))
        _update(balancer, {name: value.detach() for name, value in x.items()})
    else:
        aggregate, gradients = _jitted_forward(balancer, {name: jnp.asarray(value) for name, value in losses.items()})
    return {"aggregate": as_bytes(aggregate)} | {name: as_bytes(gradients[name]) for name in losses}


def step(balancer: Any) -> None:
    """A commit."""
    if isinstance(balancer, nnx.Module):
        _jitted_step(balancer)
    else:
        balancer.step()


# Compiled once for balancers of equal settings.
@nnx.jit
def _jitted_forward(balancer: Any, losses: Any) -> Any:
    found = nnx.value_and_grad(lambda losses, balancer: balancer(losses))(losses, balancer)
    _update(balancer, losses)
    return found


def _update(balancer: Any, losses: Any) -> None:
    if balancer._settings.updates:
        balancer.update({name: x * 0.5 for name, x in losses.items()})


@nnx.jit
def _jitted_step(balancer: Any) -> None:
    balancer.step()


def state_of(balancer: Any) -> Outcome:
    """The state, as bytes."""
    return {name: as_bytes(value) for name, value in balancer.export_state()["state"].items()}


def as_bytes(x: Any) -> bytes:
    """The bytes of an array; of any NaN the same."""
    array = np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(array.dtype).tobytes()
