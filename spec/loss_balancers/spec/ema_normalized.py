"""`EMANormalizedLossBalancer`: its settings, its state, and its exact weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loss_balancers.spec import errors, tables
from loss_balancers.spec.adaptive import in_bounds, named_weights, positive, weight_table
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.keys import EXAMPLE_NAMES, STUDENT_LOSS_KEY
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.schedules import linear
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table


@dataclass(frozen=True)
class EMANormalizedLossBalancerSettings(ByFactors):
    """The validated settings of `EMANormalizedLossBalancer` (spec M1 to M4). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to weight, a number or a schedule, finite and not negative; 1 for a loss that it does not name. Held as
            tuple of (name, Schedule), one for each loss.
        beta: The decay of the running means, in [0, 1].
        eps: What is added to a running mean. A mean that is not above it does not count as known. Not negative.
        target: "one", or the name of the loss in whose units the others are brought.
        lagged: Whether the weights use committed state alone.
        max_ratio: The greatest ratio of the unit to a mean, above zero; None for no bound.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    beta: Any = 0.99
    eps: Any = 1e-8
    target: Any = "one"
    lagged: Any = False
    max_ratio: Any = None

    balancer: ClassVar[str] = "EMANormalizedLossBalancer"
    later: ClassVar[Mapping[str, Any]] = {"max_ratio": None}

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        weights = named_weights(self.weights, names)
        if not isinstance(self.target, str) or self.target not in ("one", *names):
            raise errors.target_unknown(self.target, names)
        if not isinstance(self.lagged, bool):
            raise errors.not_a_bool("lagged", self.lagged)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "beta", in_bounds("beta", self.beta, 0.0, 1.0))
        object.__setattr__(self, "eps", in_bounds("eps", self.eps, 0.0))
        object.__setattr__(self, "max_ratio", None if self.max_ratio is None else positive("max_ratio", self.max_ratio))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters, and two decayed sums: ``total`` adds the magnitudes of the losses, ``fix`` adds 1 each time."""
        count = len(self.names)
        own = (StateEntry(name, "float32", (count,), count) for name in ("total", "fix"))
        return (*base_entries(count), *own)

    @property
    def sees_losses(self) -> bool:
        """Factors follow from running means; unless ``lagged``, these include the losses of the call."""
        return not self.lagged

    @cached_property
    def table(self) -> Table:
        """The weights of every step, float32, before normalisation: a column per loss."""
        return weight_table(self.weights)

    @property
    def decay(self) -> float:
        """``beta`` as the arithmetic uses it, in float32."""
        return round_weight(self.beta, "f32")

    @property
    def offset(self) -> float:
        """``eps`` as the arithmetic uses it, in float32."""
        return round_weight(self.eps, "f32")

    @property
    def bound(self) -> float | None:
        """``max_ratio`` as the arithmetic uses it, in float32."""
        return None if self.max_ratio is None else round_weight(self.max_ratio, "f32")

    @property
    def reference(self) -> int | None:
        """The place of the loss that is the unit, in canonical order; None if the unit is 1."""
        return None if self.target == "one" else self.names.index(self.target)

    def exact_committed(
        self, state: ReferenceState, losses: Sequence[Value], present: Sequence[bool], ops: Ops = EXACT
    ) -> ReferenceState:
        """The running sums after the ``losses`` that are present; as they were if one would not be finite (spec M2)."""
        sums: ReferenceState = {}
        for name, more in (("total", [ops.magnitude(x) for x in losses]), ("fix", [1.0] * len(losses))):
            decayed = [ops.flush(ops.multiply(value, self.decay, "f32"), "f32") for value in state[name]]
            added = [ops.add(d, x, "f32") for d, x in zip(decayed, more, strict=True)]
            sums[name] = [new if there else old for new, old, there in zip(added, state[name], present, strict=True)]
        taken = ops.every([ops.finite(total) for total in sums["total"]])
        return {name: tuple(ops.choose(taken, new, old) for new, old in zip(sums[name], state[name], strict=True)) for name in sums}

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The weights of a call (spec M3)."""
        ops = call.ops
        if not self.lagged:
            state = {**state, **self.exact_committed(state, call.means("f32"), call.present, ops)}
        means = [
            ops.div(total, ops.choose(ops.above(fix, 0.0), fix, 1.0), "f32")
            for total, fix in zip(state["total"], state["fix"], strict=True)
        ]
        unit = 1.0 if self.reference is None else means[self.reference]
        factors = []
        for mean, weight in zip(means, tables.at(self.table, state["steps"]).tolist(), strict=True):
            known = ops.every([ops.above(mean, self.offset), ops.above(unit, self.offset)])
            ratio = ops.choose(known, ops.div(unit, ops.add(mean, self.offset, "f32"), "f32"), 1.0)
            if self.bound is not None:
                ratio = ops.choose(ops.above(ratio, self.bound), self.bound, ratio)
            factors.append(ops.rmul(weight, ratio, "f32"))
        return factors

    @classmethod
    def examples(cls) -> dict[str, EMANormalizedLossBalancerSettings]:
        """With weights by the losses of the call, and with weights by those before it, in the units of one loss."""
        return {
            "ema": cls(EXAMPLE_NAMES, {"MSE_1": linear(0.0, 1.0, 10)}, beta=0.5),
            "ema-lagged": cls(EXAMPLE_NAMES, target=STUDENT_LOSS_KEY, lagged=True),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> EMANormalizedLossBalancerSettings:
        return cls(**{**data, "weights": named_schedules("weights", data["weights"])})
