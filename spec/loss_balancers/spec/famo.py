"""`FAMOLossBalancer`: its settings, its state, and its exact aggregate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loss_balancers.spec.adaptive import GREATEST, checked_total_weight, in_bounds, named, total_factor
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_derivatives import ByDerivatives
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.functions import entered, finished, to_finished, to_losses
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Ops, Truth, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries

#: Adam's decays of the mean of gradients and of the mean of their squares, and what it adds to a root.
DECAYS, ADAM_EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class FAMOLossBalancerSettings(ByDerivatives):
    """The validated settings of `FAMOLossBalancer` (spec Q1 to Q5). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        lr: The learning rate of the logits, in [0, 1].
        weight_decay: The decay of the logits, in [0, 1].
        min_losses: Name to the least value that the loss can take, finite; 0 for a loss that it does not name. Held as tuple of
            (name, float), one for each loss.
        eps: What is added to a loss over its least value, at least 0.
        total_weight: What the derivatives sum to: "paper" and "one" are 1, "K" is the number of losses.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    lr: Any = 0.025
    weight_decay: Any = 1e-3
    min_losses: Any = None
    eps: Any = 1e-8
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "FAMOLossBalancer"
    takes_float64: ClassVar[bool] = False
    updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = checked_names(self.names)

        def least(where: str, given: Any) -> float:
            return in_bounds(where, given, -GREATEST)

        object.__setattr__(self, "names", names)
        object.__setattr__(self, "lr", in_bounds("lr", self.lr, 0.0, 1.0))
        object.__setattr__(self, "weight_decay", in_bounds("weight_decay", self.weight_decay, 0.0, 1.0))
        object.__setattr__(self, "min_losses", named("min_losses", self.min_losses, names, 0.0, least))
        object.__setattr__(self, "eps", in_bounds("eps", self.eps, 0.0))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters; what is pending, before the optimizer's step and after it; the logits, and what Adam keeps of them."""
        count = len(self.names)
        steps, skipped, _ = base_entries(0)
        return (
            *(steps, skipped, StateEntry("pending", "float32", (4 * count + 2,), count, 4)),
            StateEntry("logits", "float32", (count,), count),
            *(StateEntry(name, "float32", (2 * count,), count, 2) for name in ("moments", "corrections")),
        )

    @property
    def floors(self) -> tuple[float, ...]:
        """``min_losses`` as the arithmetic uses them, in float32."""
        return tuple(round_weight(least, "f32") for _, least in self.min_losses)

    @property
    def offset(self) -> float:
        """``eps`` as the arithmetic uses it, in float32."""
        return round_weight(self.eps, "f32")

    @property
    def rates(self) -> tuple[float, float, float]:
        """``lr``, ``weight_decay`` and Adam's epsilon as the arithmetic uses them, in float32."""
        return round_weight(self.lr, "f32"), round_weight(self.weight_decay, "f32"), round_weight(ADAM_EPS, "f32")

    @property
    def decays(self) -> tuple[float, ...]:
        """Adam's decays, in float32: for each loss that of the mean, then for each that of the squares."""
        return tuple(round_weight(decay, "f32") for decay in DECAYS for _ in self.names)

    @property
    def rests(self) -> tuple[float, ...]:
        """What each decay leaves of 1, in float32."""
        return tuple(round_weight(1.0 - decay, "f32") for decay in self.decays)

    @property
    def factor(self) -> float:
        """What the aggregate is multiplied by, in float32."""
        return round_weight(total_factor(self.total_weight, 1.0, len(self.names)), "f32")

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec Q2, Q3)."""
        ops, losses, present, floors = call.ops, entered(call), call.present, list(self.floors)
        if call.shares and call.amounts is not None:
            floors = [ops.rmul(floor, amount, "f32") for floor, amount in zip(floors, call.amounts, strict=True)]
        excesses = self._above(ops, losses, floors)
        levels = [ops.add(x, self.offset, "f32") if there else 1.0 for x, there in zip(excesses, present, strict=True)]
        shares = [z if there else 0.0 for z, there in zip(ops.softmax(state["logits"]), present, strict=True)]
        valid = [ops.choose(ops.above(x, 0.0), x, math.nan) for x in levels]
        formats = ["f32"] * len(levels)
        norm = ops.weighted_sum([ops.div(z, x, "f32") for z, x in zip(shares, valid, strict=True)], formats, [1.0] * len(levels))
        factors = [ops.div(z, norm, "f32") for z in shares]
        value = ops.weighted_sum([ops.log(x) for x in levels], formats, factors)
        to_logs = ops.weighted_sum_gradient(to_finished(call, cotangent, self.factor), formats, factors)
        gradients = [ops.log_gradient(g, x) for g, x in zip(to_logs, levels, strict=True)]
        return finished(call, value, self.factor), to_losses(call, gradients)

    def exact_committed(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> ReferenceState:
        """The state after a commit: of the means before the optimizer's step, then of those after it (spec Q4, Q5)."""
        logits, (lr, weight_decay, adam_eps), count = state["logits"], self.rates, len(self.names)
        excesses = self._above(ops, losses, [*self.floors, *self.floors])
        levels = [ops.add(x, self.offset, "f32") for x in excesses]
        complete = ops.equal(state["pending"][-1], 0.0)
        ordinary = [ops.every([ops.above(x, 0.0), ops.finite(y)]) for x, y in zip(excesses, levels, strict=True)]
        known: list[Truth] = [
            ops.every([complete, ordinary[k], ordinary[count + k]]) if present[k] and present[count + k] else False
            for k in range(count)
        ]
        logs = [ops.log(ops.choose(known[i % count], x, 1.0)) for i, x in enumerate(levels)]
        falls = [ops.add(x, ops.negate(y, "f32"), "f32") for x, y in zip(logs[:count], logs[count:], strict=True)]
        shares = ops.softmax([ops.choose(truth, w, -math.inf) for truth, w in zip(known, logits, strict=True)])
        mean = ops.negate(ops.weighted_sum(falls, ["f32"] * count, shares), "f32")
        gradients = [
            ops.flush(ops.add(ops.rmul(z, ops.add(d, mean, "f32"), "f32"), ops.rmul(w, weight_decay, "f32"), "f32"), "f32")
            for z, d, w in zip(shares, falls, logits, strict=True)
        ]
        moments = self._decayed(ops, state["moments"], [*gradients, *(ops.rmul(g, g, "f32") for g in gradients)])
        corrections = self._decayed(ops, state["corrections"], [1.0] * (2 * count))
        corrected = [ops.div(x, fix, "f32") for x, fix in zip(moments, corrections, strict=True)]
        new = []
        for w, m, v in zip(logits, corrected[:count], corrected[count:], strict=True):
            step = ops.rmul(ops.div(m, ops.add(ops.sqrt(v), adam_eps, "f32"), "f32"), lr, "f32")
            new.append(ops.flush(ops.add(w, ops.negate(step, "f32"), "f32"), "f32"))
        return {
            name: tuple(ops.choose(known[i % count], x, old) for i, (x, old) in enumerate(zip(values, state[name], strict=True)))
            for name, values in (("logits", new), ("moments", moments), ("corrections", corrections))
        }

    @staticmethod
    def _above(ops: Ops, losses: Sequence[Value], floors: Sequence[Value]) -> list[Value]:
        """How much each loss is above its least value."""
        pairs = zip(losses, floors, strict=True)
        return [ops.flush(ops.add(x, ops.negate(floor, "f32"), "f32"), "f32") for x, floor in pairs]

    def _decayed(self, ops: Ops, means: Sequence[Value], numbers: Sequence[Value]) -> list[Value]:
        """Decayed means that take in a number each."""
        columns = zip(means, numbers, self.decays, self.rests, strict=True)
        return [
            ops.flush(ops.add(ops.rmul(mean, decay, "f32"), ops.rmul(x, rest, "f32"), "f32"), "f32")
            for mean, x, decay, rest in columns
        ]

    @classmethod
    def examples(cls) -> dict[str, FAMOLossBalancerSettings]:
        """With the defaults, and with all other settings."""
        return {
            "famo": cls(EXAMPLE_NAMES),
            "famo-all": cls(EXAMPLE_NAMES, 0.5, 0.125, {"MSE_1": -1.0}, 1e-4, "K"),
        }
