"""`LogitsAndIntermediatesLossBalancer`: losses brought to the scale of one another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from loss_balancers import spec
from loss_balancers.jax.amounts import chosen, unstacked
from loss_balancers.jax.functional import common_dtype, sum_terms
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable import div, div_of_kept, rmul_of_kept
from loss_balancers.jax.rounding import compute_dtype
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import Schedule


@partial(jax.jit, static_argnums=1, inline=True)
def filled(like: Array, value: float) -> Array:
    """``value`` in the shape and dtype of ``like``: jitted, so that it is made on the device and not moved there."""
    return jnp.full_like(like, value)


@partial(jax.jit, inline=True)
def ratio_to(reference: Array, mean: Array) -> Array:
    """What brings the mean of the intermediate losses to the scale of the reference (spec L2)."""
    one, zero = filled(mean, 1.0), filled(mean, 0.0)
    quotient = div_of_kept(reference, mean)
    positive = jnp.where(jnp.isfinite(quotient), quotient, zero)
    return jnp.where(mean > 0, positive, jnp.where(mean == 0, zero, one))


@partial(jax.jit, inline=True)
def ratio_of(student: Array, distilled: Array) -> Array:
    """What brings the KD losses to the scale of the student loss (spec L3)."""
    one = filled(student, 1.0)
    quotient = div_of_kept(student, distilled)
    return jnp.where((distilled > 0) & (student > 0) & jnp.isfinite(quotient), quotient, one)


def number_of(places: Sequence[int], inputs: Inputs, like: Array) -> Array:
    """The divisor of a mean: how many of these losses are present, at least 1."""
    if inputs.present is None:
        return filled(like, float(len(places) or 1))
    return counted([unstacked(inputs.present)[i] for i in places], like)


@partial(jax.jit, inline=True)
def counted(present: list[Array], like: Array) -> Array:
    """How many of these are true, at least 1."""
    count = sum((there.astype(like.dtype) for there in present), jnp.zeros_like(like))
    return jnp.maximum(count, jnp.ones_like(like))


def means_of(inputs: Inputs, compute: Any) -> tuple[list[Array], tuple[Any, ...]]:
    """The losses as ratios see them, and their dtypes: a share is divided by the part of the step that it is (spec T5)."""
    if inputs.amounts is None or not inputs.shares:
        return inputs.terms, inputs.dtypes
    amounts = inputs.amounts if inputs.present is None else chosen(inputs.present, inputs.amounts, 1.0)
    detached = [lax.stop_gradient(x) for x in inputs.terms]
    terms = [sum_terms([x], (dtype,), (1.0,), compute) for x, dtype in zip(detached, inputs.dtypes, strict=True)]
    means = [div_of_kept(x, amount.astype(compute)) for x, amount in zip(terms, unstacked(amounts), strict=True)]
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
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

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
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import LogitsAndIntermediatesLossBalancer
        >>> losses = {"student_loss": jnp.float32(2.0), "LogitsKLLoss_0": jnp.float32(4.0), "MSELoss_1": jnp.float32(0.5)}
        >>> LogitsAndIntermediatesLossBalancer()(losses)
        Array(4., dtype=float32)

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
        axis_name: Any = None,
    ) -> None:
        settings = spec.LogitsAndIntermediatesLossBalancerSettings(kd_loss_scale, skip_original_loss, reference)
        super().__init__(settings, auto_step, axis_name)

    def _check_names(self, names: tuple[str, ...]) -> None:
        self._settings.roles(names)

    def _factors(self, state: State, inputs: Inputs) -> Array:
        _, _, ratio, phi, scale = self._parts(state, inputs)
        roles = self._settings.roles(inputs.names)
        share = div_of_kept(ratio, number_of(roles.intermediates, inputs, ratio))
        one, zero = filled(ratio, 1.0), filled(ratio, 0.0)
        kd = one if roles.student is None else rmul_of_kept(phi, scale)
        intermediate = rmul_of_kept(kd, share)
        factors = [intermediate if i in roles.intermediates else zero for i in range(len(inputs.names))]
        factors[roles.reference] = kd
        if roles.student is not None:
            factors[roles.student] = one
        return jnp.stack(factors)

    def _aggregate(self, state: State, inputs: Inputs) -> Array:
        distilled, compute, _, phi, scale = self._parts(state, inputs)
        student, dtype = self._settings.roles(inputs.names).student, common_dtype(inputs.dtypes)
        if student is None:
            return sum_terms([distilled], (compute,), (1.0,), dtype)
        balanced = sum_terms([distilled], (compute,), phi.reshape(1))
        outer = jnp.stack([scale, filled(scale, 1.0)])
        return sum_terms([balanced, inputs.terms[student]], (compute, inputs.dtypes[student]), outer, dtype)

    def _parts(self, state: State, inputs: Inputs) -> tuple[Array, Any, Array, Array, Array]:
        """D, its dtype, and the ratios and the scale in it (spec L2 to L4)."""
        names, terms, dtypes = inputs.names, inputs.terms, inputs.dtypes
        roles = self._settings.roles(names)
        compute = compute_dtype(*dtypes)

        def summed(places: Any, losses: Sequence[Array] = terms, dtypes: tuple[Any, ...] = dtypes) -> Array:
            return sum_terms([losses[i] for i in places], tuple(dtypes[i] for i in places), (1.0,) * len(places), compute)

        def mean_of(losses: Sequence[Array], dtypes: tuple[Any, ...]) -> Array:
            total = summed(roles.intermediates, losses, dtypes)
            return div(total, number_of(roles.intermediates, inputs, total))

        means, mean_dtypes = means_of(inputs, compute)  # what ratios see: the terms themselves, unless they are shares
        distilled = logits = summed([roles.reference])
        seen_logits = seen = summed([roles.reference], means, mean_dtypes) if inputs.shares else logits
        ratio = filled(logits, 0.0)
        if roles.intermediates:
            mean = mean_of(terms, dtypes)
            seen_mean = mean_of(means, mean_dtypes) if inputs.shares else mean
            ratio = ratio_to(lax.stop_gradient(seen_logits), lax.stop_gradient(seen_mean))
            if inputs.present is not None:
                ratio = chosen(unstacked(inputs.present)[roles.reference], ratio, 1.0)
            both = jnp.stack([filled(ratio, 1.0), ratio])
            distilled = sum_terms([terms[roles.reference], mean], (dtypes[roles.reference], compute), both, compute)
            seen = sum_terms([seen_logits, seen_mean], (compute, compute), both, compute) if inputs.shares else distilled
        phi = filled(ratio, 1.0)
        if roles.student is not None:
            phi = ratio_of(lax.stop_gradient(summed([roles.student], means, mean_dtypes)), lax.stop_gradient(seen))
        return distilled, compute, ratio, phi, self._scale(state, ratio)

    def _scale(self, state: State, like: Array) -> Array:
        constant = self._settings.constant_scale
        if constant is None:
            return self._scheduled(state).squeeze(0).astype(like.dtype)
        return filled(like, constant)
