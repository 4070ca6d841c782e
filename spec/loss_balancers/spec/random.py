"""`RandomLossBalancer`: its settings, and its exact weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loss_balancers.spec import random_bits, tables
from loss_balancers.spec.adaptive import checked_total_weight, named_weights, shares, total_factor, weight_table
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Value
from loss_balancers.spec.scheduled import checked_names
from loss_balancers.spec.schedules import linear
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table


@dataclass(frozen=True)
class RandomLossBalancerSettings(ByFactors):
    """The validated settings of `RandomLossBalancer` (spec N5 to N7). Hashable; round-trips through JSON.

    Args:
        names: The names of the losses. Held in canonical order.
        weights: Name to static weight, a number or a schedule, finite and not negative; 1 for a loss that it does not name. Held
            as tuple of (name, Schedule), one for each loss.
        seed: An int from 0 to 2^63 - 1.
        total_weight: The total of the weights: "paper" and "one" are 1, "K" is the number of losses.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value is out of bounds, or a name is not one of ``names``.
    """

    names: Any
    weights: Any = None
    seed: Any = 0
    total_weight: Any = "paper"

    balancer: ClassVar[str] = "RandomLossBalancer"

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", named_weights(self.weights, names))
        object.__setattr__(self, "seed", random_bits.checked_seed(self.seed))
        object.__setattr__(self, "total_weight", checked_total_weight(self.total_weight))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The counters alone: a draw follows from the seed and ``steps``."""
        return base_entries(0)

    @property
    def can_change(self) -> bool:
        """Whether it can change: each step has a draw of its own."""
        return True

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the draw of the step."""
        return False

    @cached_property
    def table(self) -> Table:
        """The static weights of every step times the total weight, float32: a column for each loss."""
        return weight_table(self.weights, total_factor(self.total_weight, 1.0, len(self.names)))

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The weights of a call (spec N6)."""
        exponents = random_bits.normals(self.seed, state["steps"], random_bits.WEIGHTS, len(self.names))
        return shares(call.ops, exponents, tables.at(self.table, state["steps"]).tolist())

    @classmethod
    def examples(cls) -> dict[str, RandomLossBalancerSettings]:
        """With the defaults, and with all other settings."""
        return {
            "random": cls(EXAMPLE_NAMES),
            "random-weights": cls(EXAMPLE_NAMES, {"MSE_1": linear(0.0, 1.0, 10)}, random_bits.MOST_SEED, "K"),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> RandomLossBalancerSettings:
        return cls(**{**data, "weights": named_schedules("weights", data["weights"])})
