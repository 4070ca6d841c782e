"""`RandomLossBalancer`: weights that are drawn anew at every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax import Array

from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable.random_bits import normals
from loss_balancers.jax.ratios import shares
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import Schedule
from loss_balancers.spec.random import RandomLossBalancerSettings
from loss_balancers.spec.random_bits import WEIGHTS


class RandomLossBalancer(StatefulLossBalancer):
    """Draws the weights anew at every optimizer step (random loss weighting, RLW).

    The baseline that a method which adapts weights must beat. Call `step()` once per optimizer step: until then the weights stay
    as they are, in eval mode too.

    With ``z_k`` standard normal: ``w_k = c_k * softmax(z)_k``; aggregate = ``sum(w_k * L_k)``. A draw is a function of ``seed``, of
    the counter ``steps`` and of the loss's place in ``names``. So it is the same in both frameworks, on all ranks, however a batch
    is split, and after a restart. Balancers of one seed draw the same numbers: give each its own.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number or a schedule of at least 0. Default: 1 for each, and for each that is not named.
        seed: An int from 0 to ``2 ** 63 - 1``, the same on all ranks. Default 0.
        total_weight: What the weights sum to where each ``c_k`` is 1: "paper", the default, and "one" are 1, "K" is the number of
            losses.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

    Shape:
        Losses of any one shape ``(*shape)``, scalars mostly; the aggregate has it too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Weights are float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2,)``; all start at 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import RandomLossBalancer
        >>> balancer = RandomLossBalancer(("student_loss", "MSELoss_0"), seed=1)
        >>> losses = {"student_loss": jnp.float32(2.0), "MSELoss_0": jnp.float32(4.0)}
        >>> for _ in range(2):
        ...     print({name: round(weight.item(), 3) for name, weight in balancer.weights(losses).items()})
        ...     balancer.step()
        {'MSELoss_0': 0.566, 'student_loss': 0.434}
        {'MSELoss_0': 0.104, 'student_loss': 0.896}

    Reference:
        Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR 2022,
        arXiv:2111.10603. The generator is Threefry-2x32: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2,
        3", SC 2011. It is made normal by Wichura's algorithm AS 241, Applied Statistics 37, 1988.

    Deviations:
        A draw is for an optimizer step and not for a forward. The paper's weights are of any distribution; here they are the
        normal ones of its authors' code.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Schedule] | None = None,
        seed: int = 0,
        total_weight: str = "paper",
        *,
        auto_step: int | None = None,
        axis_name: Any = None,
    ) -> None:
        settings = RandomLossBalancerSettings(names, weights, seed, total_weight)
        super().__init__(settings, auto_step, axis_name)

    def _factors(self, state: State, inputs: Inputs) -> Array:
        del inputs
        exponents = normals(self._settings.seed, state["steps"], WEIGHTS, len(self.names))
        return shares(exponents, self._scheduled(state))
