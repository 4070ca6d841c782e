"""`ScheduledLossBalancer` and `WeightedSumLossBalancer`: settings, and the table of weights that both are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from loss_balancers.spec import errors, tables
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order, has_distinct_idx, kd_names
from loss_balancers.spec.schedules import Schedule, as_schedule
from loss_balancers.spec.state import StateEntry, base_entries
from loss_balancers.spec.static import SUM_TOLERANCE
from loss_balancers.spec.tables import Table


@dataclass(frozen=True)
class ScheduledLossBalancerSettings:
    """The validated settings of `ScheduledLossBalancer` (spec S1 to S5). Hashable; round-trips through JSON.

    Args:
        kd_loss_weight: A number or schedule that the KD losses share, a sequence of them, one per KD loss in canonical order,
            or a mapping from name to them. At every step each is in [0, 1], and their sum at most 1. Held as Schedule, tuple of
            Schedule, or tuple of (name, Schedule).
        names: The names of the losses. None where ``kd_loss_weight`` names them: those and ``student_loss``.

    Raises:
        TypeError: A weight is neither number nor schedule, or a name no string.
        ValueError: A weight or their sum is out of bounds at some step, or weights and names do not match.
    """

    kd_loss_weight: Any
    names: Any = None

    balancer: ClassVar[str] = "ScheduledLossBalancer"

    def __post_init__(self) -> None:
        given, names = self.kd_loss_weight, self.names
        if isinstance(given, Mapping):
            held: Any = tuple((n, as_schedule(given[n], f"kd_loss_weight[{n!r}]")) for n in canonical_order(tuple(given)))
            names = (*dict.fromkeys((*given, STUDENT_LOSS_KEY)),) if names is None else names
        elif isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)):
            held = tuple(as_schedule(weight, f"kd_loss_weight[{i}]") for i, weight in enumerate(given))
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

    @cached_property
    def table(self) -> Table:
        """The factors of every step (spec A5), float32: one per loss, the student last; the first for all KD losses if shared."""
        return tables.rounded(self._weights)

    @property
    def dropped(self) -> float:
        """The largest weight of a student loss that is not among the names, 0 if there is none."""
        return 0.0 if STUDENT_LOSS_KEY in self.names else float(self._student.max())

    @cached_property
    def _kd(self) -> Table:
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
        over = np.flatnonzero(totals > 1.0 + SUM_TOLERANCE)
        if over.size:
            raise errors.scheduled_sum(int(over[0]), float(totals[over[0]]))
        if self._student_named:
            off = np.flatnonzero(np.abs(totals - 1.0) > SUM_TOLERANCE)
            if off.size:
                raise errors.scheduled_sum_with_student(int(off[0]), float(totals[off[0]]))
        return table

    @cached_property
    def _student(self) -> Table:
        """What the KD weights leave of 1, 0 within 1e-9; or the weight that is given."""
        if self._student_named:
            return self._kd[:, -1]
        rest = 1.0 - tables.row_sums(self._kd)
        return np.where(np.abs(rest) <= SUM_TOLERANCE, 0.0, rest)

    @cached_property
    def _weights(self) -> Table:
        kd = self._kd[:, :-1] if self._student_named else self._kd
        if STUDENT_LOSS_KEY not in self.names:
            return kd
        return np.column_stack([kd, self._student])

    @property
    def _student_named(self) -> bool:
        held = self.kd_loss_weight
        return not isinstance(held, Schedule) and not isinstance(held[0], Schedule) and held[-1][0] == STUDENT_LOSS_KEY

    def _check_match(self) -> None:
        kd, held = kd_names(self.names), self.kd_loss_weight
        if isinstance(held, Schedule):
            return
        if not held:
            raise errors.no_weights(held)
        if isinstance(held[0], Schedule):
            if len(held) != len(kd):
                raise errors.count_mismatch(held, kd)
            if len(kd) > 1 and not has_distinct_idx(kd):
                raise errors.ambiguous_order(kd)
        elif kd_names(tuple(dict(held))) != kd:
            raise errors.names_mismatch(kd_names(tuple(dict(held))), kd)

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
    def from_json(cls, data: Mapping[str, Any]) -> ScheduledLossBalancerSettings:
        """The settings that `as_json` described. Raises as at construction."""
        weight = check_fields(cls.balancer, data, ["kd_loss_weight", "names"])["kd_loss_weight"]
        if isinstance(weight, list):
            return cls([Schedule.from_json(one) for one in weight], data["names"])
        if list(weight) == ["by_name"]:
            return cls({name: Schedule.from_json(one) for name, one in weight["by_name"].items()}, data["names"])
        return cls(Schedule.from_json(weight), data["names"])


@dataclass(frozen=True)
class WeightedSumLossBalancerSettings:
    """The validated settings of `WeightedSumLossBalancer` (spec S6). Hashable; round-trips through JSON.

    Args:
        weights: Name of each KD loss to its weight: a number or a schedule, finite and not negative. Held as tuple of
            (name, Schedule) in canonical order.
        student_weight: That of the student loss; None where there is none.

    Raises:
        TypeError: ``weights`` is no mapping, or a weight neither number nor schedule.
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

    @cached_property
    def table(self) -> Table:
        """The factors of every step (spec A5), float32: one per loss, the student last."""
        schedules = {f"weights[{name!r}]": schedule for name, schedule in self.weights}
        if self.student_weight is not None:
            schedules["student_weight"] = self.student_weight
        table = tables.columns(schedules)
        tables.check_bounds(table, list(schedules), 0.0, float(np.finfo(np.float32).max))
        return tables.rounded(table)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        student = None if self.student_weight is None else self.student_weight.as_json()
        return {"weights": {name: schedule.as_json() for name, schedule in self.weights}, "student_weight": student}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightedSumLossBalancerSettings:
        """The settings that `as_json` described. Raises as at construction."""
        student = check_fields(cls.balancer, data, ["weights", "student_weight"])["student_weight"]
        weights = {name: Schedule.from_json(schedule) for name, schedule in data["weights"].items()}
        return cls(weights, None if student is None else Schedule.from_json(student))


def checked_names(names: Any) -> tuple[str, ...]:
    """Names given at construction, in canonical order.

    Raises:
        TypeError: They are no sequence of strings.
        ValueError: One comes twice, or none is a KD loss.
    """
    if names is None or isinstance(names, (str, bytes)) or not isinstance(names, Sequence):
        raise errors.names_type(names)
    ordered = canonical_order(tuple(names))
    if len(set(ordered)) != len(tuple(names)):
        raise errors.names_twice(list(names))
    return ordered


def check_fields(balancer: str, data: Any, fields: Sequence[str]) -> Mapping[str, Any]:
    """``data``, if it is a mapping of exactly these fields.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(data, Mapping) or sorted(data) != sorted(fields):
        raise errors.unknown_setting(balancer, list(data) if isinstance(data, Mapping) else [type(data).__name__], fields)
    return data
