"""Schedules side by side: the weights of a balancer at every step, checked when it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.formats import FORMATS
from loss_balancers.spec.schedules import Schedule

Table = np.ndarray[Any, Any]


def columns(schedules: Mapping[str, Schedule]) -> Table:
    """The values of schedules at every step, a column each: shape ``(steps, len(schedules))``, float64.

    The table is as long as the longest schedule; the others hold their last value.
    """
    steps = max(schedule.steps for schedule in schedules.values())
    table = np.empty((steps, len(schedules)))
    for column, schedule in zip(table.T, schedules.values(), strict=True):
        values = schedule.values()
        column[: len(values)] = values
        column[len(values) :] = values[-1]
    return table


def check_bounds(table: Table, names: Sequence[str], low: float, high: float) -> None:
    """Raises if a weight is outside [low, high] (spec S2).

    Raises:
        ValueError: A weight is out of bounds; the error names the first such step, and the weight.
    """
    outside = (table < low) | (table > high)
    if outside.any():
        step, column = map(int, np.argwhere(outside)[0])
        raise errors.scheduled_weight_bounds(names[column], step, float(table[step, column]), low, high)


def row_sums(table: Table) -> Table:
    """The sum of each row, left to right in float64."""
    total = np.zeros(len(table))
    for column in table.T:
        total = total + column
    return total


def rounded(table: Table) -> Table:
    """The weights as the arithmetic uses them: rounded to float32 and flushed (spec S3)."""
    with np.errstate(over="ignore"):
        narrow = table.astype(np.float32)
    return np.where(np.abs(narrow) <= FORMATS["f32"].tiny, np.float32(0), narrow)


def at(table: Table, step: int) -> Table:
    """The row of a step; from the table's end on, the last row."""
    return table[min(step, len(table) - 1)]
