"""The exact call of a balancer whose aggregate is the sum of its losses by factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from loss_balancers.spec import arithmetic
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.state import ReferenceState, as_observed


class ByFactors(Settings):
    """Settings of a balancer that weighs its losses by factors (spec A5)."""

    @staticmethod
    def weight_format(formats: Iterable[str]) -> str:
        """The format of the weights, whatever those of the losses."""
        del formats
        return "f32"

    @abstractmethod
    def exact_factors(self, state: ReferenceState, losses: Sequence[float]) -> list[float]:
        """The factors of a call, by committed state and, if the method says so, the losses as state sees them."""

    def exact_weights(
        self, names: tuple[str, ...], values: Sequence[float], formats: Sequence[str], state: ReferenceState
    ) -> list[float]:
        """The weight of each loss: the factors, the first as often as the losses that share it."""
        factors = self.exact_factors(state, as_observed(values, formats))
        return factors[:1] * (len(names) - len(factors)) + factors

    def exact_aggregate(
        self, names: tuple[str, ...], values: Sequence[float], formats: Sequence[str], cotangent: float, state: ReferenceState
    ) -> tuple[float, list[float]]:
        """The aggregate and the gradient to each loss."""
        del names
        return arithmetic.balance(values, formats, self.exact_factors(state, as_observed(values, formats)), cotangent)
