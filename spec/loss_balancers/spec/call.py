"""The losses of one call, as the exact reference takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

from loss_balancers.spec.amounts import Amounts
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.keys import canonical_order
from loss_balancers.spec.ops import Ops, Value

#: From name to format and value.
Losses = Mapping[str, tuple[str, float]]


class Call(NamedTuple):
    """The losses of a call in canonical order. An absent loss has the value +0, whatever was given for it (spec T3).

    ``amounts`` are float32 numbers: counts, or shares if ``shares`` is set; None if neither keyword was given. ``ops`` are the
    operations that the reference step is computed with.
    """

    names: tuple[str, ...]
    formats: tuple[str, ...]
    values: tuple[Value, ...]
    amounts: tuple[float, ...] | None = None
    shares: bool = False
    ops: Ops = EXACT

    @classmethod
    def of(cls, losses: Losses, amounts: Amounts | None = None) -> Self:
        """The call with these losses; ``amounts`` belong to their canonical order."""
        names = canonical_order(tuple(losses))
        formats, values = tuple(losses[name][0] for name in names), tuple(losses[name][1] for name in names)
        if amounts is None:
            return cls(names, formats, values)
        rounded = tuple(round_weight(amount, "f32") for amount in amounts.values)
        values = tuple(x if amount > 0 else 0.0 for x, amount in zip(values, rounded, strict=True))
        return cls(names, formats, values, rounded, amounts.shares)

    @property
    def present(self) -> tuple[bool, ...]:
        """Whether each loss is there: its amount is above zero."""
        return (True,) * len(self.names) if self.amounts is None else tuple(amount > 0 for amount in self.amounts)

    def in_format(self, fmt: str) -> list[Value]:
        """The losses in ``fmt``, flushed (spec T2)."""
        ops = self.ops
        widened = (ops.widen(x, own) for x, own in zip(self.values, self.formats, strict=True))
        return [ops.flush(ops.narrow(x, "f32"), "f32") for x in widened] if fmt == "f32" else list(widened)

    def means(self, fmt: str) -> list[Value]:
        """The losses as weights see them: as means. So a share is divided by the part of the step's mean that it is."""
        losses = self.in_format(fmt)
        if not self.shares or self.amounts is None:
            return losses
        return [self.ops.div(x, amount or 1.0, fmt) for x, amount in zip(losses, self.amounts, strict=True)]
