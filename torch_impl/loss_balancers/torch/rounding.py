"""Widening to the compute format, `keep`, and rounding to a narrow format: the steps between two float operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, hardshrink
from torch._guards import TracingContext
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from loss_balancers.torch.host import traced_as_constant
from loss_balancers.torch.transforms import transformable, transformed

#: The format of state.
FLOAT = torch.float32

#: A vector as numbers and how often each stands in it.
Runs = tuple[tuple[float, int], ...]

TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}


def compute_dtype(*dtypes: torch.dtype | None) -> torch.dtype:
    """The compute format of a sum of such terms and such a result (spec A1)."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def keep(x: Tensor) -> Tensor:
    """+0 where ``|x|`` is at most the smallest normal, else ``x`` (spec A4): flush to zero, and rounding barrier.

    The barrier is the select: no compiler may contract a multiply and an add through it.
    """
    return hardshrink(x, _tiny_in_graph(x.dtype) if is_dynamo_compiling() else TINY[x.dtype])


@traced_as_constant
def _tiny_in_graph(dtype: torch.dtype) -> float:
    """``TINY[dtype]``, which Dynamo makes a symbol under ``dynamic=True``; within an autograd function it then fails."""
    return TINY[dtype]


def finite(x: Tensor) -> Tensor:
    """Where ``x`` is finite, in two operations; `isfinite` takes four, eager and compiled."""
    return x.abs() < beside(torch.inf, x)


def all_finite(x: Tensor) -> Tensor:
    """Whether all of ``x`` is finite: in eager mode two operations.

    There PyTorch's infinity norm of a vector with a NaN is NaN, wherever it stands. Of compilers that is not known, and
    XLA's maximum loses a NaN on the CPU.
    """
    return finite(x).all() if compiling() else torch.linalg.vector_norm(x, torch.inf) < beside(torch.inf, x)


def chosen(condition: Tensor, x: Tensor, other: float) -> Tensor:
    """``x`` where the condition holds, else the number ``other``."""
    # Of a number `torch.where` makes a tensor of another dtype, and converts it: that takes longer than to select.
    if is_dynamo_compiling() or not can_keep_tensors(x.device):
        return torch.where(condition, x, other)
    return torch.where(condition, x, _kept(other, x.device, x.dtype))


def beside(value: float, x: Tensor) -> Tensor | float:
    """A number as the other operand of an operation on ``x``, which must not change the dtype.

    Of a number PyTorch makes a tensor at each call, which takes longer than the operation.
    """
    return value if is_dynamo_compiling() or not can_keep_tensors(x.device) else _kept(value, x.device, x.dtype)


def filled(value: float, like: Tensor) -> Tensor:
    """A number that stands beside ``like`` in an operation: an array of its shape, or a scalar."""
    return torch.full_like(like, value) if is_dynamo_compiling() else kept(value, like.device, like.dtype)


def kept(value: float | Runs, device: torch.device, dtype: torch.dtype = FLOAT) -> Tensor:
    """A constant on a device, made once: a scalar, or a vector of runs."""
    return _kept(value, device, dtype) if can_keep_tensors(device) else _made(value, device, dtype)


def vector_of(runs: Runs, device: torch.device) -> Tensor:
    """A constant vector of float32 on a device: in eager mode made once."""
    return _made(runs, device, FLOAT) if is_dynamo_compiling() else kept(runs, device)


def _made(value: float | Runs, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Fills and not `torch.tensor`, which copies to the device and waits for the copy.
    if not isinstance(value, tuple):
        return torch.full((), value, dtype=dtype, device=device)
    return torch.cat([torch.full((count,), number, dtype=dtype, device=device) for number, count in value])


@lru_cache(maxsize=1024)
def _kept(value: float | Runs, device: torch.device, dtype: torch.dtype) -> Tensor:
    # An inference tensor could not be used in training later. And a torch function mode must not replace these tensors.
    with torch.inference_mode(False), torch._C.DisableTorchFunction():
        return _made(value, device, dtype)


def can_keep_tensors(device: torch.device) -> bool:
    """Whether a tensor that is made now can be used later: something that is active now could claim it.

    A transform of `torch.func` wraps it, a dispatch mode such as FakeTensorMode replaces it, a CUDA graph owns its memory.
    """
    return not (
        transformed()
        or torch._C._len_torch_dispatch_stack()
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def readable(x: Tensor) -> bool:
    """Whether the host can read the values of ``x`` at once: it is a plain tensor on the CPU, and nothing traces this call."""
    return not is_dynamo_compiling() and x.is_cpu and type(x) is Tensor and can_read(x.device)


def can_read(device: torch.device) -> bool:
    """Whether nothing that is active now would miss what the host reads: a trace, a mode, what `can_keep_tensors` asks."""
    nothing_traces = torch._C._get_tracing_state() is None and not torch._C._len_torch_function_stack()
    return nothing_traces and can_keep_tensors(device)


def on_host(x: Tensor) -> int | None:
    """The integer that a scalar is, if the host can read it at once; else None."""
    return x.tolist() if x.ndim == 0 and readable(x) else None  # type: ignore[reportReturnType]


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the compute format, exactly; flushed if that is wider (spec A3).

    Not flushed where nothing is converted: a product with a weight of at most 1 flushes what this would (one kernel less).
    """
    if x.dtype == dtype:
        return x
    if x.dtype not in TINY:
        x = _representable(x, x.dtype).to(torch.float32)
    return x if dtype == torch.float32 else keep(x).to(dtype)


def stacked(terms: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`widen` of each, as one tensor: of terms of one dtype in one conversion, which a compiler would fuse anyway."""
    if terms[0].dtype != dtype and not compiling() and one_dtype([x.dtype for x in terms]) and can_stack(terms):
        return widen(torch.stack(terms), dtype)  # type: ignore[reportArgumentType]
    return torch.stack([widen(x, dtype) for x in terms])


def one_dtype(dtypes: Sequence[torch.dtype]) -> bool:
    """Whether all are one."""
    if is_dynamo_compiling():  # that of PyTorch 2.8 cannot count
        return all(dtype == dtypes[0] for dtype in dtypes)
    return dtypes.count(dtypes[0]) == len(dtypes)


def can_stack(terms: Sequence[Tensor]) -> bool:
    """Whether terms of one dtype can be stacked: autocast refuses float16 where it is set to bfloat16, and the reverse."""
    device = terms[0].device.type
    # Of a device that autocast does not know, "meta" for one, PyTorch does not say whether it is enabled, but raises.
    return terms[0].dtype in TINY or not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))


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
