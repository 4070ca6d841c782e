"""`DWALossBalancer`: its settings, its state, and its exact weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loss_balancers.spec import errors, tables
from loss_balancers.spec.adaptive import (
    GREATEST,
    bound_of,
    checked_max_ratio,
    checked_total_weight,
    clamped,
    named_weights,
    positive,
    ratio,
    shares,
    total_factor,
    weight_table,
)
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import MOST_STEPS, round_weight
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.schedules import linear
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table

#: The entries of the state beside the counters, each float32 with an element for each loss.
OWN = ("epoch_sum", "epoch_count", "last", "before")


@dataclass(frozen=True)
class DWALossBalancerSettings(ByFactors):
    """The validated settings of `DWALossBalancer` (spec D1 to D4). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to static weight, a number or a schedule, finite and not negative; 1 for a loss that it does not name. Held
            as tuple of (name, Schedule), one for each loss.
        temperature: What the ratios are divided by, above zero.
        epoch_steps: How many optimizer steps make an epoch; None where `end_epoch()` says so.
        max_ratio: The greatest ratio, at least 1; None for no bound.
        total_weight: The total of the weights: "paper" and "K" are the number of losses, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    temperature: Any = 2.0
    epoch_steps: Any = None
    max_ratio: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "DWALossBalancer"
    has_epochs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names, steps = checked_names(self.names), self.epoch_steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS):
            raise errors.epoch_steps_value(steps, MOST_STEPS)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", named_weights(self.weights, names))
        object.__setattr__(self, "temperature", positive("temperature", self.temperature))
        object.__setattr__(self, "max_ratio", checked_max_ratio(self.max_ratio))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters; the sum and number of an epoch's means; and the averages of the last epoch and of the one before."""
        count = len(self.names)
        return (*base_entries(count), *(StateEntry(name, "float32", (count,), count) for name in OWN))

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the averages of past epochs."""
        return False

    @cached_property
    def table(self) -> Table:
        """The static weights of every step times the total weight, float32: a column for each loss."""
        count = len(self.names)
        return weight_table(self.weights, count * total_factor(self.total_weight, count, count))

    @property
    def divisor(self) -> float:
        """``temperature`` as the arithmetic uses it, in float32."""
        return round_weight(self.temperature, "f32")

    @property
    def bound(self) -> float:
        """``max_ratio`` as the arithmetic uses it, in float32."""
        return bound_of(self.max_ratio)

    def exact_committed(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> ReferenceState:
        """The state after a commit of the mean of each loss that is present (spec D2)."""
        added = [ops.flush(ops.add(total, x, "f32"), "f32") for total, x in zip(state["epoch_sum"], losses, strict=True)]
        taken = ops.every([ops.finite(total) for total in added])
        new = {"epoch_sum": added, "epoch_count": [ops.add(count, 1.0, "f32") for count in state["epoch_count"]]}
        state = dict(state)
        for name, values in new.items():
            pairs = zip(values, state[name], present, strict=True)
            state[name] = tuple(ops.choose(taken, value, old) if there else old for value, old, there in pairs)
        steps = min(state["steps"] + 1, MOST_STEPS)
        ends = self.epoch_steps is not None and steps % self.epoch_steps == 0
        return self.exact_epoch(state, ops) if ends else {name: state[name] for name in OWN}

    def exact_epoch(self, state: ReferenceState, ops: Ops = EXACT) -> ReferenceState:
        """The state after the end of an epoch (spec D2)."""
        new = []
        for total, count, last, before in zip(*(state[name] for name in OWN), strict=True):
            seen = ops.above(count, 0.0)
            average = ops.div(total, ops.choose(seen, count, 1.0), "f32")
            new.append((0.0, 0.0, ops.choose(seen, average, last), ops.choose(seen, last, before)))
        return dict(zip(OWN, map(tuple, zip(*new, strict=True)), strict=True))

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The weights of a call (spec D3)."""
        ops = call.ops
        exponents = [
            clamped(ops, ops.div(ratio(ops, last, before, self.bound), self.divisor, "f32"), GREATEST)
            for last, before in zip(state["last"], state["before"], strict=True)
        ]
        return shares(ops, exponents, tables.at(self.table, state["steps"]).tolist())

    @classmethod
    def examples(cls) -> dict[str, DWALossBalancerSettings]:
        """With epochs of a number of steps, and with all other settings."""
        return {
            "dwa": cls(EXAMPLE_NAMES, epoch_steps=2),
            "dwa-bounded": cls(EXAMPLE_NAMES, {"MSE_1": linear(0.0, 1.0, 10)}, 0.5, 1, 4.0, "one"),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> DWALossBalancerSettings:
        return cls(**{**data, "weights": named_schedules("weights", data["weights"])})
