"""Factors that follow from committed state alone, kept for as long as that state has the same values.

Between two commits such factors are the same at every forward, and to make them again takes more kernels than the sum. They are
kept by the *values* of the state, byte for byte, and not by its tensors or their versions: so nothing can go stale, whoever writes
a buffer by whatever way. PyTorch counts no write by a collective (`dist.broadcast(buffer)`), by ``.data``, by NumPy, by another
process, or by the replay of a CUDA graph.

Compared is what was asked for when the factors were made. Where they follow from the averages of epochs, a step within an epoch
makes none.

Only the host can compare values, and only those on the CPU without waiting. Elsewhere factors are made at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ctypes import string_at
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loss_balancers.torch.functional import KnownFactors
from loss_balancers.torch.observing import State
from loss_balancers.torch.rounding import can_keep_tensors

_CPU = torch.device("cpu")


class Known(NamedTuple):
    """Factors, the values that they were made of, and the table that they were looked up in."""

    values: dict[str, bytes]
    table: Tensor | None
    table_version: int
    factors: KnownFactors

    def holds(self, state: State) -> bool:
        """Whether what they were made of is the same in this state."""
        return all(value_of(state[name]) == value for name, value in self.values.items())


class Seen(State):
    """A state that notes the value of each entry that is asked for by its name, before it hands it out."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.values_asked_for: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> Tensor:
        x = super().__getitem__(name)
        self.values_asked_for.setdefault(name, value_of(x))
        return x

    def _refuse(self, *_: Any) -> Any:
        raise NotImplementedError("Factors of committed state ask for its entries by name, `state[name]`, so that each is noted.")

    __iter__ = __or__ = __ror__ = copy = get = items = keys = values = _refuse


class LastFactors:
    """The factors of one balancer that were asked for last. Threads may replace them: each reads them once.

    It is of the balancer that it was made for: copied and pickled as new, without them.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: Known | None = None

    def get(self, state: State, table: Tensor | None, make: Callable[[Any], Tensor]) -> KnownFactors | None:
        """The factors of this ``state``, by ``make`` if they are not the last; None if they cannot be kept now."""
        if not can_be_read(state.values()) or (table is not None and not (type(table) is Tensor and table.is_cpu)):
            return None
        version = 0 if table is None else table._version
        last = self._last
        if last is None or last.table is not table or last.table_version != version or not last.holds(state):
            seen = Seen(state)
            with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
                factors = KnownFactors(make(seen))
            self._last = last = Known(seen.values_asked_for, table, version, factors)
        return last.factors

    def __reduce__(self) -> Any:
        return LastFactors, ()


def can_be_read(tensors: Iterable[Tensor]) -> bool:
    """Whether all are on the CPU, and nothing that is active now could claim a tensor."""
    if torch._C._get_tracing_state() is not None or not can_keep_tensors(_CPU):
        return False
    return all(type(x) is Tensor and x.is_cpu and x.is_contiguous() and not x.is_neg() for x in tensors)


def value_of(x: Tensor) -> bytes:
    """The bytes of a tensor that can be read."""
    return string_at(x.data_ptr(), x.nbytes)
