"""How state takes in the losses of calls: pure functions, state in, state out."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from loss_balancers import spec
from loss_balancers.jax.amounts import chosen, on_device, presence, validity, without_absent
from loss_balancers.jax.portable import div_of_kept, rmul_of_kept
from loss_balancers.jax.rounding import FLOAT, keep, narrow, widen

State = dict[str, Array]


class Inputs(NamedTuple):
    """The losses of a call in canonical order, in three forms: for the aggregate, for the weights, and for state.

    ``losses`` (for the weights) and ``sums`` (for state) are float32 vectors, empty if neither sees them. ``amounts`` are
    counts, or shares if ``shares`` is set; None if each is 1. ``present`` is None if no loss is absent. ``valid`` is None if the
    amounts were checked already.
    """

    names: tuple[str, ...]
    terms: list[Array]
    dtypes: tuple[Any, ...]
    losses: Array
    sums: Array
    amounts: Array | None = None
    present: Array | None = None
    valid: Array | None = None
    shares: bool = False

    def masked(self, vector: Array) -> Array:
        """``vector``, which has a number per loss, with 0 for an absent one."""
        return vector if self.present is None else chosen(self.present, vector, 0.0)


@partial(jax.jit, inline=True)
def as_observed(terms: list[Array]) -> Array:
    """The losses as state sees them: a float32 vector, detached, rounded and flushed (spec T2)."""
    if not terms:
        return jnp.zeros(0, FLOAT)
    detached = [lax.stop_gradient(x) for x in terms]
    return keep(jnp.stack([narrow(x, FLOAT) if x.dtype == jnp.float64 else widen(x, FLOAT) for x in detached]))


def with_amounts(inputs: Inputs, amounts: spec.Amounts) -> Inputs:
    """Inputs whose losses stand for these amounts (spec T3)."""
    names, terms, dtypes, losses, *_ = inputs
    vector = on_device(amounts)
    present = presence(amounts, vector)
    if present is not None:
        terms = without_absent(terms, present)
        losses = chosen(present, losses, 0.0) if len(losses) else losses
    sums = losses
    if len(losses) and amounts.shares:
        losses = div_of_kept(losses, vector if present is None else chosen(present, vector, 1.0))
    elif len(losses):
        sums = rmul_of_kept(losses, vector)
    return Inputs(names, terms, dtypes, losses, sums, vector, present, validity(amounts, vector), amounts.shares)


@partial(jax.jit, static_argnums=4, inline=True)
def observed(pending: Array, sums: Array, amounts: Array | None, valid: Array | None, after: bool = False) -> Array:
    """``pending`` with a call added; if a sum would not be finite, the call is counted as left out instead (spec T3).

    ``after`` says that it is an `update()`, whose sums are the second half, and which is no call more (spec Q4).
    """
    one, zero = jnp.ones(1, FLOAT), jnp.zeros(1, FLOAT)
    counted = jnp.ones_like(sums) if amounts is None else amounts[: len(sums)]
    if others := len(pending) // 2 - 1 - len(sums):
        around = (others, 0) if after else (0, others)
        sums, counted = (jnp.pad(half, around) for half in (sums, counted))
    taken = keep(pending + jnp.concatenate([sums, counted, zero if after else one, zero]))
    left_out = pending + jnp.concatenate([jnp.zeros(len(pending) - 1, FLOAT), one])
    informative = jnp.isfinite(taken).all()
    if valid is not None:
        informative = informative & valid
    return jnp.where(informative, taken, left_out)


@partial(jax.jit, inline=True)
def pending_mean(pending: Array) -> tuple[Array, Array]:
    """The mean of each observed loss, and whether it is valid: something was observed, and all is finite (spec T4)."""
    losses, calls = pending[:-2], pending[-2]
    n = len(losses) // 2
    sums, amounts = losses[:n], losses[n:]
    present = (amounts > 0) & (jnp.isfinite(losses).all() & (calls < spec.MOST_CALLS))
    return div_of_kept(chosen(present, sums, 0.0), chosen(present, amounts, 1.0)), present


@partial(jax.jit, inline=True)
def advanced(state: State, pending: Array) -> State:
    """The counters after a commit of ``pending``, the sums cleared (spec T4)."""
    steps, skipped, calls, left_out = state["steps"], state["skipped"], pending[-2], pending[-1]
    left_out = left_out + jnp.where(calls < spec.MOST_CALLS, jnp.zeros_like(calls), calls)
    more = jnp.minimum(left_out, FLOAT.type(spec.MOST_LEFT_OUT)).astype(jnp.int32)
    return {
        "steps": steps + (steps < spec.MOST_STEPS).astype(jnp.int32),
        "skipped": skipped + jnp.minimum(more, spec.MOST_STEPS - skipped),
        "pending": jnp.zeros_like(pending),
    }


@partial(jax.jit, inline=True)
def look_up(table: Array, step: Array) -> Array:
    """The row of a step; from the table's end on, the last row."""
    return lax.dynamic_index_in_dim(table, jnp.minimum(step, len(table) - 1), keepdims=False)


@partial(jax.jit, static_argnums=1, inline=True)
def expanded(factors: Array, count: int) -> Array:
    """A factor for each of ``count`` losses: the leading ones share the first."""
    shared = count - len(factors)
    return jnp.concatenate([jnp.broadcast_to(factors[:1], (shared,)), factors]) if shared else factors


@partial(jax.jit, static_argnums=1, inline=True)
def enough(pending: Array, auto_step: int) -> Array:
    """Whether ``pending`` holds as many calls as make an optimizer step."""
    return pending[-2:].sum() >= auto_step
