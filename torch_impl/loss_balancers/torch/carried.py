"""How a module carries a balancer's state to other devices and into checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from loss_balancers import spec
from loss_balancers.torch.observing import State, look_up
from loss_balancers.torch.rounding import FLOAT

#: What to do about state that is stacked.
_WITHIN_VMAP = "If `torch.func.stack_module_state` stacked the state of several balancers, use it within `torch.func.vmap`."

#: Every balancer with state, by `id`: a buffer of one may stand elsewhere in a model too, under another name.
_balancers: WeakValueDictionary[int, CarriesState] = WeakValueDictionary()


class CarriesState(nn.Module):
    """State in buffers, float32 and int32 whatever is done to the model. All are persistent but the table of weights."""

    _settings: Any
    _process_group: Any
    steps: Tensor
    pending: Tensor
    #: The weights of every step, if there are schedules. They follow from the settings, and are not saved.
    _table: Tensor | None

    def _register(self, entries: tuple[spec.StateEntry, ...]) -> None:
        """Registers the state, all zero, and the table, where a module's buffers belong: on the default device."""
        self._dtypes = {entry.name: getattr(torch, entry.dtype) for entry in entries}
        self._observes = any(entry.name == "pending" and entry.named for entry in entries)
        for entry in entries:
            self.register_buffer(entry.name, torch.zeros(entry.shape, dtype=self._dtypes[entry.name]))
        table = self._settings.table
        self.register_buffer("_table", None if table is None else torch.tensor(table), persistent=False)
        self._make_lasting()
        _balancers[id(self)] = self

    def _make_lasting(self) -> None:
        """Replaces buffers that were made in inference mode: training could not write them later."""
        for name, x in self._buffers.items():
            if x is not None and x.is_inference():
                with torch.inference_mode(False):
                    self._buffers[name] = x.clone()

    def _is_shared(self, name: str) -> bool:
        """Whether this buffer is the same on all ranks: committed state, unless each rank has its own."""
        return name not in ("pending", "_table") and self._process_group is not False

    def _values(self) -> dict[str, Tensor]:
        """The state by name.

        Raises:
            RuntimeError: Something has converted the state, and its bits are lost.
        """
        self._checked_pending()
        state = {name: getattr(self, name) for name in self._dtypes}
        for name, dtype in self._dtypes.items():
            if state[name].dtype is not dtype:
                raise spec.errors.state_converted(name, dtype, state[name].dtype)
        return state

    def _checked_pending(self) -> Tensor:
        """``pending``, with the table brought to where it is."""
        pending = self.pending
        if pending.dtype is not FLOAT:
            raise spec.errors.state_converted("pending", FLOAT, pending.dtype)
        if pending.ndim != 1:
            raise spec.errors.state_shape("pending", self._shape_of_pending(), pending.shape, _WITHIN_VMAP)
        self._bring_table()
        return pending

    def _shape_of_pending(self) -> tuple[int, ...]:
        return next(entry.shape for entry in self._settings.state if entry.name == "pending")

    def _scheduled(self, state: State) -> Tensor:
        """What the schedules give at the step of ``state``."""
        assert self._table is not None
        return look_up(self._table, state["steps"])

    def _bring_table(self) -> None:
        """Makes the table anew on the device of the state: FSDP2 moves single buffers, and accelerate only those that are saved."""
        if self._table is not None and self._table.device != self.pending.device:
            self._make_table()

    def _make_table(self) -> None:
        self._table = torch.tensor(self._settings.table, device=self.pending.device)
        if not is_dynamo_compiling():
            self._make_lasting()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_lasting()
        _balancers[id(self)] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of everything but the process group, which cannot be copied."""
        memo[id(self._process_group)] = self._process_group
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        copied._make_lasting()
        _balancers[id(copied)] = copied
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if recurse:
            for module in self.children():
                module._apply(fn)

        self._bring_table()
        on_meta = self._table is not None and self._table.is_meta
        super()._apply(as_integers(fn, Tensor.zero_), recurse=False)
        if on_meta and not self.pending.is_meta:
            self._make_table()  # on "meta" it had no values to move
        self._make_lasting()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, dtype in self._dtypes.items():  # ``assign=True`` accepts any dtype
            setattr(self, name, getattr(self, name).to(dtype))
        self._make_lasting()
        self._checked_pending()  # and an assigned state may be on another device


def as_integers(fn: Callable[[Tensor], Tensor], begin: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """What `half()`, `to()` and the like do to a module's tensors, without what they do to floats: a tensor keeps its dtype.

    Args:
        fn: What is done to each tensor.
        begin: Gives a tensor the values that state begins with: `to_empty` leaves what memory holds.
    """

    def moved(x: Tensor) -> Tensor:
        y = fn(x.view(torch.int32))
        if y.dtype != torch.int32:  # `type()` converts integers too
            return x.to(y.device)
        if x.is_meta and not y.is_meta:
            begin(y.view(x.dtype))
        return y.view(x.dtype)

    return moved


def owner_of(x: Tensor) -> tuple[CarriesState, str] | None:
    """The balancer that has a buffer in the memory of ``x``, and what it calls the buffer; None if no balancer has one.

    DDP asks for each buffer of a model at each forward, so what is asked of every balancer's buffers is little.
    """
    start = _address(x)
    end = start + x.nbytes if start else 0
    for balancer in list(_balancers.values()):
        for name, buffer in balancer._buffers.items():
            if x is buffer:
                return balancer, name
            if start and buffer is not None:  # a view, or what `to()` made of the buffer where there was nothing to do
                first = _address(buffer)
                if first < end and start < first + buffer.nbytes and buffer.device == x.device:
                    return balancer, name
    return None


def _address(x: Tensor) -> int:
    """Where ``x`` begins; 0 if it has no memory of its own."""
    try:
        return x.data_ptr()
    except RuntimeError:  # a sparse tensor, say
        return 0


def on_meta() -> RuntimeError:
    """The error for writing state on the device "meta", which would silently lose it."""
    what = "Call `to_empty(device=...)` on the model first, or pass `assign=True` to `load_state_dict`."
    return spec.errors.state_without_values('on the device "meta"', what)
