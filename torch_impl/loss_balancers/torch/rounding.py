"""Widening to the compute format, `keep`, and rounding to a narrow format: the steps between two float operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, hardshrink
from torch._guards import TracingContext
from torch.autograd import Function

from loss_balancers.torch.transforms import transformable, transformed

#: The format of state.
FLOAT = torch.float32

TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}


def compute_dtype(*dtypes: torch.dtype | None) -> torch.dtype:
    """The compute format of a sum of such terms and such a result (spec A1)."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def keep(x: Tensor) -> Tensor:
    """+0 where ``|x|`` is at most the smallest normal, else ``x`` (spec A4): flush to zero, and rounding barrier.

    The barrier is the select: no compiler may contract a multiply and an add through it.
    """
    return hardshrink(x, TINY[x.dtype])


def finite(x: Tensor) -> Tensor:
    """Where ``x`` is finite, in two operations; `isfinite` takes four, eager and compiled."""
    return x.abs() < torch.inf


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the compute format, exactly; flushed if that is wider (spec A3).

    Not flushed where nothing is converted: a product with a weight of at most 1 flushes what this would (one kernel less).
    """
    if x.dtype == dtype:
        return x
    if x.dtype not in TINY:
        x = _representable(x, x.dtype).to(torch.float32)
    return x if dtype == torch.float32 else keep(x).to(dtype)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype`` (spec A7): through float32, flushed there, unless it stays in float64."""
    if x.dtype == dtype:
        return x
    if x.dtype == torch.float64:
        x = keep(x.to(torch.float32))
    return x if dtype == torch.float32 else _representable(x, dtype)


def _representable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` converted to bfloat16 or float16, also where Inductor would elide that.

    Inductor computes both in float32 and elides the conversions in between, so that a fused kernel would read, hand on and
    differentiate values that the narrow format does not hold. It cannot elide a conversion whose result is needed as bits.
    """
    x = x.to(dtype)
    return bitcast(bitcast(x, torch.int16) & -1, dtype) if compiling() else x


def bitcast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.view(dtype)`` for a dtype as wide as that of ``x``, within `vmap` too."""
    # Whether `vmap` maps over ``x`` is not asked: `grad` may stand between the two, and in a graph nobody knows.
    return _transformable_bitcast(x, dtype) if transformed() else x.view(dtype)


class _Bitcast(Function):
    """`bitcast` within `vmap`. PyTorch itself has no rule for that up to 2.11."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.view(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return bitcast(*args), in_dims[0]


@transformable
def _transformable_bitcast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _Bitcast.apply(x, dtype)


def compiling() -> bool:
    """Whether a compiler is tracing this code: Dynamo or AOTAutograd.

    Up to PyTorch 2.11 Dynamo leaves an `autograd.Function` within a transform of `torch.func` to AOTAutograd.
    """
    return torch.compiler.is_compiling() or TracingContext.try_get() is not None
