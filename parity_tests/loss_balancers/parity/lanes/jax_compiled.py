"""`jax.jit` with the proof that JAX traced what ran, and that Python ran none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from loss_balancers.parity.lanes.absent import NotCompiledError, not_compiled


def compiled(fn: Callable[..., Any], jit: Callable[..., Any] = jax.jit, **options: Any) -> Callable[..., Any]:
    """The function compiled by XLA.

    Args:
        fn: The function; some argument must hold an array.
        jit: `jax.jit` or `nnx.jit`.
        options: What it takes besides the function.

    Raises, when called:
        NotCompiledError: Python would run the function.
    """

    def body(*args: Any) -> Any:
        arrays = [x for x in jax.tree.leaves(args) if isinstance(x, (jax.Array, np.ndarray, np.generic))]
        # What jit compiles it calls with tracers alone, whatever is around it; without jit come the arrays themselves.
        if not arrays or not all(isinstance(x, Tracer) for x in arrays):
            raise not_compiled("Python runs the function", switches())
        return fn(*args)

    return jit(body, **options)


def why_not_compiled() -> str | None:
    """Why `jax.jit` does not compile in this process, found by trying; None if it does."""
    try:
        compiled(lambda x: x * 2 + 1)(jnp.zeros(2))
    except NotCompiledError as error:
        return str(error)
    return None


def switches() -> list[str]:
    """The switches that are on and keep `jax.jit` from compiling. The environment's ``JAX_DISABLE_JIT`` is the first of them."""
    return ["jax_disable_jit=True"] if jax.config.jax_disable_jit else []  # type: ignore[attr-defined]
