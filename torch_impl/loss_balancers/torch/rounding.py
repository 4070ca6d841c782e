"""Widening to the compute format, `keep`, and rounding to a narrow format: the steps between two float operations."""

from __future__ import annotations

import torch
from torch import Tensor, hardshrink

TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}


def compute_dtype(*dtypes: torch.dtype | None) -> torch.dtype:
    """The compute format of a sum of such terms and such a result (spec A1)."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def keep(x: Tensor) -> Tensor:
    """+0 where ``|x|`` is at most the smallest normal, else ``x`` (spec A4): flush to zero, and rounding barrier.

    The barrier is the select: no compiler may contract a multiply and an add through it.
    """
    return hardshrink(x, TINY[x.dtype])


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the compute format, exactly; flushed if that is wider (spec A3).

    Not flushed where nothing is converted: a product with a weight of at most 1 flushes what this would (one kernel less).
    """
    if x.dtype == dtype:
        return x
    if x.dtype not in TINY:
        x = _representable(x.to(torch.float32), x.dtype)
    return x if dtype == torch.float32 else keep(x).to(dtype)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype`` (spec A7): through float32, flushed there, unless it stays in float64."""
    if x.dtype == dtype:
        return x
    if x.dtype == torch.float64:
        x = keep(x.to(torch.float32))
    return x if dtype == torch.float32 else _representable(x, dtype).to(dtype)


def _representable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 ``x`` rounded to a value of bfloat16 or float16, still as float32.

    Inductor computes bfloat16 and float16 in float32 and elides the conversions in between, so that a fused kernel would
    read, hand on and differentiate values that the narrow format does not hold. Eager conversions round, and need no help.
    """
    if not torch.compiler.is_compiling():
        return x
    bits = x.view(torch.int32)
    if dtype == torch.bfloat16:
        rounded = _drop_bits(bits, 16)
    else:
        rounded = _drop_bits(bits, 13)
        rounded = torch.where(x.abs() < 2.0**-14, torch.round(x * 2.0**24) * 2.0**-24, rounded)  # subnormal float16
        rounded = torch.where(x.abs() >= 65520.0, x * float("inf"), rounded)
    return torch.where(x == x, rounded, x)  # NaN stays  # noqa: PLR0124


def _drop_bits(bits: Tensor, count: int) -> Tensor:
    """Rounds float32 bits to nearest even, ``count`` bits shorter; a carry into the exponent is what it should be."""
    half = (1 << (count - 1)) - 1
    return ((bits + half + ((bits >> count) & 1)) & -(1 << count)).view(torch.float32)
