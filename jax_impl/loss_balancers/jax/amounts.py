"""How much of the data each loss of a call stands for, as arrays: `count=` and `share=` (spec T3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from loss_balancers import spec
from loss_balancers.jax.rounding import FLOAT, keep

#: Well above the flush to zero: a larger number on the host means that the loss is present, without a mask.
_SURELY_PRESENT = 1e-30


def on_device(amounts: spec.Amounts) -> Array:
    """The amounts in float32, rounded and flushed."""
    where = "share" if amounts.shares else "count"
    return _rounded([x if isinstance(x, float) else _as_amount(where, x) for x in amounts.values])


@partial(jax.jit, inline=True)
def _rounded(values: Sequence[Any]) -> Array:
    return keep(jnp.stack([lax.stop_gradient(jnp.asarray(x)).astype(FLOAT) for x in values]))


def _as_amount(where: str, amount: Any) -> Array:
    if not isinstance(amount, Array) or not any(jnp.issubdtype(amount.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise spec.errors.amount_type(where, amount)
    return amount


def presence(amounts: spec.Amounts, vector: Array) -> Array | None:
    """Whether each loss is present, by amounts on the device; None if numbers on the host say that all are."""
    return None if all(isinstance(x, float) and x > _SURELY_PRESENT for x in amounts.values) else _above_zero(vector)


@partial(jax.jit, inline=True)
def _above_zero(vector: Array) -> Array:
    return vector > 0


def validity(amounts: spec.Amounts, vector: Array) -> Array | None:
    """Whether all amounts are at least 0 and finite; None if they came from the host, where they were checked."""
    return None if all(isinstance(x, float) for x in amounts.values) else _all_valid(vector)


@partial(jax.jit, inline=True)
def _all_valid(vector: Array) -> Array:
    return ((vector >= 0) & jnp.isfinite(vector)).all()


def without_absent(terms: Sequence[Array], present: Array) -> list[Array]:
    """The losses, with +0 for an absent one, which no gradient reaches."""
    return [chosen(there, x, 0.0) for there, x in zip(unstacked(present), terms, strict=True)]


@partial(jax.jit, static_argnums=2, inline=True)
def chosen(where: Array, x: Array, otherwise: float) -> Array:
    """``x``, but ``otherwise`` where ``where`` is false."""
    return jnp.where(where, x, jnp.full_like(x, otherwise))


@partial(jax.jit, inline=True)
def unstacked(vector: Array) -> tuple[Array, ...]:
    """The elements of a vector."""
    return tuple(vector)
