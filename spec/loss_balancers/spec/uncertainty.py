"""`UncertaintyLossBalancer`: its settings, and its exact weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from loss_balancers.spec import errors
from loss_balancers.spec.adaptive import checked_total_weight, in_bounds
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.learned import ByParameter, named_start
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.scheduled import checked_names

#: How far from zero a logarithm may begin: e to the power of it is a normal number, and so is its reciprocal.
MOST_LOGARITHM = 80.0
#: The bounds of a deviation at the beginning: its square is a normal number, and so is its reciprocal.
LEAST_DEVIATION, GREATEST_DEVIATION = 2.0**-60, 2.0**60
#: Whose formula: Kendall, Gal, Cipolla; or Liebel, Körner, whose penalty is never negative.
Form = Literal["kendall", "regularized"]


@dataclass(frozen=True)
class UncertaintyLossBalancerSettings(ByParameter):
    """The validated settings of `UncertaintyLossBalancer` (spec P1 to P4, U1, U2). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        form: "kendall" or "regularized".
        initial: The parameter at the beginning: a number, or name to number; for a loss that it does not name, 0 with "kendall", 1
            with "regularized". Held as tuple of (name, float), one for each loss.
        total_weight: What the weights sum to at the beginning: "paper" is K / 2 without ``initial``, "K" is K, "one" is 1.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    form: Any = "kendall"
    initial: Any = None
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "UncertaintyLossBalancer"

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        if not isinstance(self.form, str) or self.form not in get_args(Form):
            raise errors.uncertainty_form_unknown(self.form, get_args(Form))

        def start(where: str, given: Any) -> float:
            bounds = (-MOST_LOGARITHM, MOST_LOGARITHM) if self.form == "kendall" else (LEAST_DEVIATION, GREATEST_DEVIATION)
            return in_bounds(where, given, *bounds)

        object.__setattr__(self, "names", names)
        object.__setattr__(self, "initial", named_start(self.initial, names, self.neutral, start))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))

    @property
    def parameter(self) -> str:
        """The logarithm of a loss's variance, or its deviation."""
        return "log_variance" if self.form == "kendall" else "deviation"

    @property
    def neutral(self) -> float:
        """The parameter where the variance is 1."""
        return 0.0 if self.form == "kendall" else 1.0

    @property
    def parts(self) -> tuple[float, float]:
        """The halves of the paper; in the other form the half is in the weight."""
        return (0.5, 0.5) if self.form == "kendall" else (1.0, 1.0)

    def exact_weight(self, ops: Ops, s: Value) -> Value:
        """exp(-s), or 1 / (2 s^2) (spec U1, U2)."""
        if self.form == "kendall":
            return ops.exp(ops.negate(s, "f32"))
        return ops.div(0.5, ops.rmul(s, s, "f32"), "f32")

    def exact_penalty(self, ops: Ops, s: Value) -> Value:
        """s, or log(1 + s^2) (spec U1, U2)."""
        return s if self.form == "kendall" else ops.log(ops.add(1.0, ops.rmul(s, s, "f32"), "f32"))

    def exact_to_parameter(self, ops: Ops, s: Value, to_weight: Value, to_penalty: Value) -> tuple[Value, Value]:
        """Of "kendall", by way of the weight and of the penalty; of "regularized", to each factor of s * s."""
        if self.form == "kendall":
            return ops.negate(ops.exp_gradient(to_weight, ops.negate(s, "f32")), "f32"), to_penalty
        square = ops.rmul(s, s, "f32")
        by_weight = ops.div_gradient(to_weight, 0.5, square, "f32")[1]
        by_penalty = ops.log_gradient(to_penalty, ops.add(1.0, square, "f32"))
        return ops.rmul_gradient(ops.add(by_weight, by_penalty, "f32"), s, s, "f32")

    @classmethod
    def examples(cls) -> dict[str, UncertaintyLossBalancerSettings]:
        """With the defaults; with a start for one loss and another total; and the regularized form."""
        return {
            "uncertainty": cls(EXAMPLE_NAMES),
            "uncertainty-initial": cls(EXAMPLE_NAMES, initial={"MSE_1": -0.5}, total_weight="K"),
            "uncertainty-regularized": cls(EXAMPLE_NAMES, "regularized", 0.75, "one"),
        }
