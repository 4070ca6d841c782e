"""`ScheduledLossBalancer` and `WeightedSumLossBalancer`: their settings, and their tables of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from loss_balancers.spec import errors, tables
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.checks import elements
from loss_balancers.spec.keys import EXAMPLE_NAMES, STUDENT_LOSS_KEY, canonical_order, has_distinct_idx, kd_names
from loss_balancers.spec.schedules import Schedule, as_schedule, linear, warmup_cosine
from loss_balancers.spec.settings import named_schedules
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.static import SUM_TOLERANCE
from loss_balancers.spec.tables import Table


@dataclass(frozen=True)
class ScheduledLossBalancerSettings(ByFactors):
    """The validated settings of `ScheduledLossBalancer` (spec S1 to S5). Hashable; round-trips through JSON.

    Args:
        kd_loss_weight: A number or schedule that the KD losses share, a sequence of them, one per KD loss in canonical order,
            or a mapping from name to them. At every step each is in [0, 1], and their sum at most 1. Held as Schedule, tuple of
            Schedule, or tuple of (name, Schedule).
        names: The names of the losses. None where ``kd_loss_weight`` names them: those and ``student_loss``.

    Raises:
        TypeError: A weight is neither a number nor a schedule, or a name is not a string.
        ValueError: A weight or their sum is out of bounds at some step, or weights and names do not match.
    """

    kd_loss_weight: Any
    names: Any = None

    balancer: ClassVar[str] = "ScheduledLossBalancer"

    def __post_init__(self) -> None:
        given, names = self.kd_loss_weight, self.names
        if isinstance(given, Mapping):
            held: Any = _named(given)
            names = (*dict.fromkeys((*given, STUDENT_LOSS_KEY)),) if names is None else names
        elif (weights := elements(given)) is not None:
            held = tuple(as_schedule(weight, f"kd_loss_weight[{i}]") for i, weight in enumerate(weights))
            if not held:
                raise errors.no_weights(given)
        else:
            held = as_schedule(given, "kd_loss_weight")
        object.__setattr__(self, "kd_loss_weight", held)
        object.__setattr__(self, "names", checked_names(names))
        self._check_match()
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """What the balancer keeps: its counters."""
        return base_entries(0)

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the step."""
        return False

    @cached_property
    def table(self) -> Table:
        """The factors of every step (spec A5), float32: one per loss, the student last; the first for all KD losses if shared."""
        kd, student = self._weights()
        return tables.rounded(kd if STUDENT_LOSS_KEY not in self.names else np.column_stack([kd, student]))

    @property
    def dropped(self) -> float:
        """The largest weight of a student loss that is not among the names, 0 if there is no such weight."""
        return 0.0 if STUDENT_LOSS_KEY in self.names else float(self._weights()[1].max())

    def _weights(self) -> tuple[Table, Table]:
        """The KD weights and the student's at every step, in float64: the one given, or what they leave of 1, 0 within 1e-9."""
        held = self.kd_loss_weight
        if isinstance(held, Schedule):
            schedules = {"kd_loss_weight": held}
        elif isinstance(held[0], Schedule):
            schedules = {f"kd_loss_weight[{i}]": weight for i, weight in enumerate(held)}
        else:
            schedules = {f"kd_loss_weight[{name!r}]": weight for name, weight in held}
        table = tables.columns(schedules)
        tables.check_bounds(table, list(schedules), 0.0, 1.0)
        totals = tables.row_sums(table)
        over, off = totals > 1.0 + SUM_TOLERANCE, np.abs(totals - 1.0) > SUM_TOLERANCE
        if self._student_named:
            if off.any():
                raise errors.scheduled_sum_with_student(int(off.argmax()), float(totals[off.argmax()]))
            return table[:, :-1], table[:, -1]
        if over.any():
            raise errors.scheduled_sum(int(over.argmax()), float(totals[over.argmax()]))
        return table, np.where(off, 1.0 - totals, 0.0)

    @property
    def _student_named(self) -> bool:
        held = self.kd_loss_weight
        return not isinstance(held, Schedule) and not isinstance(held[0], Schedule) and held[-1][0] == STUDENT_LOSS_KEY

    def _check_match(self) -> None:
        kd, held = kd_names(self.names), self.kd_loss_weight
        if isinstance(held, Schedule):
            return
        if isinstance(held[0], Schedule):
            if len(held) != len(kd):
                raise errors.count_mismatch(held, kd)
            if len(kd) > 1 and not has_distinct_idx(kd):
                raise errors.ambiguous_order(kd)
        elif kd_names(tuple(dict(held))) != kd:
            raise errors.names_mismatch(kd_names(tuple(dict(held))), kd)

    def exact_factors(self, state: ReferenceState, call: Call) -> list[float]:
        """The factors of a call (spec S3)."""
        del call
        return tables.at(self.table, state["steps"]).tolist()

    @classmethod
    def examples(cls) -> dict[str, ScheduledLossBalancerSettings]:
        """One schedule that the KD losses share, and one for each."""
        shared, each = linear(0.0, 1.0, 10), [linear(0.5, 0.0, 25), warmup_cosine(0.5, 7, 0.125, 20)]
        return {"scheduled": cls(shared, EXAMPLE_NAMES), "scheduled-sequence": cls(each, EXAMPLE_NAMES)}

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        held = self.kd_loss_weight
        if isinstance(held, Schedule):
            weight: Any = held.as_json()
        elif isinstance(held[0], Schedule):
            weight = [schedule.as_json() for schedule in held]
        else:
            weight = {"by_name": {name: schedule.as_json() for name, schedule in held}}
        return {"kd_loss_weight": weight, "names": list(self.names)}

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> ScheduledLossBalancerSettings:
        match data["kd_loss_weight"]:
            case [*schedules]:
                return cls([Schedule.from_json(schedule) for schedule in schedules], data["names"])
            case {"by_name": weights, **others} if not others:
                return cls(named_schedules("kd_loss_weight", weights), data["names"])
            case schedule:
                return cls(Schedule.from_json(schedule), data["names"])


