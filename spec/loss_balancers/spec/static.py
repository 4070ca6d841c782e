"""`StaticLossBalancer`: its settings, the plan of a call, and the reference step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from loss_balancers.spec import errors
from loss_balancers.spec.call import Call
from loss_balancers.spec.checks import check_mapping, elements, real_number
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order, has_distinct_idx, kd_names
from loss_balancers.spec.ops import Value
from loss_balancers.spec.settings import Settings, WeightsAre
from loss_balancers.spec.state import ReferenceState

#: How far a sum of weights may be from 1 and still count as 1 (float64 sums of decimal weights seldom hit it exactly).
SUM_TOLERANCE = 1e-9

KDLossWeight = float | Sequence[float] | Mapping[str, float]


class Plan(NamedTuple):
    """What a call applies: ``weights`` to the losses named ``names``, in canonical order, the student last.

    ``factors`` are these weights, or fewer: then the KD losses share the first factor, and are added before it is applied.
    ``dropped`` is the weight of a student loss that is not there, else 0.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    factors: tuple[float, ...]
    dropped: float


@dataclass(frozen=True)
class StaticLossBalancerSettings(Settings):
    """The validated settings of `StaticLossBalancer` (spec W1 to W6). Hashable; round-trips through JSON.

    Args:
        kd_loss_weight: A number, a sequence of numbers (or an array of one dimension), or a mapping from loss name to number;
            each in [0, 1], in sum at most 1. Held as float, tuple, or tuple of (name, weight) in canonical order.

    Raises:
        TypeError: A weight is not a real number, or `kd_loss_weight` has none of the three forms.
        ValueError: A weight or the sum is out of bounds, or there is no weight.
    """

    kd_loss_weight: Any = 0.5
    #: Makes "as given" out of what is held: float, list, tuple or dict.
    _form: type = field(init=False, repr=False, compare=False, default=float)

    balancer: ClassVar[str] = "StaticLossBalancer"
    weights_are: ClassVar[WeightsAre] = "constants"
    #: Empty: any names will do.
    names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        given = self.kd_loss_weight
        if isinstance(given, Mapping):
            held, form = _checked_mapping(given), dict
        elif (weights := elements(given)) is not None:
            held, form = _checked_sequence(weights), tuple if isinstance(given, tuple) else list
        else:
            held, form = _checked_number(given), float
        object.__setattr__(self, "kd_loss_weight", held)
        object.__setattr__(self, "_form", form)

    @property
    def as_given(self) -> Any:
        """`kd_loss_weight` in the form it was given in, a copy: float, list (of an array too), tuple or dict."""
        return self._form(self.kd_loss_weight)

    @property
    def student_loss_weight(self) -> float:
        """The weight of the student loss: the named one, else 1 minus the left-to-right float64 sum, 0 within 1e-9 (W4)."""
        if self._form is dict and STUDENT_LOSS_KEY in dict(self.kd_loss_weight):
            return dict(self.kd_loss_weight)[STUDENT_LOSS_KEY]
        rest = 1.0 - _sum(self._kd_weights)
        return 0.0 if abs(rest) <= SUM_TOLERANCE else rest

    @property
    def _kd_weights(self) -> tuple[float, ...]:
        """The KD weights in canonical order; one number if the KD losses share it."""
        held = self.kd_loss_weight
        if self._form is float:
            return (held,)
        if self._form is dict:
            return tuple(weight for name, weight in held if name != STUDENT_LOSS_KEY)
        return held

    @property
    def _kd_names(self) -> tuple[str, ...] | None:
        """The KD names that the weights are for; None if the weights are not named."""
        return kd_names(tuple(dict(self.kd_loss_weight))) if self._form is dict else None

    def exact_weights(self, call: Call, state: ReferenceState) -> list[float]:
        """The weight of each loss, in float64; 0 if it is absent."""
        del state
        weights = static_plan(self, call.names).weights
        return [weight if there else 0.0 for weight, there in zip(weights, call.present, strict=True)]

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss (spec A4 to A8)."""
        del state
        aggregate, gradients = call.ops.balance(call.values, call.formats, static_plan(self, call.names).factors, cotangent)
        return aggregate, [g if there else 0.0 for g, there in zip(gradients, call.present, strict=True)]

    @classmethod
    def examples(cls) -> dict[str, StaticLossBalancerSettings]:
        """One of each form."""
        return {"static": cls(0.7), "static-sequence": cls([0.3, 0.2]), "static-mapping": cls({"LogitsKL_0": 0.125, "MSE_1": 0.6})}

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        given = self.as_given
        return {"kd_loss_weight": list(given) if self._form is tuple else given}

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> StaticLossBalancerSettings:
        return cls(data["kd_loss_weight"])


def _sum(weights: Sequence[float]) -> float:
    total = 0.0
    for weight in weights:  # left to right in float64, as ModelOpt sums them; not math.fsum
        total += weight
    return total


def _checked_number(given: Any) -> float:
    return _in_bounds(real_number(given, "kd_loss_weight", errors.kd_loss_weight_type), "kd_loss_weight", given)


def _checked_sequence(given: Sequence[Any]) -> tuple[float, ...]:
    weights = tuple(
        _in_bounds(real_number(weight, f"kd_loss_weight[{i}]"), f"kd_loss_weight[{i}]", weight) for i, weight in enumerate(given)
    )
    if not weights:
        raise errors.no_weights(given)
    if _sum(weights) > 1.0 + SUM_TOLERANCE:
        raise errors.weights_sum(given, _sum(weights))
    return weights


def _checked_mapping(given: Mapping[Any, Any]) -> tuple[tuple[str, float], ...]:
    for name in given:
        if not isinstance(name, str):
            raise errors.weight_name_type(name)
    if all(name == STUDENT_LOSS_KEY for name in given):
        raise errors.no_weights(dict(given))
    names = canonical_order(tuple(given))
    named = tuple(
        (name, _in_bounds(real_number(given[name], f"kd_loss_weight[{name!r}]"), f"kd_loss_weight[{name!r}]", given[name]))
        for name in names
    )
    total = _sum([weight for _, weight in named])
    if STUDENT_LOSS_KEY in names and abs(total - 1.0) > SUM_TOLERANCE:
        raise errors.weights_sum_with_student(dict(given), total)
    if total > 1.0 + SUM_TOLERANCE:
        raise errors.weights_sum(dict(given), total)
    return named


def _in_bounds(weight: float, where: str, given: Any) -> float:
    if not math.isfinite(weight):
        raise errors.weight_bounds(where, weight, above=False)
    if not 0.0 <= weight <= 1.0:
        raise errors.weight_bounds(where, given, above=weight > 1.0)
    return weight


@lru_cache(maxsize=1024)
def static_plan(settings: StaticLossBalancerSettings, names: tuple[str, ...]) -> Plan:
    """What a call with losses of these names applies; worked out once per set of names.

    Args:
        settings: The balancer's settings.
        names: The names of the losses in canonical order.

    Raises:
        ValueError: Count or names do not match, or a sequence of weights meets names without distinct idx (W5).
    """
    kd = kd_names(names)
    weights = settings._kd_weights
    named = settings._kd_names
    shared = isinstance(settings.kd_loss_weight, float)
    if shared:
        weights = weights * len(kd)
    elif named is not None:
        if named != kd:
            raise errors.names_mismatch(named, kd)
    else:
        if len(weights) != len(kd):
            raise errors.count_mismatch(weights, kd)
        if len(kd) > 1 and not has_distinct_idx(kd):
            raise errors.ambiguous_order(kd)
    student = settings.student_loss_weight
    if STUDENT_LOSS_KEY in names:
        weights, dropped = (*weights, student), 0.0
    else:
        dropped = student
    return Plan(names, weights, weights[len(kd) - 1 :] if shared else weights, dropped)


def static_reference(
    settings: StaticLossBalancerSettings, losses: Mapping[str, tuple[str, float]], cotangent: float = 1.0
) -> tuple[float, dict[str, float]]:
    """The exact aggregate of scalar losses, and the gradient to each (spec A4 to A8).

    Args:
        settings: The balancer's settings.
        losses: Name to (format, value).
        cotangent: The gradient of what follows to the aggregate, in the aggregate's format.

    Returns:
        The aggregate in the common format of the losses, and name to gradient in canonical order.
    """
    check_mapping(losses)
    call = Call.of(losses)
    aggregate, gradients = settings.exact_aggregate(call, cotangent, {})
    return aggregate, dict(zip(call.names, gradients, strict=True))
