"""What the tests of the JAX hosts share: the balancers, and a run that may stop and go on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hosts import NAMES

from loss_balancers.jax import EMANormalizedLossBalancer, ScheduledLossBalancer, StaticLossBalancer
from loss_balancers.spec import schedules

RAMP = schedules.linear(0.1, 0.4, 7)
#: Static, scheduled, and with weights that follow the losses.
KINDS = {
    "static": lambda **more: StaticLossBalancer([0.25, 0.25]),
    "scheduled": lambda **more: ScheduledLossBalancer(RAMP, NAMES, **more),
    "ema": lambda **more: EMANormalizedLossBalancer(NAMES, beta=0.5, **more),
}
STEPS, STOP, EVERY = 12, 7, 2


def rows(step: int) -> jax.Array:
    """A micro-batch."""
    return jnp.asarray(np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32))


def losses_of(y: jax.Array) -> dict[str, jax.Array]:
    """Three losses of decades apart."""
    return dict(zip(NAMES, [jnp.square(y - 1).mean(), 100 * jnp.square(y).mean(), 0.01 * jnp.abs(y).mean()], strict=True))


def as_bytes(tree: Any) -> list[bytes]:
    """All leaves, as bytes."""
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
