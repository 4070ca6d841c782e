"""`LogitsAndIntermediatesLossBalancer`: its settings, the roles of the losses, and its exact aggregate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from loss_balancers.spec import errors, tables
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import compute_format, result_format, round_weight
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, kd_names
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.schedules import Schedule, as_schedule, linear
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries
from loss_balancers.spec.tables import Table


class Roles(NamedTuple):
    """The places, in canonical order, of the reference loss, the intermediate losses, and the student loss if it counts."""

    reference: int
    intermediates: tuple[int, ...]
    student: int | None


class Ratios(NamedTuple):
    """The exact weights of a call: of the mean of the intermediates, of the KD losses, and the scale."""

    ratio: Value
    balance: Value
    scale: float


@dataclass(frozen=True)
class LogitsAndIntermediatesLossBalancerSettings(Settings):
    """The validated settings of `LogitsAndIntermediatesLossBalancer` (spec L1 to L5). Hashable; round-trips through JSON.

    Args:
        kd_loss_scale: What the balanced KD losses are multiplied by: a number or a schedule, finite and not negative.
        skip_original_loss: Whether the student loss is left out.
        reference: The name of the loss to which the intermediate losses are scaled. None: the one whose name holds "Logits".

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The scale is negative or not finite at some step, or ``reference`` is ``student_loss``.
    """

    kd_loss_scale: Any = 1.0
    skip_original_loss: Any = False
    reference: Any = None

    balancer: ClassVar[str] = "LogitsAndIntermediatesLossBalancer"
    #: Empty: any names will do, since the roles follow from the names of each call.
    names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.skip_original_loss, bool):
            raise errors.not_a_bool("skip_original_loss", self.skip_original_loss)
        if self.reference is not None and (not isinstance(self.reference, str) or self.reference == STUDENT_LOSS_KEY):
            raise errors.reference_name(self.reference)
        object.__setattr__(self, "kd_loss_scale", as_schedule(self.kd_loss_scale, "kd_loss_scale"))
        self.table  # noqa: B018  checks every step

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """What the balancer keeps: its counters."""
        return base_entries(0)

    @cached_property
    def table(self) -> Table:
        """The scale of every step, float32: one column."""
        return tables.rounded(self._scale)

    @property
    def constant_scale(self) -> float | None:
        """The scale in float64 if it never changes, else None."""
        return float(self._scale[0, 0]) if len(self._scale) == 1 else None

    @cached_property
    def _scale(self) -> Table:
        table = tables.columns({"kd_loss_scale": self.kd_loss_scale})
        tables.check_bounds(table, ["kd_loss_scale"], 0.0, float(np.finfo(np.float32).max))
        return table

    def roles(self, names: tuple[str, ...]) -> Roles:
        """The role of each loss, for names in canonical order.

        Raises:
            ValueError: There is no reference loss, or more than one; or no student loss where it counts.
        """
        return roles_of(names, self.reference, self.skip_original_loss)

    def exact_ratios(self, roles: Roles, call: Call, state: ReferenceState) -> Ratios:
        """The weights of a call (spec L2 to L4)."""
        ops, compute = call.ops, compute_format(call.formats)
        means = call.means(compute)
        ratio = 0.0
        if not call.present[roles.reference]:
            ratio = 1.0
        elif roles.intermediates:
            mean = _mean(roles, call, means, compute)
            of_positive = _finite_or(ops, 0.0, ops.div(means[roles.reference], mean, compute))
            ratio = ops.choose(ops.above(mean, 0.0), of_positive, ops.choose(ops.equal(mean, 0.0), 0.0, 1.0))
        scale = self.constant_scale
        if scale is None:
            scale = float(tables.at(self.table, state["steps"])[0])
        balance = 1.0
        if roles.student is not None:
            distilled, student = _distilled(roles, call, means, ratio, compute), means[roles.student]
            positive = ops.every([ops.above(distilled, 0.0), ops.above(student, 0.0)])
            balance = ops.choose(positive, _finite_or(ops, 1.0, ops.div(student, distilled, compute)), 1.0)
        return Ratios(ratio, balance, scale)

    @staticmethod
    def weight_format(formats: Iterable[str]) -> str:
        """The format of the weights: the compute format of losses of these formats."""
        return compute_format(formats)

    def exact_weights(self, call: Call, state: ReferenceState) -> list[Value]:
        """The weight of each loss, in the compute format: 0 for a student loss that is left out, and for a loss that is absent."""
        ops, roles, compute = call.ops, self.roles(call.names), compute_format(call.formats)
        ratio, balance, scale = self.exact_ratios(roles, call, state)
        kd = 1.0 if roles.student is None else ops.rmul(balance, round_weight(scale, compute), compute)
        share = ops.div(ratio, _number(roles, call), compute)
        weights = [ops.rmul(kd, share, compute) if i in roles.intermediates else 0.0 for i in range(len(call.names))]
        weights[roles.reference] = kd
        if roles.student is not None:
            weights[roles.student] = 1.0
        return [weight if there else 0.0 for weight, there in zip(weights, call.present, strict=True)]

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec L5)."""
        ops, roles = call.ops, self.roles(call.names)
        ratio, balance, scale = self.exact_ratios(roles, call, state)
        formats, compute, result = call.formats, compute_format(call.formats), result_format(call.formats)
        distilled = _distilled(roles, call, call.in_format(compute), ratio, compute)
        gradients: list[Value] = [0.0] * len(call.names)
        if roles.student is None:
            (g,) = ops.weighted_sum_gradient(cotangent, (compute,), (1.0,), result)
            aggregate = ops.weighted_sum([distilled], (compute,), (1.0,), result)
        else:
            balanced = ops.weighted_sum([distilled], (compute,), (balance,), compute)
            outer = (compute, formats[roles.student])
            aggregate = ops.weighted_sum([balanced, call.values[roles.student]], outer, (scale, 1.0), result)
            g, gradients[roles.student] = ops.weighted_sum_gradient(cotangent, outer, (scale, 1.0), result)
            (g,) = ops.weighted_sum_gradient(g, (compute,), (balance,), compute)
        to_reference, to_mean = ops.weighted_sum_gradient(g, (formats[roles.reference], compute), (1.0, ratio), compute)
        gradients[roles.reference] = to_reference
        for i in roles.intermediates:
            to_total = ops.div(to_mean, _number(roles, call), compute)
            (gradients[i],) = ops.weighted_sum_gradient(to_total, (formats[i],), (1.0,), compute)
        return aggregate, [g if there else 0.0 for g, there in zip(gradients, call.present, strict=True)]

    @classmethod
    def examples(cls) -> dict[str, LogitsAndIntermediatesLossBalancerSettings]:
        """With a scale that changes, and with another loss as the reference."""
        return {"logits": cls(linear(0.0, 1.0, 10)), "logits-reference": cls(0.3, False, "MSE_1")}

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> LogitsAndIntermediatesLossBalancerSettings:
        return cls(**{**data, "kd_loss_scale": Schedule.from_json(data["kd_loss_scale"])})


