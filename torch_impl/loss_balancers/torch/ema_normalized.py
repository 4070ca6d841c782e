"""`EMANormalizedLossBalancer`: each loss over its running mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loss_balancers import spec
from loss_balancers.spec import Schedule
from loss_balancers.torch.host import number
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import div_of_kept, rmul_of_kept
from loss_balancers.torch.rounding import FLOAT, all_finite, chosen, compiling, filled, finite, keep
from loss_balancers.torch.stateful import StatefulLossBalancer


def averaged(state: State, losses: Tensor, present: Tensor | None, beta: float) -> State:
    """The running sums after the ``losses`` that are present; as they were if one would not be finite (spec M2)."""
    total = keep(state["total"] * beta) + losses.abs()
    # Compiled, not `+ 1.0`: LLVM moves a constant into the select of `keep`, and a GPU adds the product that is left without
    # rounding it. Where a loss is not finite, nothing is taken.
    fix = keep(state["fix"] * beta) + (finite(losses).to(FLOAT) if compiling() else 1.0)
    taken = all_finite(total)
    if present is not None:
        taken = taken & present
    return {"total": torch.where(taken, total, state["total"]), "fix": torch.where(taken, fix, state["fix"])}


def normalized(state: State, weights: Tensor, eps: float, reference: int | None, bound: float | None) -> Tensor:
    """Weights over running means, in units of one or of the mean of a loss (spec M3)."""
    mean = div_of_kept(state["total"], chosen(state["fix"] > 0, state["fix"], 1.0))
    unit = filled(1.0, mean) if reference is None else mean[reference].expand_as(mean)
    known = (mean > eps) & (unit > eps)
    ratio = chosen(known, div_of_kept(unit, mean + eps), 1.0)
    return rmul_of_kept(weights, ratio if bound is None else chosen(ratio <= bound, ratio, bound))


class EMANormalizedLossBalancer(StatefulLossBalancer):
    """Divides each loss by its running mean, so that losses of any scale count as their weights say.

    For KD's main problem: logit losses near 1 beside feature losses near 1e-4 or 1e4, which also change at different speeds. The
    first choice where the scales are not known beforehand. Call `step()` once per optimizer step.

    With ``m_k = total_k / fix_k``, where ``total_k = beta * total_k + |L_k|`` and ``fix_k = beta * fix_k + 1``:
    ``w_k = c_k * u / (m_k + eps)``, where ``u`` is 1 or the running mean of the loss ``target``; aggregate = ``sum(w_k * L_k)``.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number or a schedule of at least 0. Default: 1 for each, and for each that is not named.
        beta: The decay of the running means, in [0, 1]. 0: the current loss alone; 1: the mean of all. Default 0.99.
        eps: Added to a running mean; where a mean is not above it, ``w_k = c_k``. Default 1e-8.
        target: "one", the default, or the name of a loss, such as the student's: the others are brought to its scale.
        lagged: Use committed state alone. Then weights are constant within an optimizer step, however the batch is split, and
            ``w_k = c_k`` in the first. Default False: the running means include the current losses, detached.
        max_ratio: The greatest ratio ``u / (m_k + eps)``, above 0. Without it the weight grows to 1 / (2 eps) as a mean falls, and
            jumps back to ``c_k`` at ``eps``. Default None: no bound.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        process_group: The ranks over which `step()` adds. None, the default: the default group, if there is one. False: no ranks.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. State and weights are float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2 K + 2,)``; ``total``, ``fix`` float32 ``(K,)``; all start
        at 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import EMANormalizedLossBalancer
        >>> balancer = EMANormalizedLossBalancer(("student_loss", "MSELoss_0"), target="student_loss")
        >>> round(balancer({"student_loss": torch.tensor(2.0), "MSELoss_0": torch.tensor(0.001)}).item(), 4)
        4.0

    Reference:
        No paper of its own. The bias-corrected mean is that of Défossez et al., "High Fidelity Neural Audio Compression", TMLR
        2023, arXiv:2210.13438 (their balancer of gradients); with ``beta=0`` and a target it is ModelOpt's ratio of losses.

    Deviations:
        State is committed once per optimizer step and not per forward. A NaN or infinity never enters it.
    """

    _scalars = True

    total: Tensor
    fix: Tensor

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Schedule] | None = None,
        beta: float = 0.99,
        eps: float = 1e-8,
        target: str = "one",
        lagged: bool = False,
        max_ratio: float | None = None,
        *,
        auto_step: int | None = None,
        process_group: Any = None,
    ) -> None:
        settings = spec.EMANormalizedLossBalancerSettings(names, weights, beta, eps, target, lagged, max_ratio)
        super().__init__(settings, auto_step, process_group)
        self._decay, self._offset = settings.decay.hex(), settings.offset.hex()
        self._bound = None if settings.bound is None else settings.bound.hex()

    def _committed(self, state: State, mean: Tensor, present: Tensor) -> State:
        return averaged(state, mean, present, number(self._decay))

    def _factors(self, state: State, inputs: Inputs) -> Tensor:
        settings = self._settings
        if not settings.lagged:
            state = state | averaged(state, inputs.losses, inputs.present, number(self._decay))
        weights, bound = self._scheduled(state), None if self._bound is None else number(self._bound)
        return normalized(state, weights, number(self._offset), settings.reference, bound)
