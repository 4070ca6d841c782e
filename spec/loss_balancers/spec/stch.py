"""`STCHLossBalancer`: its settings, and its exact aggregate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from loss_balancers.spec import elementary, errors
from loss_balancers.spec.adaptive import GREATEST, checked_total_weight, in_bounds, named, positive, total_factor
from loss_balancers.spec.by_derivatives import ByDerivatives
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.functions import entered, finished, to_finished, to_losses
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.state import ReferenceState

#: The bounds of ``mu``: float32 holds it and 1 / mu as normal numbers.
LEAST_MU, GREATEST_MU = 2.0**-125, 2.0**125
#: What is compared with the reference: the losses, or their logarithms.
Form = Literal["linear", "log"]


@dataclass(frozen=True)
class STCHLossBalancerSettings(ByDerivatives):
    """The validated settings of `STCHLossBalancer` (spec H1 to H3). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        mu: How smooth the maximum is, above zero.
        weights: Name to weight, finite and not negative; 1 / K for a loss that it does not name. Held as tuple of (name, float),
            one for each loss.
        reference: Name to reference: finite, 0 for a loss that it does not name; with ``form="log"`` above zero, 1 for a loss that
            it does not name. Held as tuple of (name, float), one for each loss.
        form: "linear" or "log".
        total_weight: What the derivatives sum to for equal losses and default weights: "paper" is 1 / K, "K" is K, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    mu: Any = 1.0
    weights: Any = None
    reference: Any = None
    form: Any = "linear"
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "STCHLossBalancer"
    takes_float64: ClassVar[bool] = False

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        if not isinstance(self.form, str) or self.form not in get_args(Form):
            raise errors.form_unknown(self.form, get_args(Form))

        def weight(where: str, given: Any) -> float:
            return in_bounds(where, given, 0.0)

        def reference(where: str, given: Any) -> float:
            return positive(where, given) if self.form == "log" else in_bounds(where, given, -GREATEST)

        object.__setattr__(self, "names", names)
        object.__setattr__(self, "mu", in_bounds("mu", self.mu, LEAST_MU, GREATEST_MU))
        object.__setattr__(self, "weights", named("weights", self.weights, names, 1.0 / len(names), weight))
        unnamed = 1.0 if self.form == "log" else 0.0
        object.__setattr__(self, "reference", named("reference", self.reference, names, unnamed, reference))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))

    @property
    def rounded_weights(self) -> tuple[float, ...]:
        """``weights`` as the arithmetic uses them, in float32."""
        return tuple(round_weight(weight, "f32") for _, weight in self.weights)

    @property
    def offsets(self) -> tuple[float, ...]:
        """What is subtracted from each loss, or from its logarithm, in float32 (spec H1)."""
        rounded = [round_weight(reference, "f32") for _, reference in self.reference]
        return tuple(map(elementary.log, rounded)) if self.form == "log" else tuple(rounded)

    @property
    def smoothness(self) -> tuple[float, float]:
        """``mu`` and 1 / mu as the arithmetic uses them, in float32."""
        return round_weight(self.mu, "f32"), round_weight(1.0 / self.mu, "f32")

    @property
    def factor(self) -> float:
        """What the smooth maximum is multiplied by, in float32."""
        return round_weight(total_factor(self.total_weight, 1.0 / len(self.names), len(self.names)), "f32")

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec H1 to H3)."""
        del state
        ops, losses, weights, (mu, inverse) = call.ops, entered(call), self.rounded_weights, self.smoothness
        levels = [ops.log(x) for x in losses] if self.form == "log" else losses
        excesses = [ops.add(x, ops.negate(offset, "f32"), "f32") for x, offset in zip(levels, self.offsets, strict=True)]
        weighted = [ops.rmul(x, weight, "f32") for x, weight in zip(excesses, weights, strict=True)]
        present = [y for y, there in zip(weighted, call.present, strict=True) if there]
        most = ops.greatest(present) if present else 0.0
        below = [ops.add(y, ops.negate(most, "f32"), "f32") for y in weighted]
        exponents = [ops.rmul(x, inverse, "f32") for x in below]
        powers = [ops.exp(x) if there else 0.0 for x, there in zip(exponents, call.present, strict=True)]
        formats, ones = ["f32"] * len(powers), [1.0] * len(powers)
        total = ops.weighted_sum(powers, formats, ones)
        smooth = ops.weighted_sum([ops.log(total), most], ["f32", "f32"], [mu, 1.0])
        aggregate = finished(call, smooth, self.factor)
        to_logarithm, _ = ops.weighted_sum_gradient(to_finished(call, cotangent, self.factor), ["f32", "f32"], [mu, 1.0])
        to_powers = ops.weighted_sum_gradient(ops.log_gradient(to_logarithm, total), formats, ones)
        gs = [ops.exp_gradient(g, x) for g, x in zip(to_powers, exponents, strict=True)]
        gs = [ops.rmul_gradient(g, x, inverse, "f32")[0] for g, x in zip(gs, below, strict=True)]
        gs = [ops.rmul_gradient(g, x, weight, "f32")[0] for g, x, weight in zip(gs, excesses, weights, strict=True)]
        if self.form == "log":
            gs = [ops.log_gradient(g, x) for g, x in zip(gs, losses, strict=True)]
        return aggregate, to_losses(call, gs)

    @classmethod
    def examples(cls) -> dict[str, STCHLossBalancerSettings]:
        """With the defaults; with references; and by logarithms, with all other settings."""
        return {
            "stch": cls(EXAMPLE_NAMES),
            "stch-reference": cls(EXAMPLE_NAMES, 0.25, {"MSE_1": 1.5}, {"MSE_1": 0.125}),
            "stch-log": cls(EXAMPLE_NAMES, 0.5, reference={"MSE_1": 0.3}, form="log", total_weight="one"),
        }
