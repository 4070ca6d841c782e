"""How much of the data each loss of a call stands for, as arrays: `count=` and `share=` (spec T3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loss_balancers import spec
from loss_balancers.torch.functional import layout_of
from loss_balancers.torch.rounding import FLOAT, finite, keep

#: Of the dtypes that are no floats, those that hold numbers: not bool, complex, quantized or bare bits.
_INTEGERS = [getattr(torch, name) for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")]

#: Well above the flush to zero: a larger number on the host means that the loss is present, without a mask.
_SURELY_PRESENT = 1e-30


def on_device(amounts: spec.Amounts, device: torch.device) -> Tensor:
    """The amounts in float32, rounded and flushed."""
    where, first = "share" if amounts.shares else "count", amounts.values[0]
    if isinstance(first, float) and first > _SURELY_PRESENT and all(x is first for x in amounts.values):
        return _filled(first, device, len(amounts.values))  # one number for all, as mostly
    values = [x if isinstance(x, float) else _as_amount(where, x, device) for x in amounts.values]
    return keep(torch.cat([_filled(x, device, 1) for x in values]))


def _filled(amount: float | Tensor, device: torch.device, size: int) -> Tensor:
    # A fill and not `torch.tensor`, which copies to the device and waits for the copy.
    return amount if isinstance(amount, Tensor) else torch.full((size,), amount, dtype=FLOAT, device=device)


def _as_amount(where: str, amount: Any, device: torch.device) -> Tensor:
    if not isinstance(amount, Tensor) or not (amount.dtype.is_floating_point or amount.dtype in _INTEGERS):
        raise spec.errors.amount_type(where, amount)
    if layout := layout_of(amount):
        raise spec.errors.amount_layout(where, layout)
    if amount.device.type != "cpu" and amount.device != device:
        raise spec.errors.amount_device(where, str(amount.device), str(device))
    return amount.detach().reshape(1).to(device, FLOAT, non_blocking=True)


def presence(amounts: spec.Amounts, vector: Tensor) -> Tensor | None:
    """Whether each loss is present, by amounts on the device; None if numbers on the host say that all are."""
    return None if all(isinstance(x, float) and x > _SURELY_PRESENT for x in amounts.values) else vector > 0


def validity(amounts: spec.Amounts, vector: Tensor) -> Tensor | None:
    """Whether all amounts are at least 0 and finite; None if they came from the host, where they were checked."""
    return None if all(isinstance(x, float) for x in amounts.values) else ((vector >= 0) & finite(vector)).all()


def without_absent(terms: Sequence[Tensor], present: Tensor) -> list[Tensor]:
    """The losses, with +0 for an absent one, which no gradient reaches."""
    return [torch.where(there, x, 0.0) for there, x in zip(present.unbind(0), terms, strict=True)]
