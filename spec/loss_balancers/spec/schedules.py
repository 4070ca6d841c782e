"""Schedules: weights that change from one optimizer step to the next.

A schedule is evaluated on the host, in float64, at every step at which it changes, and becomes a table; on the device a step
is a clamp and a look-up. So the shape of a curve costs no bits. Only additions, multiplications and divisions of float64 are used,
no function of the C library: a table is the same on every machine.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.checks import element, is_time, real_number, shape_of

#: The longest schedule. A table has an entry for every step, and this one would take 800 MB.
MAX_STEPS = 100_000_000

#: 1/k! with alternating signs for the odd powers of sin up to 19: up to pi/4, the rest is below a tenth of an ulp.
_SIN = [(-1.0) ** (k // 2) / math.factorial(k) for k in range(1, 20, 2)]

_Values = np.ndarray[Any, np.dtype[np.float64]]


class Point(NamedTuple):
    """The value that a schedule has at ``step``, and how the curve gets there from the point before: "linear" or "cosine"."""

    step: int
    value: float
    shape: str = "linear"


@dataclass(frozen=True)
class Schedule:
    """A value for every step: points joined by lines and half cosines, or a table; held before its first and after its last.

    Make one with `constant`, `linear`, `cosine`, `piecewise_linear`, `warmup_constant`, `warmup_linear`, `warmup_cosine` or
    `tabulate`. Hashable; round-trips through JSON.

    Args:
        points: Where the curve goes through, by rising step.
        data: A table instead, one little-endian float64 a step.

    Raises:
        TypeError: A step is not an int, or a value is not a real number.
        ValueError: There is no value, one is not finite, or steps are out of bounds or do not rise.
    """

    points: tuple[Point, ...] = ()
    data: bytes = b""

    def __post_init__(self) -> None:
        if self.data and not self.points:
            _check_table(self.data)
        elif self.points and not self.data:
            object.__setattr__(self, "points", _checked_points(self.points))
        else:
            raise errors.schedule_values({})

    @property
    def steps(self) -> int:
        """How many steps the table has: from the last on, the value stays."""
        return self.points[-1].step + 1 if self.points else len(self.data) // 8

    def values(self) -> _Values:
        """The table: shape ``(steps,)``, float64, a new array."""
        if not self.points:
            return np.frombuffer(self.data, "<f8").astype(np.float64)
        first = self.points[0]
        return np.concatenate([np.full(first.step + 1, first.value), *(_segment(*pair) for pair in pairwise(self.points))])

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        if self.points:
            return {"points": [list(point) for point in self.points]}
        return {"table": base64.b64encode(self.data).decode("ascii")}

    @classmethod
    def from_json(cls, data: Any) -> Schedule:
        """The schedule that `as_json` described.

        Raises:
            TypeError: As at construction.
            ValueError: As at construction, or ``data`` is not such an object.
        """
        match data:
            case {"points": [_, *_] as points} if len(data) == 1 and all(isinstance(p, list) and len(p) == 3 for p in points):
                return cls(tuple(Point(*point) for point in points))
            case {"table": str(text)} if len(data) == 1 and text:
                try:
                    table = base64.b64decode(text, validate=True)
                except ValueError:
                    raise errors.not_a_schedule(data) from None
                return cls(data=table)
        raise errors.not_a_schedule(data)

    def __repr__(self) -> str:
        if self.points:
            return f"Schedule({', '.join(f'{p.step}: {p.value!r}' + (' by cosine' * (p.shape == 'cosine')) for p in self.points)})"
        return f"Schedule(table of {self.steps} steps)"


def constant(value: float) -> Schedule:
    """``value`` at every step."""
    return Schedule((Point(0, value),))


def linear(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` at step 0 to ``end`` at step ``steps`` along a line, exact at both, then ``end``.

    Args:
        start: The value at step 0.
        end: The value from step ``steps`` on.
        steps: How many optimizer steps the change takes, at least 1.

    Raises:
        TypeError: A value is not a real number, or ``steps`` is not an int.
        ValueError: A value is not finite, or ``steps`` is below 1.
    """
    return Schedule((Point(0, start), Point(steps, end)))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` in ``steps`` steps along half a cosine: ``g * start + (1 - g) * end``, ``g = (1 + cos(pi t / steps)) / 2``.

    Args, raises: as `linear`.
    """  # noqa: E501
    return Schedule((Point(0, start), Point(steps, end, "cosine")))


def piecewise_linear(values: Mapping[int, float]) -> Schedule:
    """Lines through the given values; held before the first step and after the last.

    Args:
        values: Step to value, at least one.

    Raises:
        TypeError: ``values`` is not a mapping, a step is not an int, or a value is not a real number.
        ValueError: There is no value, a step is negative, or a value is not finite.
    """
    if not isinstance(values, Mapping) or not values:
        raise errors.schedule_values(values)
    checked = {_checked_step(step): value for step, value in values.items()}  # each is an int, so that they can be sorted
    return Schedule(tuple(Point(step, checked[step]) for step in sorted(checked)))


def warmup_constant(value: float, warmup_steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``value`` in ``warmup_steps`` steps along a line, then ``value``."""
    return linear(start, value, warmup_steps)


def warmup_linear(peak: float, warmup_steps: int, end: float, steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``peak`` in ``warmup_steps`` steps, then to ``end`` at step ``steps``, both along lines."""
    return Schedule((Point(0, start), Point(warmup_steps, peak), Point(steps, end)))


def warmup_cosine(peak: float, warmup_steps: int, end: float, steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``peak`` in ``warmup_steps`` steps along a line, then to ``end`` at step ``steps`` along half a cosine."""
    return Schedule((Point(0, start), Point(warmup_steps, peak), Point(steps, end, "cosine")))


def tabulate(schedule: Callable[[int], Any], steps: int) -> Schedule:
    """Any function from step to number as a schedule: an optax schedule, say.

    It is called once for each step, here and now, and never again. A million steps take 8 MB.

    Args:
        schedule: Called with 0, 1, …, ``steps - 1``. What it returns must be a real number, or an array of one element.
        steps: How many steps the table has; the last value stays.

    Raises:
        TypeError: ``schedule`` cannot be called, ``steps`` is not an int, or a value is not a real number.
        ValueError: ``steps`` is below 1, or a value is not finite.
    """
    if not callable(schedule):
        raise errors.schedule_not_callable(schedule)
    count = _checked_step(steps)
    if count < 1:
        raise errors.schedule_steps(steps)
    return Schedule(data=np.fromiter((_finite(schedule(step), step) for step in range(count)), "<f8", count).tobytes())


def as_schedule(value: Any, where: str) -> Schedule:
    """A number as a constant schedule; a schedule as it is.

    Raises:
        TypeError: It is neither, or a number that `real_number` refuses.
        ValueError: The number is not finite.
    """
    if isinstance(value, Schedule):
        return value
    number = real_number(value, where, errors.not_a_number_or_schedule)
    if not math.isfinite(number):
        raise errors.weight_not_finite(where, number)
    return constant(number)


def _checked_points(points: Sequence[Point]) -> tuple[Point, ...]:
    checked = tuple(Point(_checked_step(p.step), _finite(p.value, p.step), _checked_shape(p.shape)) for p in points)
    for before, after in pairwise(checked):
        if after.step <= before.step:
            raise errors.schedule_order(before.step, after.step)
    return checked


def _check_table(data: bytes) -> None:
    if len(data) % 8:
        raise errors.schedule_table(len(data))
    values = np.frombuffer(data, "<f8")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise errors.weight_not_finite(f"schedule at step {bad[0]}", float(values[bad[0]]))
    _checked_step(len(values) - 1)


def _checked_step(step: Any) -> int:
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool) or is_time(step):
        raise errors.schedule_step_type(step)
    if not 0 <= step <= MAX_STEPS:
        raise errors.schedule_step_bounds(int(step), MAX_STEPS)
    return int(step)


def _checked_shape(shape: Any) -> str:
    if not isinstance(shape, str) or shape not in ("linear", "cosine"):
        raise errors.schedule_shape(shape)
    return shape


def _finite(value: Any, step: int) -> float:
    where = f"schedule at step {step}"
    if not isinstance(value, (int, float)) and shape_of(value) is not None and math.prod(value.shape) == 1:
        value = element(value, where)  # on any device: a schedule of optax returns an array on JAX's default device
    number = value if type(value) is float else real_number(value, where)
    if not math.isfinite(number):
        raise errors.weight_not_finite(where, number)
    return number


def _segment(before: Point, after: Point) -> _Values:
    """The values after ``before`` up to ``after``: near each end, that end's value and a little of the other's."""
    count = after.step - before.step
    t = np.arange(1, count + 1, dtype=np.float64)
    passed, left = t / count, (count - t) / count
    if after.shape == "cosine":
        early = passed <= 0.5
        near = _sin(math.pi / 2 * np.where(early, passed, left)) ** 2  # (1 - cos(pi p)) / 2, without cancellation
        passed, left = np.where(early, near, 1.0 - near), np.where(early, 1.0 - near, near)
    values = left * before.value + passed * after.value
    values[-1] = after.value
    # Rounding must not leave the segment: a weight of exactly 1 throughout stays exactly 1.
    return np.clip(values, min(before.value, after.value), max(before.value, after.value))


def _sin(x: _Values) -> _Values:
    """The sine of angles up to pi/4, by its Taylor series."""
    square = x * x
    total = np.full_like(x, _SIN[-1])
    for coefficient in reversed(_SIN[:-1]):
        total = total * square + coefficient
    return total * x
