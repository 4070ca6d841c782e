"""`IMTLLossBalancer`: its settings, and its exact weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loss_balancers.spec.adaptive import checked_total_weight, in_bounds
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.learned import ByParameter, named_start
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.uncertainty import MOST_LOGARITHM


@dataclass(frozen=True)
class IMTLLossBalancerSettings(ByParameter):
    """The validated settings of `IMTLLossBalancer` (spec P1 to P4, I1). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        initial: The parameter at the beginning: a number, or name to number, 0 for a loss that it does not name. Held as tuple of
            (name, float), one for each loss.
        total_weight: What the weights sum to at the beginning: "paper" is K without ``initial``, "K" is K, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    initial: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "IMTLLossBalancer"
    parameter: ClassVar[str] = "log_scale"  # type: ignore[reportAssignmentType]
    neutral: ClassVar[float] = 0.0  # type: ignore[reportAssignmentType]
    parts: ClassVar[tuple[float, float]] = (1.0, -1.0)  # type: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        names = checked_names(self.names)

        def start(where: str, given: Any) -> float:
            return in_bounds(where, given, -MOST_LOGARITHM, MOST_LOGARITHM)

        object.__setattr__(self, "names", names)
        object.__setattr__(self, "initial", named_start(self.initial, names, self.neutral, start))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))

    def exact_weight(self, ops: Ops, s: Value) -> Value:
        """exp(s) (spec I1)."""
        return ops.exp(s)

    def exact_penalty(self, ops: Ops, s: Value) -> Value:
        """S (spec I1)."""
        del ops
        return s

    def exact_to_parameter(self, ops: Ops, s: Value, to_weight: Value, to_penalty: Value) -> tuple[Value, Value]:
        """By way of the weight, and of the penalty."""
        return ops.exp_gradient(to_weight, s), to_penalty

    @classmethod
    def examples(cls) -> dict[str, IMTLLossBalancerSettings]:
        """With the defaults, and with a start for one loss and another total."""
        return {"imtl": cls(EXAMPLE_NAMES), "imtl-initial": cls(EXAMPLE_NAMES, {"MSE_1": 1.5}, "one")}
