"""The exact call of a balancer that has a parameter, which the user's optimizer trains: a number for each loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from loss_balancers.spec.adaptive import named, total_factor
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.by_derivatives import ByDerivatives
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import round_weight
from loss_balancers.spec.functions import entered, finished, to_finished, to_losses
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.state import ReferenceState, StateEntry


class ByParameter(ByDerivatives):
    """Settings of a balancer whose aggregate is a function of its losses and of a parameter s (spec P1 to P4).

    ``aggregate = factor * sum(a * w_k * L_k + b * z_k)``: the weight w_k and the penalty z_k are functions of s_k, a and b numbers.
    """

    takes_float64: ClassVar[bool] = False

    #: Set by each balancer's own fields.
    names: Any
    initial: Any
    total_weight: Any

    @property
    @abstractmethod
    def parameter(self) -> str:
        """What the parameter is called, in the module and in an exported state."""

    @property
    @abstractmethod
    def neutral(self) -> float:
        """The parameter of an absent loss, by which everything stays finite; the start where ``initial`` says nothing."""

    @property
    @abstractmethod
    def parts(self) -> tuple[float, float]:
        """The numbers a and b."""

    @abstractmethod
    def exact_weight(self, ops: Ops, s: Value) -> Value:
        """The weight of a loss, of its parameter."""

    @abstractmethod
    def exact_penalty(self, ops: Ops, s: Value) -> Value:
        """The penalty of its parameter."""

    @abstractmethod
    def exact_to_parameter(self, ops: Ops, s: Value, to_weight: Value, to_penalty: Value) -> tuple[Value, Value]:
        """The gradients to the parameter: of those to the weight and to the penalty."""

    @property
    def learned(self) -> tuple[StateEntry, ...]:
        """The parameter."""
        count = len(self.names)
        return (StateEntry(self.parameter, "float32", (count,), count, start=self.start),)

    @property
    def start(self) -> tuple[float, ...]:
        """What the parameter is at the beginning, in float32."""
        return tuple(round_weight(value, "f32") for _, value in self.initial)

    @property
    def factor(self) -> float:
        """What the sum is multiplied by, in float32 (spec P4)."""
        paper = sum(self.parts[0] * self.exact_weight(EXACT, s) for s in self.start)
        return round_weight(total_factor(self.total_weight, paper, len(self.names)), "f32")

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec P2, P3)."""
        aggregate, to_each_loss, _ = self.exact_call(call, cotangent, state)
        return aggregate, to_each_loss

    def exact_learned(self, call: Call, cotangent: Value, state: ReferenceState) -> dict[str, tuple[Value, ...]]:
        """The gradient to the parameter, by its name (spec P3)."""
        _, _, to_parameter = self.exact_call(call, cotangent, state)
        return {self.parameter: tuple(to_parameter)}

    def exact_call(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value], list[Value]]:
        """The aggregate, the gradient to each loss, and the gradient to the parameter (spec P2, P3)."""
        ops, present = call.ops, call.present
        pairs = list(zip(state[self.parameter], present, strict=True))
        # The product with 1 flushes s, and in the other direction the sum of the two gradients to it.
        parameter = [ops.rmul(s, 1.0, "f32") if there else self.neutral for s, there in pairs]
        losses, weights = entered(call), [self.exact_weight(ops, s) for s in parameter]
        products = [ops.rmul(x, w, "f32") for x, w in zip(losses, weights, strict=True)]
        terms = [*products, *(self.exact_penalty(ops, s) for s in parameter)]
        parts = [part if there else 0.0 for part in self.parts for there in present]
        formats = ["f32"] * len(terms)
        aggregate = finished(call, ops.weighted_sum(terms, formats, parts), self.factor)

        to_terms = ops.weighted_sum_gradient(to_finished(call, cotangent, self.factor), formats, parts)
        to_products, to_penalties = to_terms[: len(products)], to_terms[len(products) :]
        backs = [ops.rmul_gradient(g, x, w, "f32") for g, x, w in zip(to_products, losses, weights, strict=True)]
        to_parameter = []
        for (s, there), kept, (_, to_weight), to_penalty in zip(pairs, parameter, backs, to_penalties, strict=True):
            g = ops.add(*self.exact_to_parameter(ops, kept, to_weight, to_penalty), "f32") if there else 0.0
            to_parameter.append(ops.rmul_gradient(g, s, 1.0, "f32")[0] if there else 0.0)
        return aggregate, to_losses(call, [to_loss for to_loss, _ in backs]), to_parameter


def named_start(
    given: Any, names: Sequence[str], neutral: float, checked: Callable[[str, Any], float]
) -> tuple[tuple[str, float], ...]:
    """``initial`` by name: one number for all losses, or a mapping from name to number; ``neutral`` where it says nothing.

    Raises:
        TypeError: It is neither, or what it holds is not a number.
        ValueError: A number is out of bounds, or a name is not one of ``names``.
    """
    if given is not None and not isinstance(given, Mapping):
        number = checked("initial", given)
        return tuple((name, number) for name in names)
    return named("initial", given, names, neutral, checked)