@dataclass(frozen=True)
class WeightedSumLossBalancerSettings(ByFactors):
    """The validated settings of `WeightedSumLossBalancer` (spec S6). Hashable; round-trips through JSON.

    Args:
        weights: Name of each KD loss to its weight: a number or a schedule, finite and not negative. Held as tuple of
            (name, Schedule) in canonical order.
        student_weight: The weight of the student loss; None if there is no student loss.

    Raises:
        TypeError: ``weights`` is not a mapping, or a weight is neither a number nor a schedule.
        ValueError: A weight is negative or not finite at some step, or ``weights`` names ``student_loss`` or nothing.
    """

    weights: Any
    student_weight: Any = None

    balancer: ClassVar[str] = "WeightedSumLossBalancer"

    def __post_init__(self) -> None:
        given = self.weights
        if not isinstance(given, Mapping):
            raise errors.weights_not_a_mapping(given)
        if STUDENT_LOSS_KEY in given:
            raise errors.student_among_weights()
        names = canonical_order(tuple(given))
        object.__setattr__(self, "weights", tuple((name, as_schedule(given[name], f"weights[{name!r}]")) for name in names))
        if self.student_weight is not None:
            object.__setattr__(self, "student_weight", as_schedule(self.student_weight, "student_weight"))
        self.table  # noqa: B018  checks every step

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order."""
        student = () if self.student_weight is None else (STUDENT_LOSS_KEY,)
        return (*(name for name, _ in self.weights), *student)

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """What the balancer keeps: its counters."""
        return base_entries(0)

    @property
    def sees_losses(self) -> bool:
        """Factors follow from the step."""
        return False

    @cached_property
    def table(self) -> Table:
        """The factors of every step (spec A5), float32: one per loss, the student last."""
        schedules = {f"weights[{name!r}]": schedule for name, schedule in self.weights}
        if self.student_weight is not None:
            schedules["student_weight"] = self.student_weight
        table = tables.columns(schedules)
        tables.check_bounds(table, list(schedules), 0.0, float(np.finfo(np.float32).max))
        return tables.rounded(table)

    def exact_factors(self, state: ReferenceState, call: Call) -> list[float]:
        """The factors of a call (spec S3)."""
        del call
        return tables.at(self.table, state["steps"]).tolist()

    @classmethod
    def examples(cls) -> dict[str, WeightedSumLossBalancerSettings]:
        """Weights above 1, one of them a schedule."""
        return {"weighted-sum": cls({"LogitsKL_0": linear(0.0, 1.0, 10), "MSE_1": 3.0}, 0.5)}

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> WeightedSumLossBalancerSettings:
        student = data["student_weight"]
        return cls(named_schedules("weights", data["weights"]), None if student is None else Schedule.from_json(student))


def _named(given: Mapping[Any, Any]) -> tuple[tuple[str, Schedule], ...]:
    """Weights by name, in canonical order."""
    for name in given:
        if not isinstance(name, str):
            raise errors.weight_name_type(name)
    if all(name == STUDENT_LOSS_KEY for name in given):
        raise errors.no_weights(dict(given))
    return tuple((name, as_schedule(given[name], f"kd_loss_weight[{name!r}]")) for name in canonical_order(tuple(given)))


def checked_names(names: Any) -> tuple[str, ...]:
    """Names given at construction, in canonical order.

    Raises:
        TypeError: ``names`` is not a sequence of strings.
        ValueError: A name comes twice, or no name is that of a KD loss.
    """
    if isinstance(names, (str, bytes, bytearray)) or not isinstance(names, Sequence):
        raise errors.names_type(names)
    for name in names:
        if not isinstance(name, str):
            raise errors.names_type(names)
    if len(set(names)) < len(names):
        raise errors.names_twice(list(names))
    return canonical_order(tuple(names))
