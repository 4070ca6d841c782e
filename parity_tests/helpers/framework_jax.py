"""JAX, as tests that are written once for both frameworks see it. `framework_torch.py` has the same names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from flax import nnx

import loss_balancers.jax
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import FORMATS

#: The class of an array, the method that a subclass implements, and the dtype of a Python int.
ARRAY, CALL, INTEGER = "ArrayImpl", "__call__", "int32"
#: How the NaN of a gradient is compared, but for bfloat16: as a class, since XLA chooses its bits.
NAN = "class"
DTYPES = {name: jnp.dtype(fmt.dtype) for name, fmt in FORMATS.items()}
balancers = loss_balancers.jax
Module = nnx.Module
#: Where `ones`, `stack`, `sum` and the dtypes are, which both frameworks call the same.
xp = jnp


def array(value: Any, dtype: str = "float32") -> Any:
    """An array."""
    return jnp.asarray(value, dtype)


def loss(value: Any, dtype: str = "float32") -> Any:
    """An array by which one can differentiate."""
    return array(value, dtype)


def differentiate(function: Callable[[Any], Any], losses: Any, cotangent: Any = None) -> tuple[Any, Any]:
    """The value of a function of a dict or list of losses, and its gradients, a dict or list too."""
    value, pullback = jax.vjp(function, losses)
    return value, pullback(jnp.ones_like(value) if cotangent is None else cotangent)[0]


def cast(x: Any, dtype: Any) -> Any:
    """An array in another dtype."""
    return x.astype(dtype)


def hold(module: Any, name: str, value: Any) -> None:
    """Makes an array part of a module's state."""
    setattr(module, name, nnx.Variable(array(value)))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a balancer and its losses, compiled."""
    return nnx.jit(function)


def has_graph(x: Any) -> bool:
    """Whether an array holds on to what it was computed from."""
    return isinstance(x, jax.core.Tracer)


def float64(on: bool = True) -> AbstractContextManager[Any]:
    """A context with float64, or without it, as JAX is by default."""
    return enable_x64(on)
