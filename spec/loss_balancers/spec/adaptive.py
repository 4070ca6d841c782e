"""What adaptive methods have in common: static weights, the option that sets the total weight, and guarded ratios of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from loss_balancers.spec import errors, tables
from loss_balancers.spec.checks import real_number
from loss_balancers.spec.formats import FORMATS, round_weight
from loss_balancers.spec.ops import Ops, Value
from loss_balancers.spec.schedules import Schedule, as_schedule
from loss_balancers.spec.tables import Table

#: The greatest number of float32.
GREATEST = float(np.finfo(np.float32).max)
#: What the total weight is: as the paper has it, as many as there are losses, or one.
TotalWeight = Literal["paper", "K", "one"]
Held = TypeVar("Held")


def named_weights(given: Any, names: Sequence[str]) -> tuple[tuple[str, Schedule], ...]:
    """Static weights by name: a number or a schedule for each loss, 1 for a loss that ``given`` does not name.

    Raises:
        TypeError: ``given`` is not a mapping, or a weight is neither a number nor a schedule.
        ValueError: A name is not one of ``names``.
    """
    return named("weights", given, names, 1.0, lambda where, value: as_schedule(value, where))


def named(
    setting: str, given: Any, names: Sequence[str], default: Any, checked: Callable[[str, Any], Held]
) -> tuple[tuple[str, Held], ...]:
    """A setting by name: for each loss what ``checked`` makes of its value and of where it stands.

    Raises:
        TypeError: ``given`` is neither None nor a mapping. Else: see ``checked``.
        ValueError: A name is not one of ``names``. Else: see ``checked``.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise errors.not_by_name(setting, given)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise errors.names_unknown(setting, unknown, names)
    return tuple((name, checked(f"{setting}[{name!r}]", given.get(name, default))) for name in names)


def weight_table(weights: Sequence[tuple[str, Schedule]], factor: float = 1.0) -> Table:
    """Static weights times ``factor`` at every step, float32: a column for each loss.

    Raises:
        ValueError: A weight is negative, or beyond float32.
    """
    schedules = {f"weights[{name!r}]": schedule for name, schedule in weights}
    table = tables.columns(schedules)
    tables.check_bounds(table, list(schedules), 0.0, GREATEST)
    return tables.rounded(np.minimum(table * factor, GREATEST))


def checked_total_weight(given: Any) -> TotalWeight:
    """The option, as it may be.

    Raises:
        ValueError: It is not one of the three.
    """
    if not isinstance(given, str) or given not in get_args(TotalWeight):
        raise errors.total_weight_unknown(given, get_args(TotalWeight))
    return given  # type: ignore[reportReturnType]


def total_factor(total_weight: TotalWeight, paper: float, count: int) -> float:
    """What the weights of a method are multiplied by, whose total is ``paper`` for this number of losses (spec B1)."""
    return {"paper": 1.0, "K": count / paper, "one": 1.0 / paper}[total_weight]


def in_bounds(where: str, given: Any, low: float, high: float = GREATEST) -> float:
    """A number in [low, high].

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of bounds.
    """
    value = real_number(given, where)
    if not low <= value <= high:
        raise errors.out_of_bounds(where, value, low, high)
    return value


def positive(where: str, given: Any) -> float:
    """A number that float32 holds as a normal number above zero.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above zero, or float32 does not hold it as a normal number.
    """
    value = in_bounds(where, given, 0.0)
    if round_weight(value, "f32") == 0.0:
        raise errors.not_positive(where, value, FORMATS["f32"].tiny)
    return value


def bound_of(max_ratio: float | None) -> float:
    """``max_ratio`` as the arithmetic uses it: without one, the greatest number of float32."""
    return GREATEST if max_ratio is None else round_weight(max_ratio, "f32")


def checked_max_ratio(given: Any) -> float | None:
    """None, or a number of at least 1 that float32 holds.

    Raises:
        TypeError: It is not a number.
        ValueError: It is below 1, or beyond float32.
    """
    return None if given is None else in_bounds("max_ratio", given, 1.0)


def clamped(ops: Ops, x: Value, bound: float) -> Value:
    """``x``, or the nearer of -bound and bound; NaN stays."""
    return ops.choose(ops.above(x, bound), bound, ops.choose(ops.above(-bound, x), -bound, x))


def ratio(ops: Ops, x: Value, reference: Value, bound: float) -> Value:
    """The ratio of a number to its reference, within the bound; 1 where the reference says nothing (spec B2)."""
    kept = ops.flush(reference, "f32")
    known = ops.every([ops.above(ops.magnitude(kept), 0.0), ops.finite(kept), ops.finite(x)])
    # The choice of operands first: a quotient that is not used must not be 0 / 0 either.
    quotient = ops.div(ops.choose(known, x, 1.0), ops.choose(known, kept, 1.0), "f32")
    return clamped(ops, quotient, bound)


def shares(ops: Ops, exponents: Sequence[Value], weights: Sequence[Value]) -> list[Value]:
    """The softmax of finite exponents, each share times its weight: div(rmul(c_k, e_k), t) (spec B3)."""
    powers, total = ops.powers_and_total(exponents)
    return [ops.div(ops.rmul(c, e, "f32"), total, "f32") for c, e in zip(weights, powers, strict=True)]
