"""The exact call of a balancer whose aggregate is the sum of its losses by factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from loss_balancers.spec.call import Call
from loss_balancers.spec.ops import Value
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.state import ReferenceState


class ByFactors(Settings):
    """Settings of a balancer that weighs its losses by factors (spec A5)."""

    @staticmethod
    def weight_format(formats: Iterable[str]) -> str:
        """The format of the weights, whatever the formats of the losses."""
        del formats
        return "f32"

    @abstractmethod
    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The factors of a call, made from committed state and, if the method says so, from the losses as state sees them."""

    def exact_weights(self, call: Call, state: ReferenceState) -> list[Value]:
        """The weight of each loss: its factor, where the leading losses share the first; 0 if the loss is absent."""
        factors = self.exact_factors(state, call)
        weights = factors[:1] * (len(call.names) - len(factors)) + factors
        return [weight if there else 0.0 for weight, there in zip(weights, call.present, strict=True)]

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss. An absent loss adds +0, which changes no sum."""
        factors = self.exact_factors(state, call)
        if len(factors) == len(call.names):
            factors = self.exact_weights(call, state)
        aggregate, gradients = call.ops.balance(call.values, call.formats, factors, cotangent)
        return aggregate, [g if there else 0.0 for g, there in zip(gradients, call.present, strict=True)]
