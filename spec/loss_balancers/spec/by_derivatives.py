"""The exact call of a balancer without weights: its aggregate is a function of its losses."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from loss_balancers.spec.call import Call
from loss_balancers.spec.ops import Value
from loss_balancers.spec.settings import Settings, WeightsAre
from loss_balancers.spec.state import ReferenceState


class ByDerivatives(Settings):
    """Settings of a balancer whose aggregate is a function of its losses, with its derivatives in place of weights (spec T5)."""

    weights_are: ClassVar[WeightsAre] = "derivatives"

    @abstractmethod
    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss; +0 to an absent one."""

    def exact_weights(self, call: Call, state: ReferenceState) -> list[Value]:
        """The derivative of the aggregate by each loss, in the loss's format: the gradient for the cotangent 1."""
        return self.exact_aggregate(call, 1.0, state)[1]
