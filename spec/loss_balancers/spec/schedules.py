"""Schedules: weights that change from one optimizer step to the next.

A schedule is evaluated on the host, in float64, at every step at which it changes, and becomes a table; on the device a step
is a clamp and a look-up. So the shape of a curve costs no bits. Only additions, multiplications and divisions of float64 are used,
no function of the C library: a table is the same on every machine.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.checks import real_number

#: 1/k! with alternating signs for the odd powers of sin up to 21: at most pi/2, the rest is below half an ulp.
_SIN = [(-1.0) ** (k // 2) / math.factorial(k) for k in range(1, 23, 2)]


class Point(NamedTuple):
    """The value that a schedule has at ``step``, and how it gets there from the point before: "linear" or "cosine"."""

    step: int
    value: float
    shape: str = "linear"


@dataclass(frozen=True)
class Schedule:
    """A value for every step: points joined by lines and half cosines, or a table; held before its first and after its last.

    Make one with `constant`, `linear`, `cosine`, `piecewise_linear`, `warmup_constant`, `warmup_linear`, `warmup_cosine` or
    `tabulate`. Hashable; round-trips through JSON.

    Args:
        points: Where the curve goes through, by rising step. Empty if ``data`` is given.
        data: A table, one little-endian float64 a step.
    """

    points: tuple[Point, ...] = ()
    data: bytes = b""

    @property
    def steps(self) -> int:
        """How many steps the table has: from the last on, the value stays."""
        return self.points[-1].step + 1 if self.points else len(self.data) // 8

    def values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The table: shape ``(steps,)``, float64."""
        return _values(self)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        if self.points:
            return {"points": [list(point) for point in self.points]}
        return {"table": base64.b64encode(self.data).decode("ascii")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule that `as_json` described.

        Raises:
            TypeError: As at construction.
            ValueError: As at construction, or ``data`` is no such object.
        """
        try:
            if list(data) == ["points"]:
                return _through([Point(*point) for point in data["points"]])
            if list(data) == ["table"]:
                return _tabulated(np.frombuffer(base64.b64decode(data["table"], validate=True), "<f8").tolist())
        except (binascii.Error, TypeError) as error:
            raise errors.not_a_schedule(data) from error
        raise errors.not_a_schedule(data)

    def __repr__(self) -> str:
        if self.points:
            return f"Schedule({', '.join(f'{p.step}: {p.value!r}' + (' by cosine' * (p.shape == 'cosine')) for p in self.points)})"
        return f"Schedule(table of {self.steps} steps)"


def constant(value: float) -> Schedule:
    """``value`` at every step."""
    return _through([Point(0, value)])


def linear(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` at step 0 to ``end`` at step ``steps`` along a line, exact at both, then ``end``.

    Args:
        start: The value at step 0.
        end: The value from step ``steps`` on.
        steps: How many optimizer steps the change takes, at least 1.

    Raises:
        TypeError: A value is no real number, or ``steps`` no int.
        ValueError: A value is not finite, or ``steps`` below 1.
    """
    return _through([Point(0, start), Point(steps, end)])


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` in ``steps`` steps along half a cosine: ``g * start + (1 - g) * end``, ``g = (1 + cos(pi t / steps)) / 2``.

    Args, raises: as `linear`.
    """  # noqa: E501
    return _through([Point(0, start), Point(steps, end, "cosine")])


def piecewise_linear(values: Mapping[int, float]) -> Schedule:
    """Lines through the given values; held before the first step and after the last.

    Args:
        values: Step to value, at least one.

    Raises:
        TypeError: ``values`` is no mapping, a step no int, or a value no real number.
        ValueError: There is none, a step is negative, or a value not finite.
    """
    if not isinstance(values, Mapping):
        raise errors.schedule_values(values)
    for step in values:
        _checked_step(step)
    return _through([Point(step, values[step]) for step in sorted(values)])


def warmup_constant(value: float, warmup_steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``value`` in ``warmup_steps`` steps along a line, then ``value``."""
    return linear(start, value, warmup_steps)


def warmup_linear(peak: float, warmup_steps: int, end: float, steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``peak`` in ``warmup_steps`` steps, then to ``end`` at step ``steps``, both along lines."""
    return _through([Point(0, start), Point(warmup_steps, peak), Point(steps, end)])


def warmup_cosine(peak: float, warmup_steps: int, end: float, steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to ``peak`` in ``warmup_steps`` steps along a line, then to ``end`` at step ``steps`` along half a cosine."""
    return _through([Point(0, start), Point(warmup_steps, peak), Point(steps, end, "cosine")])


def tabulate(schedule: Callable[[int], Any], steps: int) -> Schedule:
    """Any function from step to number as a schedule: an optax schedule, say.

    Called once a step here and now, never again. A million steps take 8 MB.

    Args:
        schedule: Called with 0, 1, …, ``steps - 1``. What it returns must be a real number, or an array of one element.
        steps: How many steps the table has; the last value stays.

    Raises:
        TypeError: ``schedule`` cannot be called, ``steps`` is no int, or a value no real number.
        ValueError: ``steps`` is below 1, or a value not finite.
    """
    if not callable(schedule):
        raise errors.schedule_not_callable(schedule)
    count = _checked_step(steps)
    if count < 1:
        raise errors.schedule_steps(steps)
    return _tabulated([schedule(step) for step in range(count)])


def as_schedule(value: Any, where: str) -> Schedule:
    """A number as a constant schedule; a schedule as it is.

    Raises:
        TypeError: It is neither.
    """
    return value if isinstance(value, Schedule) else constant(real_number(value, where))


def _through(points: Sequence[Point]) -> Schedule:
    if not points:
        raise errors.schedule_values({})
    checked = tuple(Point(_checked_step(p.step), _finite(p.value, p.step), _checked_shape(p.shape)) for p in points)
    for before, after in pairwise(checked):
        if after.step <= before.step:
            raise errors.schedule_order(before.step, after.step)
    return Schedule(points=checked)


def _tabulated(values: Sequence[Any]) -> Schedule:
    if len(values) == 0:
        raise errors.schedule_values({})
    return Schedule(data=np.array([_finite(value, step) for step, value in enumerate(values)], "<f8").tobytes())


def _checked_step(step: Any) -> int:
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool):
        raise errors.schedule_step_type(step)
    if step < 0:
        raise errors.schedule_step_bounds(int(step))
    return int(step)


def _checked_shape(shape: Any) -> str:
    if shape not in ("linear", "cosine"):
        raise errors.not_a_schedule(shape)
    return shape


def _finite(value: Any, step: int) -> float:
    if not isinstance(value, (int, float)) and np.size(value) == 1 and getattr(value, "dtype", None) is not None:
        value = np.asarray(value, np.float64).item()  # an array of one element, as optax's schedules return
    number = real_number(value, f"schedule at step {step}")
    if not math.isfinite(number):
        raise errors.weight_not_finite(f"schedule at step {step}", number)
    return number


@lru_cache(maxsize=64)
def _values(schedule: Schedule) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not schedule.points:
        values = np.frombuffer(schedule.data, "<f8").astype(np.float64)
    else:
        first = schedule.points[0]
        parts = [np.full(first.step + 1, first.value)]
        parts += [_segment(*pair) for pair in pairwise(schedule.points)]
        values = np.concatenate(parts)
    values.flags.writeable = False
    return values


def _segment(before: Point, after: Point) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values after ``before`` up to ``after``."""
    count = after.step - before.step
    p = np.arange(1, count + 1, dtype=np.float64) / count
    g = 1.0 - p if after.shape == "linear" else 0.5 + 0.5 * _cos_pi(p)
    values = g * before.value + (1.0 - g) * after.value
    values[-1] = after.value
    # Rounding must not leave the segment: a weight of exactly 1 throughout stays exactly 1.
    return np.clip(values, min(before.value, after.value), max(before.value, after.value))


def _cos_pi(p: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """cos(pi p) for p in [0, 1], as sin(pi (1/2 - p)) by its Taylor series."""
    x = math.pi * (0.5 - p)
    square = x * x
    total = np.full_like(x, _SIN[-1])
    for coefficient in reversed(_SIN[:-1]):
        total = total * square + coefficient
    return total * x
