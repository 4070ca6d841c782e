"""`SoftAdaptLossBalancer`: its settings, its state, and its exact weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

from loss_balancers.spec import errors, tables
from loss_balancers.spec.adaptive import (
    GREATEST,
    bound_of,
    checked_max_ratio,
    checked_total_weight,
    clamped,
    in_bounds,
    named_weights,
    ratio,
    shares,
    total_factor,
    weight_table,
)
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.schedules import linear
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table

#: What the weights follow from: slopes, slopes over the sum of their magnitudes, slopes and the losses themselves, or ratios.
Variant = Literal["slope", "normalized", "loss_weighted", "ratio"]
#: By the number of steps that a slope spans: the forward differences, oldest loss first, by which it is made.
DIFFERENCES: dict[int, tuple[Fraction, ...]] = {
    1: (Fraction(-1), Fraction(1)),
    2: (Fraction(-3, 2), Fraction(2), Fraction(-1, 2)),
    3: (Fraction(-11, 6), Fraction(3), Fraction(-3, 2), Fraction(1, 3)),
    4: (Fraction(-25, 12), Fraction(4), Fraction(-3), Fraction(4, 3), Fraction(-1, 4)),
    5: (Fraction(-137, 60), Fraction(5), Fraction(-5), Fraction(10, 3), Fraction(-5, 4), Fraction(1, 5)),
}


@dataclass(frozen=True)
class SoftAdaptLossBalancerSettings(ByFactors):
    """The validated settings of `SoftAdaptLossBalancer` (spec F1 to F5). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to static weight, a number or a schedule, finite and not negative; 1 for a loss that it does not name. Held
            as tuple of (name, Schedule), one for each loss.
        variant: "slope", "normalized", "loss_weighted" or "ratio".
        beta: What slopes or ratios are multiplied by; None for 0.1, of ratios 1. Negative: what falls fastest gets most.
        order: How many steps a slope spans, 1 to 5; of ratios 1.
        lagged: Whether the weights use committed state alone.
        max_ratio: The greatest ratio, at least 1; None for no bound.
        total_weight: The total of the weights: "paper" is 1, of ratios the number of losses; "K" is that number, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    variant: Any = "slope"
    beta: Any = None
    order: Any = 1
    lagged: Any = False
    max_ratio: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "SoftAdaptLossBalancer"

    def __post_init__(self) -> None:
        names, order = checked_names(self.names), self.order
        if not isinstance(self.variant, str) or self.variant not in get_args(Variant):
            raise errors.variant_unknown(self.variant, get_args(Variant))
        most = 1 if self.variant == "ratio" else max(DIFFERENCES)
        if not isinstance(order, int) or isinstance(order, bool) or not 1 <= order <= most:
            raise errors.order_value(order, most, self.variant)
        if not isinstance(self.lagged, bool):
            raise errors.not_a_bool("lagged", self.lagged)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", named_weights(self.weights, names))
        object.__setattr__(self, "beta", None if self.beta is None else in_bounds("beta", self.beta, -GREATEST))
        object.__setattr__(self, "max_ratio", checked_max_ratio(self.max_ratio))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters; the last means of each loss, oldest first; and how many of them there are."""
        count, length = len(self.names), self.order + 1
        history = StateEntry("history", "float32", (length * count,), count, length)
        return (*base_entries(count), history, StateEntry("held", "float32", (count,), count))

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the last means; unless ``lagged``, these include the losses of the call."""
        return not self.lagged

    @cached_property
    def table(self) -> Table:
        """The static weights of every step times the total weight, float32: a column for each loss."""
        count = len(self.names)
        paper = count if self.variant == "ratio" else 1.0
        return weight_table(self.weights, paper * total_factor(self.total_weight, paper, count))

    @property
    def slowness(self) -> float:
        """``beta`` as the arithmetic uses it, in float32."""
        given = (1.0 if self.variant == "ratio" else 0.1) if self.beta is None else self.beta
        return round_weight(given, "f32")

    @property
    def differences(self) -> tuple[float, ...]:
        """The factors of the means in a slope, oldest first, in float32."""
        return tuple(round_weight(float(factor), "f32") for factor in DIFFERENCES[self.order])

    @property
    def bound(self) -> float:
        """``max_ratio`` as the arithmetic uses it, in float32."""
        return bound_of(self.max_ratio)

    def exact_committed(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> ReferenceState:
        """The state with a mean more of each loss that is present; as it was if one is not finite (spec F2)."""
        count, length = len(self.names), self.order + 1
        taken = ops.every([ops.finite(x) for x in losses])
        history = [*state["history"][count:], *losses]
        more = [ops.choose(ops.above(float(length), n), ops.add(n, 1.0, "f32"), n) for n in state["held"]]
        new = {"history": (history, tuple(present) * length), "held": (more, present)}
        return {
            name: tuple(
                ops.choose(taken, x, old) if there else old for x, old, there in zip(values, state[name], theres, strict=True)
            )
            for name, (values, theres) in new.items()
        }

    def exact_exponents(self, state: ReferenceState, ops: Ops) -> list[Value]:
        """What the shares are made of (spec F3)."""
        rows = self._of_each(state)
        if self.variant == "ratio":
            found = [ratio(ops, now, before, self.bound) for before, now in rows]
        else:
            found = []
            for row, held in zip(rows, state["held"], strict=True):
                slope = ops.weighted_sum(row, ("f32",) * len(row), self.differences, "f32")
                known = ops.every([ops.equal(held, self.order + 1.0), ops.finite(slope)])
                found.append(ops.choose(known, slope, 0.0))
        if self.variant == "normalized":
            total = ops.weighted_sum([ops.magnitude(x) for x in found], ("f32",) * len(found), (1.0,) * len(found), "f32")
            known = ops.every([ops.above(total, 0.0), ops.finite(total)])
            divisor = ops.choose(known, total, 1.0)
            found = [ops.choose(known, ops.div(x, divisor, "f32"), 0.0) for x in found]
        return [clamped(ops, ops.rmul(self.slowness, x, "f32"), GREATEST) for x in found]

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The weights of a call (spec F4)."""
        ops = call.ops
        if not self.lagged:
            state = {**state, **self.exact_committed(state, call.means("f32"), call.present, ops)}
        exponents, weights = self.exact_exponents(state, ops), tables.at(self.table, state["steps"]).tolist()
        if self.variant != "loss_weighted":
            return shares(ops, exponents, weights)
        powers, _ = ops.powers_and_total(exponents)
        ones = (1.0,) * (self.order + 1)
        sums = [ops.magnitude(ops.weighted_sum(row, ("f32",) * len(row), ones, "f32")) for row in self._of_each(state)]
        held = [ops.choose(ops.above(n, 1.0), n, 1.0) for n in state["held"]]
        sizes = [ops.div(x, n, "f32") for x, n in zip(sums, held, strict=True)]
        parts = [ops.rmul(size, power, "f32") for size, power in zip(sizes, powers, strict=True)]
        total = ops.weighted_sum(parts, ("f32",) * len(parts), (1.0,) * len(parts), "f32")
        known, count = ops.every([ops.above(total, 0.0), ops.finite(total)]), float(len(parts))
        divisor = ops.choose(known, total, count)
        return [ops.div(ops.rmul(c, ops.choose(known, x, 1.0), "f32"), divisor, "f32") for c, x in zip(weights, parts, strict=True)]

    def _of_each(self, state: ReferenceState) -> list[list[Value]]:
        """The last means of each loss, oldest first."""
        count = len(self.names)
        return [list(state["history"][k::count]) for k in range(count)]

    @classmethod
    def examples(cls) -> dict[str, SoftAdaptLossBalancerSettings]:
        """With weights by the losses of the call, and with weights by those before it and other settings."""
        return {
            "soft-adapt": cls(EXAMPLE_NAMES, beta=2.0),
            "soft-adapt-lagged": cls(EXAMPLE_NAMES, {"MSE_1": linear(0.0, 1.0, 10)}, "loss_weighted", -0.5, 2, True, None, "K"),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> SoftAdaptLossBalancerSettings:
        return cls(**{**data, "weights": named_schedules("weights", data["weights"])})
