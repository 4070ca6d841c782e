"""`LogitsAndIntermediatesLossBalancer`: losses brought to the scale of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from loss_balancers import spec
from loss_balancers.spec import Schedule
from loss_balancers.spec.logits_and_intermediates import Roles, roles_of
from loss_balancers.torch.functional import common_dtype, sum_by, sum_terms
from loss_balancers.torch.host import host_constant, number
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import div, div_of_kept, rmul_of_kept
from loss_balancers.torch.recomputation import saved_for_backward
from loss_balancers.torch.rounding import chosen, compute_dtype, filled, finite, keep
from loss_balancers.torch.stateful import StatefulLossBalancer

# It takes two settings and not the dataclass, of which Dynamo of PyTorch 2.11 and before makes no constant.
constant_roles = host_constant(roles_of.__wrapped__)


def ratio_to(reference: Tensor, mean: Tensor) -> Tensor:
    """What brings the mean of the intermediate losses to the scale of the reference (spec L2)."""
    quotient = div_of_kept(reference, mean)
    positive = chosen(finite(quotient), quotient, 0.0)
    return torch.where(mean > 0, positive, chosen(mean != 0, filled(1.0, mean), 0.0))


def ratio_of(student: Tensor, distilled: Tensor) -> Tensor:
    """What brings the KD losses to the scale of the student loss (spec L3)."""
    quotient = div_of_kept(student, distilled)
    return chosen((distilled > 0) & (student > 0) & finite(quotient), quotient, 1.0)


def number_of(places: Sequence[int], inputs: Inputs, like: Tensor) -> Tensor:
    """The divisor of a mean: how many of these losses are present, at least 1."""
    if inputs.present is None:
        return filled(float(len(places) or 1), like)
    count = sum((inputs.present[i].to(like.dtype) for i in places), torch.zeros_like(like))
    return count.clamp(min=1.0)


def means_of(inputs: Inputs, compute: torch.dtype) -> tuple[list[Tensor], tuple[torch.dtype, ...]]:
    """The losses as ratios see them, and their dtypes: a share is divided by the part of the step that it is (spec T5)."""
    if inputs.amounts is None or not inputs.shares:
        return inputs.terms, inputs.dtypes
    amounts = inputs.amounts if inputs.present is None else torch.where(inputs.present, inputs.amounts, 1.0)
    detached = [x.detach() for x in inputs.terms]
    terms = [sum_terms([x], (dtype,), (1.0,), compute) for x, dtype in zip(detached, inputs.dtypes, strict=True)]
    means = [div_of_kept(x, amount) for x, amount in zip(terms, amounts.to(compute).unbind(0), strict=True)]
    return means, (compute,) * len(means)


class LogitsAndIntermediatesLossBalancer(StatefulLossBalancer):
    """Scales the intermediate losses to the logits loss, and both to the student loss, at every call.

    For losses whose scales are not known, without state: ModelOpt's balancer for Megatron. With G the logits loss, I the mean
    of the intermediate losses, S the student loss, and ratios detached: ``D = G + I * (G / I)``, aggregate =
    ``S + D * (S / D) * kd_loss_scale``. Its value is ``S * (1 + kd_loss_scale)`` whatever the KD losses are: log `breakdown`.

    Args:
        kd_loss_scale: What the KD losses are multiplied by: a number or a schedule of at least 0. Default 1, as in ModelOpt.
        skip_original_loss: Leave the student loss out: the aggregate is D. Default False, as in ModelOpt.
        reference: The name of the logits loss. Default: the one KD loss whose name holds "Logits", as in ModelOpt.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        process_group: The ranks over which `step()` adds. None, the default: the default group, if there is one. False: no ranks.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Ratios have the compute format.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2,)``; all start at 0. They matter to a scheduled scale alone.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: The scale is out of bounds at some step. At a call: no logits loss or several, no student loss where it
            counts, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import LogitsAndIntermediatesLossBalancer
        >>> losses = {"student_loss": torch.tensor(2.0), "LogitsKLLoss_0": torch.tensor(4.0), "MSELoss_1": torch.tensor(0.5)}
        >>> LogitsAndIntermediatesLossBalancer()(losses)
        tensor(4.)

    Reference:
        No paper. ``modelopt.torch.distill.plugins.megatron`` (NVIDIA ModelOpt), the class of the same name.

    Deviations:
        From ModelOpt: the aggregate is returned and the parts are in `breakdown`; the caller's dict is not changed; no logits loss,
        or two, is an error; where the intermediates are negative or NaN they keep their gradient; a ratio that is not finite is 0
        (intermediates) or 1 (student). Where both are defined, values and gradients are the same bits.
    """

    _scalars = True

    def __init__(
        self,
        kd_loss_scale: float | Schedule = 1.0,
        skip_original_loss: bool = False,
        reference: str | None = None,
        *,
        auto_step: int | None = None,
        process_group: Any = None,
    ) -> None:
        settings = spec.LogitsAndIntermediatesLossBalancerSettings(kd_loss_scale, skip_original_loss, reference)
        super().__init__(settings, auto_step, process_group)
        constant = settings.constant_scale  # worked out here: Dynamo would make a tensor of the settings' table
        self._constant_scale = None if constant is None else constant.hex()
        self._unscaled = constant == 1.0

    def _check_names(self, names: tuple[str, ...]) -> None:
        self._roles(names)

    def _factors(self, state: State, inputs: Inputs) -> Tensor:
        _, _, ratio, phi, scale = self._parts(state, inputs)
        roles = self._roles(inputs.names)
        share = div_of_kept(ratio, number_of(roles.intermediates, inputs, ratio))
        one, zero = torch.ones_like(ratio), torch.zeros_like(ratio)
        kd = one if roles.student is None else rmul_of_kept(phi, scale)
        intermediate = rmul_of_kept(kd, share)
        factors = [intermediate if i in roles.intermediates else zero for i in range(len(inputs.names))]
        factors[roles.reference] = kd
        if roles.student is not None:
            factors[roles.student] = one
        return torch.stack(factors)

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        distilled, compute, _, phi, scale = self._parts(state, inputs)
        student, dtype = self._roles(inputs.names).student, common_dtype(inputs.dtypes)
        if student is None:
            return sum_terms([distilled], (compute,), (1.0,), dtype)
        balanced = sum_by([distilled], (compute,), (phi,))
        outer = (None if self._unscaled and not is_dynamo_compiling() else scale, None)
        return sum_by([balanced, inputs.terms[student]], (compute, inputs.dtypes[student]), outer, dtype)

    def _parts(self, state: State, inputs: Inputs) -> tuple[Tensor, torch.dtype, Tensor, Tensor, Tensor]:
        """D, its dtype, and the ratios and the scale in it (spec L2 to L4)."""
        names, terms, dtypes = inputs.names, inputs.terms, inputs.dtypes
        roles = self._roles(names)
        compute = compute_dtype(*dtypes)

        def summed(places: Any, losses: Sequence[Tensor] = terms, dtypes: tuple[torch.dtype, ...] = dtypes) -> Tensor:
            return sum_terms([losses[i] for i in places], tuple(dtypes[i] for i in places), (1.0,) * len(places), compute)

        def mean_of(losses: Sequence[Tensor], dtypes: tuple[torch.dtype, ...]) -> Tensor:
            total = summed(roles.intermediates, losses, dtypes)
            return div(total, number_of(roles.intermediates, inputs, total))

        means, mean_dtypes = means_of(inputs, compute)  # what ratios see: the terms themselves, unless they are shares
        distilled = logits = summed([roles.reference])
        seen_logits = seen = summed([roles.reference], means, mean_dtypes) if inputs.shares else logits
        ratio = filled(0.0, logits)
        if roles.intermediates:
            mean = mean_of(terms, dtypes)
            seen_mean = mean_of(means, mean_dtypes) if inputs.shares else mean
            ratio = ratio_to(seen_logits.detach(), seen_mean.detach())
            if inputs.present is not None:
                ratio = torch.where(inputs.present[roles.reference], ratio, 1.0)
            distilled = sum_by([terms[roles.reference], mean], (dtypes[roles.reference], compute), (None, ratio), compute)
            seen = sum_by([seen_logits, seen_mean], (compute, compute), (None, ratio), compute) if inputs.shares else distilled
        phi = filled(1.0, ratio)
        if roles.student is not None:
            phi = ratio_of(summed([roles.student], means, mean_dtypes).detach(), seen.detach())
        return distilled, compute, ratio, phi, self._scale(state, ratio)

    def _roles(self, names: tuple[str, ...]) -> Roles:
        return constant_roles(names, self._settings.reference, self._settings.skip_original_loss)

    def _scale(self, state: State, like: Tensor) -> Tensor:
        constant = self._constant_scale
        if constant is None:
            return saved_for_backward(self._scheduled(state)).squeeze(0).to(like.dtype)
        scale = filled(number(constant), like)
        return scale if self._unscaled and not is_dynamo_compiling() else keep(scale)
