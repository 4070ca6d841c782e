"""`GeometricLossBalancer`: its settings, its exponents, and its exact aggregate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loss_balancers.spec.adaptive import checked_total_weight, in_bounds, named, positive, total_factor
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_derivatives import ByDerivatives
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.functions import entered, finished, to_finished, to_losses
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.state import ReferenceState


@dataclass(frozen=True)
class GeometricLossBalancerSettings(ByDerivatives):
    """The validated settings of `GeometricLossBalancer` (spec G3, G4). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to weight, above zero; 1 for a loss that it does not name. Only their ratios matter. Held as tuple of (name,
            float), one for each loss.
        total_weight: What the derivatives sum to for equal losses: "paper" and "one" are 1, "K" is the number of losses.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A weight or the sum of all is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "GeometricLossBalancer"
    takes_float64: ClassVar[bool] = False

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", named("weights", self.weights, names, 1.0, positive))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))
        in_bounds("sum(weights)", _total(self.rounded_weights), 0.0)

    @property
    def rounded_weights(self) -> tuple[float, ...]:
        """``weights`` as the arithmetic uses them, in float32."""
        return tuple(round_weight(weight, "f32") for _, weight in self.weights)

    @property
    def factor(self) -> float:
        """What the geometric mean is multiplied by, in float32."""
        return round_weight(total_factor(self.total_weight, 1.0, len(self.names)), "f32")

    def exponents(self, present: Sequence[bool]) -> tuple[float, ...]:
        """The exponent of each loss: its part of the weights of those that are present (spec G3)."""
        weights = [weight if there else 0.0 for weight, there in zip(self.rounded_weights, present, strict=True)]
        total = _total(weights) or 1.0
        return tuple(EXACT.div(weight, total, "f32") for weight in weights)

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec G3, G4)."""
        del state
        ops, exponents = call.ops, self.exponents(call.present)
        formats = ["f32"] * len(exponents)
        losses = entered(call)
        exponent = ops.weighted_sum([ops.log(x) for x in losses], formats, exponents)
        aggregate = finished(call, ops.exp(exponent), self.factor)
        g = ops.exp_gradient(to_finished(call, cotangent, self.factor), exponent)
        to_logarithms = ops.weighted_sum_gradient(g, formats, exponents)
        return aggregate, to_losses(call, [ops.log_gradient(g, x) for g, x in zip(to_logarithms, losses, strict=True)])

    @classmethod
    def examples(cls) -> dict[str, GeometricLossBalancerSettings]:
        """With the defaults, and with weights and another total."""
        return {"geometric": cls(EXAMPLE_NAMES), "geometric-weights": cls(EXAMPLE_NAMES, {"MSE_1": 2.5}, "K")}


def _total(weights: Sequence[float]) -> float:
    """The sum of float32 numbers in order."""
    return EXACT.weighted_sum(weights, ["f32"] * len(weights), [1.0] * len(weights))
