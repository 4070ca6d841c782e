"""Factors that follow from committed state alone, kept for as long as that state has the same values.

Between two commits such factors are the same at every forward, and to make them again takes more kernels than the sum. They are
kept by the *values* of the state, byte for byte, and not by its tensors or their versions: so nothing can go stale, whoever writes
a buffer by whatever way. PyTorch counts no write by a collective (`dist.broadcast(buffer)`), by ``.data``, by NumPy, by another
process, or by the replay of a CUDA graph.

Compared is what a balancer says that its factors are made of. Where they follow from the averages of epochs, a step within an
epoch makes none.

Only the host can compare values, and only those on the CPU without waiting. Elsewhere factors are made at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import string_at
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loss_balancers.torch.functional import KnownFactors
from loss_balancers.torch.rounding import can_read

_CPU = torch.device("cpu")


class Known(NamedTuple):
    """Factors, the values that they were made of, and the table that they were looked up in."""

    values: list[bytes]
    table: Tensor | None
    table_version: int
    factors: KnownFactors


class LastFactors:
    """The factors of one balancer that were asked for last. Threads may replace them: each reads them once.

    It is of the balancer that it was made for: copied and pickled as new, without them.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: Known | None = None

    def get(self, state: Sequence[Tensor], table: Tensor | None, make: Callable[[], Tensor]) -> KnownFactors | None:
        """The factors of this ``state``, by ``make`` if they are not the last; None if they cannot be kept now."""
        values = values_of(state)
        if values is None or (table is not None and not (type(table) is Tensor and table.is_cpu)):
            return None
        version = 0 if table is None else table._version
        last = self._last
        if last is None or last.values != values or last.table is not table or last.table_version != version:
            with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
                last = Known(values, table, version, KnownFactors(make()))
            self._last = last
        return last.factors

    def __reduce__(self) -> Any:
        return LastFactors, ()


def values_of(tensors: Sequence[Tensor]) -> list[bytes] | None:
    """The bytes of tensors on the CPU; None if one is elsewhere, or something that is active now could claim a tensor."""
    if not can_read(_CPU):
        return None
    if not all(type(x) is Tensor and x.is_cpu and x.is_contiguous() and not x.is_neg() for x in tensors):
        return None
    return [string_at(x.data_ptr(), x.nbytes) for x in tensors]
