"""How a module carries a balancer's state to other devices and into checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class CarriesState(nn.Module):
    """State that is float32 and int32 whatever is done to the model.

    ``pending`` is no buffer of the model: DistributedDataParallel sends rank 0's buffers to all ranks, over what the others have
    observed. It moves, is saved and is loaded as one, and the balancer itself lists it among its buffers.
    """

    _settings: Any
    _process_group: Any
    #: The weights of every step. They follow from the settings, and are saved nowhere.
    _table: Tensor
    pending: Tensor

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The buffers and ``pending``: FSDP2 and distributed checkpoints ask each module, DistributedDataParallel the model."""
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        yield f"{prefix}.pending" if prefix else "pending", self.pending

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of everything but the process group, which cannot be copied."""
        memo[id(self._process_group)] = self._process_group
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def _bring_table(self) -> None:
        """Brings the table to where state is, made anew: on "meta" it had no values."""
        device = self.pending.device
        if self._table.device != device:
            self._table = torch.tensor(self._settings.table, device=device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if recurse:
            for module in self.children():
                module._apply(fn)

        def moved(x: Tensor) -> Tensor:
            y = fn(x.view(torch.int32))  # as integers, which `half()` and its like pass by
            if x.is_meta and not y.is_meta:
                y.zero_()  # `to_empty` leaves what memory holds; state begins at zero
            return y.view(x.dtype) if y.dtype == torch.int32 else x.to(y.device)  # `type()` converts integers too

        self.pending = moved(self.pending)
        self._bring_table()
        return super()._apply(moved, recurse=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "pending"] = self.pending if keep_vars else self.pending.detach()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pending = self.pending
        del self.pending
        self.register_buffer("pending", pending)  # for a moment, so that it is found, checked and loaded as one
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            self.pending = self._buffers.pop("pending")  # type: ignore[reportAttributeAccessIssue]
        for entry in self._settings.state:  # ``assign=True`` takes any dtype
            setattr(self, entry.name, getattr(self, entry.name).to(getattr(torch, entry.dtype)))
        self._bring_table()
