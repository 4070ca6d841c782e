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

#: Well above what is flushed: a number on the host that is larger needs no mask.
_SURELY_PRESENT = 1e-30


def on_device(amounts: spec.Amounts) -> Array:
    """The amounts in float32, rounded and flushed."""
    where = "share" if amounts.shares else "count"
    return _rounded([x if isinstance(x, float) else _as_amount(where, x) for x in amounts.values])


@partial(jax.jit, inline=True)
def _rounded(values: Sequence[Any]) -> Array:
    return keep(jnp.stack([lax.stop_gradient(jnp.asarray(x)).astype(FLOAT) for x in values]))


def _as_amount(where: str, amount: Any) -> Array:
    if not isinstance(amount, Array) or amount.dtype == bool or jnp.iscomplexobj(amount):
        raise spec.errors.amount_type(where, amount)
    return amount


def presence(amounts: spec.Amounts, vector: Array) -> Array | None:
    """Whether each loss is there, by amounts on the device; None if all are, by numbers on the host."""
    return None if all(isinstance(x, float) and x > _SURELY_PRESENT for x in amounts.values) else _above_zero(vector)


@partial(jax.jit, inline=True)
def _above_zero(vector: Array) -> Array:
    return vector > 0


def validity(amounts: spec.Amounts, vector: Array) -> Array | None:
    """Whether all amounts are numbers that an amount can be; None if they came from the host, where they are checked."""
    return None if all(isinstance(x, float) for x in amounts.values) else _all_valid(vector)


@partial(jax.jit, inline=True)
def _all_valid(vector: Array) -> Array:
    return ((vector >= 0) & jnp.isfinite(vector)).all()


def without_absent(terms: Sequence[Array], present: Array) -> list[Array]:
    """The losses, +0 for one that is absent; no gradient reaches that."""
    return [chosen(there, x, 0.0) for there, x in zip(unstacked(present), terms, strict=True)]


@partial(jax.jit, static_argnums=2, inline=True)
def chosen(where: Array, x: Array, otherwise: float) -> Array:
    """``x``, but ``otherwise`` where ``where`` is false."""
    return jnp.where(where, x, jnp.full_like(x, otherwise))


@partial(jax.jit, inline=True)
def unstacked(vector: Array) -> tuple[Array, ...]:
    """The elements of a vector."""
    return tuple(vector)
