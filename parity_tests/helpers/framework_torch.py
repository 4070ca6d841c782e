"""PyTorch, as tests that are written once for both frameworks see it. `framework_jax.py` has the same names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import loss_balancers.torch
from loss_balancers.spec import FORMATS

#: The class of an array, the method that a subclass implements, and the dtype of a Python int.
ARRAY, CALL, INTEGER = "Tensor", "forward", "int64"
#: How the NaN of a gradient is compared, but for bfloat16: of a vector PyTorch converts it to another than of a scalar.
NAN = "bits"
DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in FORMATS.items()}
balancers = loss_balancers.torch
Module = torch.nn.Module
#: Where `ones`, `stack`, `sum` and the dtypes are, which both frameworks call the same.
xp = torch


def array(value: Any, dtype: str = "float32") -> Any:
    """An array."""
    return torch.tensor(value, dtype=getattr(torch, dtype))


def loss(value: Any, dtype: str = "float32") -> Any:
    """An array by which one can differentiate."""
    return array(value, dtype).requires_grad_()


def differentiate(function: Callable[[Any], Any], losses: Any, cotangent: Any = None) -> tuple[Any, Any]:
    """The value of a function of a dict or list of losses, and its gradients, a dict or list too."""
    value = function(losses)
    cotangent = torch.ones_like(value) if cotangent is None else cotangent
    by_name = losses if isinstance(losses, dict) else dict(enumerate(losses))
    gradients = torch.autograd.grad(value, list(by_name.values()), cotangent)
    return value, dict(zip(by_name, gradients, strict=True)) if isinstance(losses, dict) else list(gradients)


def cast(x: Any, dtype: Any) -> Any:
    """An array in another dtype."""
    return x.to(dtype)


def hold(module: Any, name: str, value: Any) -> None:
    """Makes an array part of a module's state."""
    module.register_buffer(name, array(value))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a balancer and its losses, compiled."""
    return torch.compile(function, backend="eager", fullgraph=True)


def has_graph(x: Any) -> bool:
    """Whether an array holds on to what it was computed from."""
    return x.requires_grad


def float64(on: bool = True) -> AbstractContextManager[Any]:
    """A context with float64. PyTorch always has it."""
    return nullcontext()
