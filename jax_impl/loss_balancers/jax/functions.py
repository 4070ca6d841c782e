"""What the balancers share whose aggregate is a function of the losses: how losses enter it, and how it leaves (spec G1, G2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from loss_balancers.jax.amounts import chosen, unstacked
from loss_balancers.jax.functional import common_dtype, sum_terms
from loss_balancers.jax.rounding import FLOAT


def entered(terms: Sequence[Array], dtypes: tuple[Any, ...], present: Array | None) -> Array:
    """The losses as a float32 vector that derivatives pass through; 1 for an absent one, so that what is made of it is finite.

    A float32 loss is flushed by what comes next, and its gradient is flushed by what came before: it needs no sum of its own.
    """
    pairs = zip(terms, dtypes, strict=True)
    vector = jnp.stack([x if dtype == FLOAT else sum_terms([x], (dtype,), (1.0,), FLOAT) for x, dtype in pairs])
    return vector if present is None else chosen(present, vector, 1.0)


def summed(vector: Array, weights: tuple[float, ...] | Array | None = None) -> Array:
    """The weighted sum of a float32 vector's elements, in order; without weights their sum."""
    count = len(vector)
    return sum_terms(unstacked(vector), (FLOAT,) * count, (1.0,) * count if weights is None else weights, FLOAT)


def finished(x: Array, factor: float, dtypes: tuple[Any, ...], present: Array | None) -> Array:
    """The aggregate: ``factor`` times a float32 number, in the result dtype; +0 if all losses are absent."""
    x = x if present is None else chosen(present.any(), x, 0.0)
    dtype = common_dtype(dtypes)
    return x if factor == 1.0 and dtype == FLOAT else sum_terms([x], (FLOAT,), (factor,), dtype)
