"""`DWALossBalancer`: weights by how fast each loss fell from one epoch to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.carried import BalancerState
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable import div_of_kept
from loss_balancers.jax.ratios import ratio, shares
from loss_balancers.jax.rounding import FLOAT, keep
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import Schedule, errors
from loss_balancers.spec.adaptive import GREATEST
from loss_balancers.spec.dwa import DWALossBalancerSettings
from loss_balancers.spec.formats import MOST_STEPS


@partial(jax.jit, inline=True)
def added(state: State, mean: Array, present: Array) -> State:
    """The sums of the epoch with a mean more; as they were if one would not be finite (spec D2)."""
    epoch_sum = keep(state["epoch_sum"] + mean)
    taken = present & jnp.isfinite(epoch_sum).all()
    return {
        "epoch_sum": jnp.where(taken, epoch_sum, state["epoch_sum"]),
        "epoch_count": jnp.where(taken, state["epoch_count"] + 1.0, state["epoch_count"]),
    }


@partial(jax.jit, inline=True)
def rolled(state: State) -> State:
    """The averages after the end of an epoch, its sums cleared (spec D2)."""
    epoch_sum, epoch_count, last, before = (state[name] for name in ("epoch_sum", "epoch_count", "last", "before"))
    seen = epoch_count > 0
    average = div_of_kept(epoch_sum, chosen(seen, epoch_count, 1.0))
    return {
        "epoch_sum": jnp.zeros_like(epoch_sum),
        "epoch_count": jnp.zeros_like(epoch_count),
        "last": jnp.where(seen, average, last),
        "before": jnp.where(seen, last, before),
    }


@partial(jax.jit, static_argnums=3, inline=True)
def taken(state: State, mean: Array, present: Array, epoch_steps: int | None) -> State:
    """The state with a mean more, after the end of an epoch if it is due (spec D2)."""
    new = added(state, mean, present)
    if epoch_steps is None:
        return new
    ends = (jnp.minimum(state["steps"], MOST_STEPS - 1) + 1) % epoch_steps == 0
    ends = ends & present.any()  # without an observation nothing but `steps` changes
    state = state | new
    return {name: jnp.where(ends, value, state[name]) for name, value in rolled(state).items()}


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def exponents(state: State, bound: float, divisor: float) -> Array:
    """What the shares are made of (spec D3)."""
    ratios = ratio(state["last"], state["before"], bound)
    return jnp.clip(div_of_kept(ratios, jnp.full_like(ratios, divisor)), FLOAT.type(-GREATEST), FLOAT.type(GREATEST))


class DWALossBalancer(StatefulLossBalancer):
    """Weighs each loss by how fast it fell from one epoch to the next: what falls slowly gets more (dynamic weight average).

    Its classic use is multi-task learning with epochs. Where a run has no epochs, set ``epoch_steps``. Call `step()` once per
    optimizer step, and `end_epoch()` at the end of each epoch unless ``epoch_steps`` is set.

    With ``r_k``, the average of the loss in the last epoch over that in the epoch before: ``w_k = c_k * K * softmax(r / T)_k``;
    aggregate = ``sum(w_k * L_k)``. In the first two epochs ``w_k = c_k``.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number or a schedule of at least 0. Default: 1 for each, and for each that is not named.
        temperature: ``T``, above 0. The greater it is, the more equal are the weights. Default 2.0.
        epoch_steps: How many optimizer steps make an epoch. Default None: `end_epoch()` ends it.
        max_ratio: The greatest ``r_k`` in magnitude, at least 1. Default None: no bound.
        total_weight: What the weights sum to where each ``c_k`` is 1: "paper", the default, and "K" are the number of losses,
            "one" is 1.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. State and weights are float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2 K + 2,)``; ``epoch_sum``, ``epoch_count``, ``last``,
        ``before`` float32 ``(K,)``; all start at 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import DWALossBalancer
        >>> balancer = DWALossBalancer(("student_loss", "MSELoss_0"), epoch_steps=1)
        >>> for student_loss in (4.0, 4.0, 1.0):
        ...     losses = {"student_loss": jnp.float32(student_loss), "MSELoss_0": jnp.float32(2.0)}
        ...     aggregate = balancer(losses)
        ...     balancer.step()
        >>> {name: round(weight.item(), 3) for name, weight in balancer.weights(losses).items()}
        {'MSELoss_0': 1.185, 'student_loss': 0.815}

    Reference:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704, equation 7.

    Deviations:
        An epoch's average is that of the means that `step()` commits, so it does not depend on how batches are split. An average
        before that is 0, subnormal or missing gives the ratio 1, where the paper's formula gives NaN. The maximum is taken off
        before the exponential, so that none overflows.
    """

    _scalars = True

    epoch_sum: BalancerState
    epoch_count: BalancerState
    last: BalancerState
    before: BalancerState

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Schedule] | None = None,
        temperature: float = 2.0,
        epoch_steps: int | None = None,
        max_ratio: float | None = None,
        total_weight: str = "paper",
        *,
        auto_step: int | None = None,
        axis_name: Any = None,
    ) -> None:
        settings = DWALossBalancerSettings(names, weights, temperature, epoch_steps, max_ratio, total_weight)
        super().__init__(settings, auto_step, axis_name)

    def end_epoch(self) -> None:
        """Ends an epoch: its averages become the last ones. Call it after the last `step()` of the epoch.

        Raises:
            RuntimeError: ``epoch_steps`` is set, so an epoch ends by itself.
        """
        self._write(self._epoch_ended(self._values()))

    def _epoch_ended(self, state: State) -> State:
        """What the end of an epoch changes of ``state``."""
        if self._settings.epoch_steps is not None:
            raise errors.epochs_end_by_themselves(self._settings.epoch_steps)
        return rolled(state)

    def _committed(self, state: State, mean: Array, present: Array) -> State:
        return taken(state, mean, present, self._settings.epoch_steps)

    def _factors(self, state: State, inputs: Inputs) -> Array:
        del inputs
        settings = self._settings
        return shares(exponents(state, settings.bound, settings.divisor), self._scheduled(state))
