"""`ReLoBRaLoLossBalancer`: weights by how far each loss fell, with a random look back to where it began."""

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
from loss_balancers.jax.portable import div_of_kept, rmul_of_kept
from loss_balancers.jax.portable.random_bits import happens
from loss_balancers.jax.ratios import ratio, shares
from loss_balancers.jax.rounding import FLOAT, keep
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import Schedule
from loss_balancers.spec.adaptive import GREATEST
from loss_balancers.spec.random_bits import LOOK_BACK
from loss_balancers.spec.relobralo import ReLoBRaLoLossBalancerSettings


@partial(jax.jit, inline=True)
def balance_of(state: State) -> Array:
    """The balance of each loss: 1 until it has had a mean other than 0 (spec R1)."""
    return chosen(state["initial"] != 0, state["balance"], 1.0)


@partial(jax.jit, static_argnums=(3, 4), inline=True)
def relative(references: Array, losses: Array, present: Array | None, divisor: float, bound: float) -> Array:
    """K times the softmax of the ratios over the temperature, a row for each row of references (spec R2)."""
    ratios = ratio(jnp.broadcast_to(losses, references.shape), references, bound)
    if present is not None:
        ratios = chosen(present, ratios, 1.0)
    exponents = jnp.clip(div_of_kept(ratios, jnp.full_like(ratios, divisor)), FLOAT.type(-GREATEST), FLOAT.type(GREATEST))
    return shares(exponents, jnp.full_like(ratios, len(losses)))


@partial(jax.jit, static_argnums=3, inline=True)
def balanced(state: State, losses: Array, present: Array | None, settings: ReLoBRaLoLossBalancerSettings) -> Array:
    """The balance after these losses (spec R2)."""
    alpha, rest = settings.parts
    references = jnp.stack([state["initial"], state["previous"]])
    from_first, from_last = relative(references, losses, present, settings.divisor, settings.bound)
    stays = happens(settings.seed, state["steps"], LOOK_BACK, settings.chance)
    before = jnp.where(stays, balance_of(state), from_first)
    return keep(before * FLOAT.type(alpha)) + keep(from_last * FLOAT.type(rest))


@partial(jax.jit, static_argnums=3, inline=True)
def committed(state: State, mean: Array, present: Array, settings: ReLoBRaLoLossBalancerSettings) -> State:
    """The state after the commit of a mean of each loss that is present (spec R3)."""
    initial, previous = state["initial"], state["previous"]
    return {
        "initial": jnp.where(present & (initial == 0), mean, initial),
        "previous": jnp.where(present, mean, previous),
        "balance": jnp.where(present, balanced(state, mean, present, settings), state["balance"]),
    }


class ReLoBRaLoLossBalancer(StatefulLossBalancer):
    """Weighs each loss by its ratio to the last one and, now and then, to the first (relative loss balancing with random lookback).

    Made for physics-informed networks, whose losses differ in scale and in speed: a loss that falls slower than the others gets
    more. Call `step()` once per optimizer step.

    With ``bal(ref)_k = K * softmax(L / (temperature * ref))_k``, and ``rho`` drawn at each step, 1 with the probability ``beta``:
    ``lam_k = alpha * (rho * lam_k + (1 - rho) * bal(initial)_k) + (1 - alpha) * bal(previous)_k``; ``w_k = c_k * lam_k``;
    aggregate = ``sum(w_k * L_k)``. In the first step ``w_k = c_k``. The draw is a function of ``seed`` and of the counter
    ``steps``. So it is the same in both frameworks, on all ranks, however a batch is split, and after a restart.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number or a schedule of at least 0. Default: 1 for each, and for each that is not named.
        alpha: How much of what came before stays at a step, in [0, 1]. Default 0.95, as PhysicsNeMo has it.
        beta: How probable it is that a step keeps the balance so far and does not look back to the first losses (the expectation
            of the paper's rho), in [0, 1]. Default 0.99, as PhysicsNeMo has it.
        temperature: The paper's T, above 0. The greater it is, the more equal are the weights. Default 1.0.
        lagged: Use committed state alone. Then weights are constant within an optimizer step, however the batch is split. Default
            False: the balance includes the current losses, detached.
        seed: An int from 0 to ``2 ** 63 - 1``, the same on all ranks. Default 0.
        max_ratio: The greatest ratio in magnitude, at least 1. Default None: no bound.
        total_weight: What the weights sum to where each ``c_k`` is 1: "paper", the default, and "K" are the number of losses,
            "one" is 1.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. State and weights are float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2 K + 2,)``; ``initial``, ``previous`` and ``balance``, which
        is lam, float32 ``(K,)``; all start at 0. The balance of a loss counts as 1 until ``initial`` is not 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import ReLoBRaLoLossBalancer
        >>> balancer = ReLoBRaLoLossBalancer(("student_loss", "MSELoss_0"), alpha=0.5)
        >>> for student_loss in (4.0, 1.0):
        ...     losses = {"student_loss": jnp.float32(student_loss), "MSELoss_0": jnp.float32(2.0)}
        ...     print({name: round(weight.item(), 3) for name, weight in balancer.weights(losses).items()})
        ...     aggregate = balancer(losses)
        ...     balancer.step()
        {'MSELoss_0': 1.0, 'student_loss': 1.0}
        {'MSELoss_0': 1.179, 'student_loss': 0.821}

    Reference:
        Bischof, Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", Computer Methods in Applied Mechanics
        and Engineering 439, 2025, arXiv:2110.09813.

    Deviations:
        The start is that of PhysicsNeMo; the authors' code has had two others. State is committed once per optimizer step and
        not per forward. There is no epsilon: a first or last mean that is 0, subnormal or missing gives the ratio 1. A NaN or
        infinity never enters the state.
    """

    _scalars = True

    initial: BalancerState
    previous: BalancerState
    balance: BalancerState

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Schedule] | None = None,
        alpha: float = 0.95,
        beta: float = 0.99,
        temperature: float = 1.0,
        lagged: bool = False,
        seed: int = 0,
        max_ratio: float | None = None,
        total_weight: str = "paper",
        *,
        auto_step: int | None = None,
        axis_name: Any = None,
    ) -> None:
        settings = ReLoBRaLoLossBalancerSettings(names, weights, alpha, beta, temperature, lagged, seed, max_ratio, total_weight)
        super().__init__(settings, auto_step, axis_name)

    def _balanced(self, state: State, losses: Array, present: Array | None) -> Array:
        return balanced(state, losses, present, self._settings)

    def _committed(self, state: State, mean: Array, present: Array) -> State:
        return committed(state, mean, present, self._settings)

    def _factors(self, state: State, inputs: Inputs) -> Array:
        lagged = self._settings.lagged
        balance = balance_of(state) if lagged else self._balanced(state, inputs.losses, inputs.present)
        return rmul_of_kept(self._scheduled(state), balance)
