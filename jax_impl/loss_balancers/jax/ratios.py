"""Ratios of losses to what they were, and weights in shares of a total: what adaptive methods have in common."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.portable import div_of_kept, rmul_of_kept
from loss_balancers.jax.portable.sums import powers_and_total
from loss_balancers.jax.rounding import FLOAT


@partial(jax.jit, static_argnums=2, inline=True)
def ratio(x: Array, reference: Array, bound: float) -> Array:
    """The ratio of flushed numbers to their references, within the bound; 1 where the reference says nothing (spec B2)."""
    known = (jnp.abs(reference) > 0) & jnp.isfinite(reference) & jnp.isfinite(x)
    quotient = div_of_kept(chosen(known, x, 1.0), chosen(known, reference, 1.0))
    return jnp.clip(quotient, FLOAT.type(-bound), FLOAT.type(bound))


@partial(jax.jit, inline=True)
def shares(exponents: Array, weights: Array) -> Array:
    """The softmax of finite exponents, each share times its weight (spec B3)."""
    powers, total = powers_and_total(exponents)
    return div_of_kept(rmul_of_kept(weights, powers), jnp.broadcast_to(total, powers.shape))
