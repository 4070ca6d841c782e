"""The ways in which JAX computes `exp`, `log`, `sqrt` and `softmax`: for their tests, and for the kit that runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from loss_balancers.jax import portable
from loss_balancers.parity.jax_versions import enable_x64

Elementary = Callable[[Any], Any]


def _scanned(f: Elementary) -> Elementary:
    """``f`` of rows, one after the other; the last is filled up with ones."""

    def run(x: np.ndarray) -> np.ndarray:
        rows = -(-len(x) // 1000)
        padded = np.concatenate([x, np.ones((rows * 1000 - len(x), *x.shape[1:]), x.dtype)]).reshape(rows, 1000, *x.shape[1:])
        results = jax.jit(lambda x: jax.lax.scan(lambda carry, row: (carry, f(row)), None, x)[1])(padded)
        return np.asarray(results).reshape(rows * 1000, *results.shape[2:])[: len(x)]

    return run


def _with_x64(f: Elementary) -> Elementary:
    def run(x: np.ndarray) -> np.ndarray:
        with enable_x64(True):
            return np.asarray(jax.jit(f)(x))

    return run


#: From a function to how it is run on a vector, or `softmax` on rows.
LANES: dict[str, Callable[[Elementary], Elementary]] = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: jax.jit(jax.vmap(f)),
    "scan": _scanned,
    "x64": _with_x64,
}


def function(name: str) -> Elementary:
    """The function of that name."""
    return getattr(portable, name)
