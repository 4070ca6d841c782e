"""`LogitsAndIntermediatesLossBalancer`: losses brought to the scale of one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loss_balancers import spec
from loss_balancers.spec import Schedule
from loss_balancers.torch.functional import common_dtype, sum_terms
from loss_balancers.torch.host import host_constant
from loss_balancers.torch.portable import div, div_of_kept, rmul_of_kept
from loss_balancers.torch.rounding import compute_dtype, finite, keep
from loss_balancers.torch.stateful import Inputs, StatefulLossBalancer, look_up

roles_of = host_constant(spec.LogitsAndIntermediatesLossBalancerSettings.roles)


def ratio_to(reference: Tensor, mean: Tensor) -> Tensor:
    """What brings the mean of the intermediate losses to the scale of the reference (spec L2)."""
    quotient = div_of_kept(reference, mean)
    positive = torch.where(finite(quotient), quotient, 0.0)
    return torch.where(mean > 0, positive, torch.where(mean == 0, 0.0, torch.ones_like(mean)))


def ratio_of(student: Tensor, distilled: Tensor) -> Tensor:
    """What brings the KD losses to the scale of the student loss (spec L3)."""
    quotient = div_of_kept(student, distilled)
    return torch.where((distilled > 0) & (student > 0) & finite(quotient), quotient, 1.0)


class LogitsAndIntermediatesLossBalancer(StatefulLossBalancer):
    """Scales the intermediate losses to the logits loss, and both to the student loss, at every call.

    For losses whose scales are not known, without state: ModelOpt's balancer for Megatron. With G the logits loss, I the mean
    of the intermediate losses, S the student loss, and ratios detached: ``D = G + I * (G / I)``, aggregate =
    ``S + D * (S / D) * kd_loss_scale``. Its value, ``S * (1 + kd_loss_scale)``, says nothing of the KD losses: log `breakdown`.

    Args:
        kd_loss_scale: What the KD losses are multiplied by: a number or a schedule of at least 0. Default 1, as in ModelOpt.
        skip_original_loss: Leave the student loss out: the aggregate is D. Default False, as in ModelOpt.
        reference: The name of the logits loss. Default: the one KD loss whose name holds "Logits", as in ModelOpt.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        process_group: The ranks whose observations are added at `step()`. None: the default group, if there is one; False: none.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Ratios have the compute format.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(2,)``; all start at 0. They matter to a scheduled scale alone.

    Raises:
        TypeError: An argument is of the wrong type. At a call: see `canonical`.
        ValueError: The scale is out of bounds at some step. At a call: no logits loss or several, no student loss where it
            counts, or losses that are no scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import LogitsAndIntermediatesLossBalancer
        >>> losses = {"student_loss": torch.tensor(2.0), "LogitsKLLoss_0": torch.tensor(4.0), "MSELoss_1": torch.tensor(0.5)}
        >>> LogitsAndIntermediatesLossBalancer()(losses)
        tensor(4.)

    Reference:
        No paper. ``modelopt.torch.distill.plugins.megatron`` (NVIDIA ModelOpt), the class of the same name.

    Deviations:
        From ModelOpt: the aggregate is returned and the parts are in `breakdown`; the caller's dict is not changed; no logits loss
        or two are an error; where the intermediates are negative or NaN they keep their gradient; a ratio that is not finite is 0
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
        self._constant_scale = settings.constant_scale  # here, since Dynamo would make a tensor of the settings' table

    def _check_names(self, names: tuple[str, ...]) -> None:
        roles_of(self._settings, names)

    def _factors(self, inputs: Inputs) -> Tensor:
        _, _, ratio, phi, scale = self._parts(inputs)
        roles = roles_of(self._settings, inputs.names)
        share = div_of_kept(ratio, torch.full_like(ratio, float(len(roles.intermediates) or 1)))
        one, zero = torch.ones_like(ratio), torch.zeros_like(ratio)
        kd = one if roles.student is None else rmul_of_kept(phi, scale)
        intermediate = rmul_of_kept(kd, share)
        factors = [intermediate if i in roles.intermediates else zero for i in range(len(inputs.names))]
        factors[roles.reference] = kd
        if roles.student is not None:
            factors[roles.student] = one
        return torch.stack(factors)

    def _aggregate(self, inputs: Inputs) -> Tensor:
        distilled, compute, _, phi, scale = self._parts(inputs)
        student, dtype = roles_of(self._settings, inputs.names).student, common_dtype(inputs.dtypes)
        if student is None:
            return sum_terms([distilled], (compute,), (1.0,), dtype)
        balanced = sum_terms([distilled], (compute,), phi.reshape(1))
        outer = torch.stack([scale, torch.ones_like(scale)])
        return sum_terms([balanced, inputs.terms[student]], (compute, inputs.dtypes[student]), outer, dtype)

    def _parts(self, inputs: Inputs) -> tuple[Tensor, torch.dtype, Tensor, Tensor, Tensor]:
        """D, its dtype, and the ratios and the scale in it (spec L2 to L4)."""
        names, terms, dtypes, _ = inputs
        roles = roles_of(self._settings, names)
        compute = compute_dtype(*dtypes)

        def summed(places: Any) -> Tensor:
            return sum_terms([terms[i] for i in places], tuple(dtypes[i] for i in places), (1.0,) * len(places), compute)

        distilled = logits = summed([roles.reference])
        ratio = torch.zeros_like(logits)
        if roles.intermediates:
            total = summed(roles.intermediates)
            mean = div(total, torch.full_like(total, float(len(roles.intermediates))))
            ratio = ratio_to(logits.detach(), mean.detach())
            both = torch.stack([torch.ones_like(ratio), ratio])
            distilled = sum_terms([terms[roles.reference], mean], (dtypes[roles.reference], compute), both, compute)
        phi = torch.ones_like(ratio)
        if roles.student is not None:
            phi = ratio_of(summed([roles.student]).detach(), distilled.detach())
        return distilled, compute, ratio, phi, self._scale(ratio)

    def _scale(self, like: Tensor) -> Tensor:
        constant = self._constant_scale
        if constant is None:
            return look_up(self._table, self.steps).squeeze(0).to(like.dtype)
        return keep(torch.full_like(like, constant))