def _number(roles: Roles, call: Call) -> float:
    """The divisor of the mean: how many intermediate losses are present, at least 1."""
    return float(sum(call.present[i] for i in roles.intermediates) or 1)


def _mean(roles: Roles, call: Call, losses: Sequence[Value], compute: str) -> Value:
    """The mean of the intermediate losses that are present; ``losses`` are in the compute format."""
    intermediates = [losses[i] for i in roles.intermediates]
    ones = (1.0,) * len(intermediates)
    total = call.ops.weighted_sum(intermediates, (compute,) * len(intermediates), ones, compute)
    return call.ops.div(total, _number(roles, call), compute)


def _distilled(roles: Roles, call: Call, losses: Sequence[Value], ratio: Value, compute: str) -> Value:
    """The reference loss and the intermediates scaled to it."""
    if not roles.intermediates:
        return losses[roles.reference]
    terms = [losses[roles.reference], _mean(roles, call, losses, compute)]
    return call.ops.weighted_sum(terms, (compute, compute), (1.0, ratio), compute)


def _finite_or(ops: Ops, otherwise: float, value: Value) -> Value:
    return ops.choose(ops.finite(value), value, otherwise)


@lru_cache(maxsize=1024)
def roles_of(names: tuple[str, ...], reference: str | None, skip_original_loss: bool) -> Roles:
    """`LogitsAndIntermediatesLossBalancerSettings.roles`, as a function of the two settings that it depends on."""
    kd = kd_names(names)
    found = [name for name in kd if name == reference or (reference is None and "Logits" in name)]
    if len(found) != 1:
        raise errors.reference_count(reference, found, kd)
    student = STUDENT_LOSS_KEY in names
    if not student and not skip_original_loss:
        raise errors.no_student_loss(names)
    place = names.index(found[0])
    intermediates = tuple(i for i in range(len(kd)) if i != place)
    return Roles(place, intermediates, None if skip_original_loss else len(names) - 1)
