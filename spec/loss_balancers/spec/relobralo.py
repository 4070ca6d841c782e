"""`ReLoBRaLoLossBalancer`: its settings, its state, and its exact weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loss_balancers.spec import errors, random_bits, tables
from loss_balancers.spec.adaptive import (
    GREATEST,
    bound_of,
    checked_max_ratio,
    checked_total_weight,
    clamped,
    in_bounds,
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
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.schedules import linear
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table

#: The entries of the state beside the counters, each float32 with an element for each loss.
OWN = ("initial", "previous", "balance")


@dataclass(frozen=True)
class ReLoBRaLoLossBalancerSettings(ByFactors):
    """The validated settings of `ReLoBRaLoLossBalancer` (spec R1 to R4). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to static weight, a number or a schedule, finite and not negative; 1 for a loss that it does not name. Held
            as tuple of (name, Schedule), one for each loss.
        alpha: How much of what came before stays at a step, in [0, 1].
        beta: How probable it is that a step keeps the balance so far and does not look back to the first losses, in [0, 1].
        temperature: What the ratios are divided by, above zero.
        lagged: Whether the weights use committed state alone.
        seed: An int from 0 to 2^63 - 1.
        max_ratio: The greatest ratio, at least 1; None for no bound.
        total_weight: The total of the weights: "paper" and "K" are the number of losses, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    alpha: Any = 0.95
    beta: Any = 0.99
    temperature: Any = 1.0
    lagged: Any = False
    seed: Any = 0
    max_ratio: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "ReLoBRaLoLossBalancer"

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        if not isinstance(self.lagged, bool):
            raise errors.not_a_bool("lagged", self.lagged)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", named_weights(self.weights, names))
        object.__setattr__(self, "alpha", in_bounds("alpha", self.alpha, 0.0, 1.0))
        object.__setattr__(self, "beta", in_bounds("beta", self.beta, 0.0, 1.0))
        object.__setattr__(self, "temperature", positive("temperature", self.temperature))
        object.__setattr__(self, "seed", random_bits.checked_seed(self.seed))
        object.__setattr__(self, "max_ratio", checked_max_ratio(self.max_ratio))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters; the first and the last mean of each loss; and its balance, 1 until there is a first mean."""
        count = len(self.names)
        return (*base_entries(count), *(StateEntry(name, "float32", (count,), count) for name in OWN))

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the balance; unless ``lagged``, that includes the losses of the call."""
        return not self.lagged

    @cached_property
    def table(self) -> Table:
        """The static weights of every step times the total weight, float32: a column for each loss."""
        count = len(self.names)
        return weight_table(self.weights, total_factor(self.total_weight, count, count))

    @property
    def parts(self) -> tuple[float, float]:
        """``alpha`` as the arithmetic uses it, in float32, and what it leaves of 1."""
        alpha = round_weight(self.alpha, "f32")
        return alpha, round_weight(1.0 - alpha, "f32")

    @property
    def chance(self) -> float:
        """``beta`` as the arithmetic uses it, in float32."""
        return round_weight(self.beta, "f32")

    @property
    def divisor(self) -> float:
        """``temperature`` as the arithmetic uses it, in float32."""
        return round_weight(self.temperature, "f32")

    @property
    def bound(self) -> float:
        """``max_ratio`` as the arithmetic uses it, in float32."""
        return bound_of(self.max_ratio)

    def exact_balance(self, state: ReferenceState, ops: Ops = EXACT) -> list[Value]:
        """The balance of each loss: 1 until it has had a mean other than 0 (spec R1)."""
        pairs = zip(state["initial"], state["balance"], strict=True)
        return [ops.choose(ops.equal(first, 0.0), 1.0, balance) for first, balance in pairs]

    def exact_balanced(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> list[Value]:
        """The balance after these losses (spec R2)."""
        from_first, from_last = (self._relative(state[name], losses, present, ops) for name in ("initial", "previous"))
        stays = random_bits.happens(self.seed, state["steps"], random_bits.LOOK_BACK, self.chance)
        before, (alpha, rest) = self.exact_balance(state, ops) if stays else from_first, self.parts
        pairs = zip(before, from_last, strict=True)
        return [ops.add(ops.rmul(x, alpha, "f32"), ops.rmul(y, rest, "f32"), "f32") for x, y in pairs]

    def _relative(self, references: Sequence[Value], losses: Sequence[Value], present: Sequence[bool], ops: Ops) -> list[Value]:
        """K times the softmax of the ratios over the temperature; the ratio of an absent loss is 1."""
        exponents, count = [], len(self.names)
        for x, reference, there in zip(losses, references, present, strict=True):
            relative = ratio(ops, x, reference, self.bound) if there else 1.0
            exponents.append(clamped(ops, ops.div(relative, self.divisor, "f32"), GREATEST))
        return shares(ops, exponents, [float(count)] * count)

    def exact_committed(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> ReferenceState:
        """The state after a commit of the mean of each loss that is present (spec R3)."""
        first = [ops.choose(ops.equal(old, 0.0), x, old) for old, x in zip(state["initial"], losses, strict=True)]
        new = dict(zip(OWN, (first, losses, self.exact_balanced(state, losses, present, ops)), strict=True))
        return {
            name: tuple(x if there else old for x, old, there in zip(values, state[name], present, strict=True))
            for name, values in new.items()
        }

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The weights of a call (spec R4)."""
        ops = call.ops
        if self.lagged:
            balance = self.exact_balance(state, ops)
        else:
            balance = self.exact_balanced(state, call.means("f32"), call.present, ops)
        return [ops.rmul(c, x, "f32") for c, x in zip(tables.at(self.table, state["steps"]).tolist(), balance, strict=True)]

    @classmethod
    def examples(cls) -> dict[str, ReLoBRaLoLossBalancerSettings]:
        """With weights by the losses of the call, and with weights by those before it and all other settings."""
        return {
            "relobralo": cls(EXAMPLE_NAMES, beta=0.5),
            "relobralo-lagged": cls(EXAMPLE_NAMES, {"MSE_1": linear(0.0, 1.0, 10)}, 0.5, 0.75, 0.5, True, 3, 4.0, "one"),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> ReLoBRaLoLossBalancerSettings:
        return cls(**{**data, "weights": named_schedules("weights", data["weights"])})
