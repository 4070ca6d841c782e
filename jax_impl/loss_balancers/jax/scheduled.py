"""`ScheduledLossBalancer` and `WeightedSumLossBalancer`: weights that are given, for every step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jax import Array

from loss_balancers import spec
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import Schedule


class ScheduledLossBalancer(StatefulLossBalancer):
    """Balances KD losses and student loss with weights that follow schedules.

    It is `StaticLossBalancer` with schedules in place of numbers, to anneal distillation or to begin with it. At every step the
    student's weight is what the KD weights leave of 1. Call `step()` once per optimizer step.

    Args:
        kd_loss_weight: A schedule (or number) that the KD losses share; a sequence of them, one per KD loss in canonical order
            (ascending ``idx``); or a mapping from name to them, which may name ``student_loss`` if all then sum to 1. At every
            step each is in [0, 1] and their sum at most 1.
        names: The names of the losses, fixed. Default: those of a mapping, and ``student_loss``.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

    Shape:
        Losses of any one shape ``(*shape)``, scalars mostly; the aggregate has it too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Weights are float32 numbers.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2,)``; all start at 0. Besides, a
        `BalancerTable`: the weights, float32 ``(steps of the longest schedule, weights)``, 4 MB per weight for a million steps.

    Raises:
        TypeError: A weight is neither a number nor a schedule. At a call: see `canonical`.
        ValueError: A weight or the sum is out of bounds; the error names the first step. Weights and names do not match. At a
            call: other names than those fixed.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.spec import schedules
        >>> from loss_balancers.jax import ScheduledLossBalancer
        >>> balancer = ScheduledLossBalancer(schedules.linear(0.0, 1.0, steps=2), names=("student_loss", "MSELoss_0"))
        >>> losses = {"student_loss": jnp.float32(4.0), "MSELoss_0": jnp.float32(2.0)}
        >>> for _ in range(3):
        ...     print(balancer(losses).item())
        ...     balancer.step()
        4.0
        3.0
        2.0

    Reference:
        No paper. MaxText's distillation guide anneals its weights by ``constant``, ``linear`` and ``cosine``.

    Deviations:
        From MaxText: a schedule is exact at both ends, counts optimizer steps and not micro-batches, and is rounded once.
    """

    def __init__(
        self,
        kd_loss_weight: float | Schedule | Sequence[float | Schedule] | Mapping[str, float | Schedule],
        names: Sequence[str] | None = None,
        *,
        auto_step: int | None = None,
        axis_name: Any = None,
    ) -> None:
        super().__init__(spec.ScheduledLossBalancerSettings(kd_loss_weight, names), auto_step, axis_name)
        if self._settings.dropped:
            message = spec.errors.dropped_student_weight(self._settings.dropped, self.names)
            warnings.warn(message, UserWarning, stacklevel=5)  # past three frames of nnx.Module

    def _factors(self, state: State, inputs: Inputs) -> Array:
        del inputs
        return self._scheduled(state)


class WeightedSumLossBalancer(StatefulLossBalancer):
    """A weighted sum: named, non-negative weights with no bound on their sum, each a number or a schedule.

    For objectives such as MaxText's ``alpha * KL + (1 - alpha) * CE + beta * feature``, or Keras' lists of weights.

    Args:
        weights: Name of each KD loss to its weight, at least 0 at every step.
        student_weight: The weight of the student loss. None, the default: there is no student loss.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

    Shape:
        Losses of any one shape ``(*shape)``, scalars mostly; the aggregate has it too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Weights are float32 numbers.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2,)``; all start at 0. Besides, a
        `BalancerTable`, as `ScheduledLossBalancer` has it.

    Raises:
        TypeError: ``weights`` is not a mapping, or a weight is neither a number nor a schedule. At a call: see `canonical`.
        ValueError: A weight is negative or not finite; the error names the first step. ``weights`` names ``student_loss``. At a
            call: other names than those fixed.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import WeightedSumLossBalancer
        >>> balancer = WeightedSumLossBalancer({"KLDivLoss_0": 0.5, "MSELoss_1": 2.0}, student_weight=0.5)
        >>> balancer({"student_loss": jnp.float32(4.0), "KLDivLoss_0": jnp.float32(2.0), "MSELoss_1": jnp.float32(1.0)})
        Array(5., dtype=float32)

    Reference:
        No paper; MaxText's and Keras' distillation objectives are of this form.

    Deviations:
        None.
    """

    def __init__(
        self,
        weights: Mapping[str, float | Schedule],
        student_weight: float | Schedule | None = None,
        *,
        auto_step: int | None = None,
        axis_name: Any = None,
    ) -> None:
        super().__init__(spec.WeightedSumLossBalancerSettings(weights, student_weight), auto_step, axis_name)

    def _factors(self, state: State, inputs: Inputs) -> Array:
        del inputs
        return self._scheduled(state)
