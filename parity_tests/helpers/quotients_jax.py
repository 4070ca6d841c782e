"""The ways in which JAX computes drawn quotients: for the tests of `div`, and for the kit that runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import loss_balancers.jax.portable.division as in_jax

Quotient = Callable[[Any, Any], Any]


def scanned(a: Any, b: Any) -> Any:
    """`div` of the rows of two matrices, one pair after the other."""
    return jax.lax.scan(lambda carry, row: (carry, in_jax.div(*row)), None, (a, b))[1]


def over_rows(f: Quotient) -> Quotient:
    """``f`` of two matrices instead of two vectors; the last row is filled up with ones."""

    def reshaped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rows = -(-len(a) // 1000)
        padded = (np.concatenate([x, np.ones(rows * 1000 - len(x), x.dtype)]).reshape(rows, 1000) for x in (a, b))
        return np.asarray(f(*padded)).ravel()[: len(a)]

    return reshaped


#: From vectors of dividends and divisors to their quotients.
LANES: dict[str, Quotient] = {
    "eager": in_jax.div,
    "jit": jax.jit(in_jax.div),
    "vmap": over_rows(jax.jit(jax.vmap(jax.vmap(in_jax.div)))),
    "vmap-eager": jax.vmap(in_jax.div),
    "scan": over_rows(jax.jit(scanned)),
    "embedded": jax.jit(lambda a, b: in_jax.div(a * 1, b) + 0),
    "jvp": jax.jit(lambda a, b: jax.jvp(in_jax.div, (a, b), (a, b * 0))[0]),
}
