"""`SoftAdaptLossBalancer`: weights by the slope of each loss over the last steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loss_balancers.spec import Schedule
from loss_balancers.spec.adaptive import GREATEST
from loss_balancers.spec.soft_adapt import SoftAdaptLossBalancerSettings
from loss_balancers.torch.host import number
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import div_of_kept, rmul_of_kept
from loss_balancers.torch.portable.sums import powers_and_total
from loss_balancers.torch.ratios import ratio, shares
from loss_balancers.torch.rounding import all_finite, beside, chosen, filled, finite, keep
from loss_balancers.torch.stateful import StatefulLossBalancer


def remembered(state: State, losses: Tensor, present: Tensor | None) -> State:
    """The last means with the ``losses`` that are present; as they were if one is not finite (spec F2)."""
    count = len(losses)
    history = torch.cat([state["history"][count:], losses])
    length = len(history) // count
    taken = all_finite(losses)
    more = (state["held"] + beside(1.0, losses)).clamp(max=length)
    if present is not None:
        taken = taken & present
    each = torch.cat([taken] * length) if taken.ndim else taken
    return {
        "history": torch.where(each, history, state["history"]),
        "held": torch.where(taken, more, state["held"]),
    }


def summed(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """The sum of rows by factors, in order (spec A4)."""
    total = None
    for row, factor in zip(rows.unbind(0), factors, strict=True):
        product = row if factor == 1.0 else keep(row * factor)
        total = product if total is None else total + product
    assert total is not None
    return keep(total)


def exponents(rows: Tensor, held: Tensor, variant: str, differences: Sequence[float], slowness: float, bound: float) -> Tensor:
    """What the shares are made of (spec F3)."""
    if variant == "ratio":
        found = ratio(rows[1], rows[0], bound)
    else:
        slope = summed(rows, differences)
        found = chosen((held == len(rows)) & finite(slope), slope, 0.0)
    if variant == "normalized":
        found = normalized(found)
    return rmul_of_kept(found, filled(slowness, found)).clamp(-GREATEST, GREATEST)


def normalized(slopes: Tensor) -> Tensor:
    """Slopes over the sum of their magnitudes; 0 if that is 0 or not finite (spec F3)."""
    total = summed(slopes.abs(), [1.0] * len(slopes)).expand_as(slopes)
    known = (total > 0) & finite(total)
    return chosen(known, div_of_kept(slopes, chosen(known, total, 1.0)), 0.0)


def weighed(exponents: Tensor, weights: Tensor, rows: Tensor, held: Tensor) -> Tensor:
    """Shares whose powers are multiplied by the magnitudes of means (spec F4)."""
    powers, _ = powers_and_total(exponents)
    sizes = div_of_kept(summed(rows, [1.0] * len(rows)).abs(), held.clamp(min=1.0))
    parts = rmul_of_kept(sizes, powers)
    total = summed(parts, [1.0] * len(parts)).expand_as(parts)
    known = (total > 0) & finite(total)
    return div_of_kept(rmul_of_kept(weights, chosen(known, parts, 1.0)), chosen(known, total, float(len(parts))))


class SoftAdaptLossBalancer(StatefulLossBalancer):
    """Weighs each loss by its slope over the last steps: what falls slowly, or rises, gets more.

    For losses that are of one kind and change from step to step. Slopes are differences of the losses themselves: where scales
    are far apart, choose ``variant="normalized"`` or ``"ratio"``. Call `step()` once per optimizer step.

    With the slope ``s_k``, a forward difference of the last ``order + 1`` means: ``w_k = c_k * softmax(beta * s)_k``; aggregate =
    ``sum(w_k * L_k)``. Normalized: ``s_k / sum(|s_j|)`` in place of ``s_k``. Loss-weighted: each power of the softmax is
    multiplied by the magnitude of the loss's mean over these steps. Ratio: ``w_k = c_k * K * softmax(beta * L_k / previous_k)``.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number or a schedule of at least 0. Default: 1 for each, and for each that is not named.
        variant: "slope", the default, "normalized", "loss_weighted" or "ratio".
        beta: Default None: 0.1, of ratios 1. Below 0, what falls fastest gets most.
        order: How many steps a slope spans, 1 to 5; of ratios 1. Default 1.
        lagged: Use committed state alone. Then weights are constant within an optimizer step, however the batch is split. Default
            False: the last means include the current losses, detached.
        max_ratio: The greatest ratio in magnitude, at least 1. Default None: no bound.
        total_weight: What the weights sum to where each ``c_k`` is 1: "paper", the default, is 1, of ratios K; "K" is the number
            of losses, "one" is 1.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        process_group: The ranks over which `step()` adds. None, the default: the default group, if there is one. False: no ranks.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. State and weights are float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2 K + 2,)``; ``history`` float32 ``((order + 1) K,)``, oldest
        first; ``held`` float32 ``(K,)``; all start at 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import SoftAdaptLossBalancer
        >>> balancer = SoftAdaptLossBalancer(("student_loss", "MSELoss_0"), beta=1.0, total_weight="K")
        >>> for student_loss in (4.0, 3.0):
        ...     losses = {"student_loss": torch.tensor(student_loss), "MSELoss_0": torch.tensor(2.0)}
        ...     aggregate = balancer(losses)
        ...     balancer.step()
        >>> losses |= {"student_loss": torch.tensor(2.0)}
        >>> {name: round(weight.item(), 3) for name, weight in balancer.weights(losses).items()}
        {'MSELoss_0': 1.462, 'student_loss': 0.538}

    Reference:
        Heydari, Thompson, Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with Multi-Part Loss
        Functions", 2019, arXiv:1912.12355. The ratio is what PhysicsNeMo and neuraloperator have under this name.

    Deviations:
        Until there are ``order + 1`` means of a loss, its slope is 0. The normalized variant divides by the sum of magnitudes; the
        authors' code divides by the sum with signs, which can be 0 or below. There is no eps in the denominator. A previous loss
        that is 0, subnormal or not finite gives the ratio 1; PhysicsNeMo's aggregate is then 0 and has no gradient.
    """

    _scalars = True

    history: Tensor
    held: Tensor

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Schedule] | None = None,
        variant: str = "slope",
        beta: float | None = None,
        order: int = 1,
        lagged: bool = False,
        max_ratio: float | None = None,
        total_weight: str = "paper",
        *,
        auto_step: int | None = None,
        process_group: Any = None,
    ) -> None:
        settings = SoftAdaptLossBalancerSettings(names, weights, variant, beta, order, lagged, max_ratio, total_weight)
        super().__init__(settings, auto_step, process_group)
        self._slowness, self._bound = settings.slowness.hex(), settings.bound.hex()
        self._differences = tuple(factor.hex() for factor in settings.differences)

    def _committed(self, state: State, mean: Tensor, present: Tensor) -> State:
        return remembered(state, mean, present)

    def _factors(self, state: State, inputs: Inputs) -> Tensor:
        settings = self._settings
        if not settings.lagged:
            state = state | remembered(state, inputs.losses, inputs.present)
        rows = state["history"].unflatten(0, (settings.order + 1, -1))
        held, weights = state["held"], self._scheduled(state)
        differences = [number(factor) for factor in self._differences]
        found = exponents(rows, held, settings.variant, differences, number(self._slowness), number(self._bound))
        return weighed(found, weights, rows, held) if settings.variant == "loss_weighted" else shares(found, weights)
