"""Runs vectors on lanes and counts, cell by cell, what is bit-identical to the exact reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import NamedTuple

from loss_balancers.parity.bits import describe, from_bits, same, to_bits, ulp_distance
from loss_balancers.parity.lanes import LABELS, Lane, Result, find_lanes
from loss_balancers.spec import Group, Vector


class Difference(NamedTuple):
    """One result that is not the reference's."""

    vector: str
    what: str
    format: str
    expected: int
    actual: int

    @property
    def ulp(self) -> int | None:
        """The distance in ulp, None where one of the two is NaN."""
        return ulp_distance(self.actual, self.expected, self.format)

    def __str__(self) -> str:
        return f"{self.vector}, {self.what}: {describe(self.actual, self.expected, self.format)}"


class Cell(NamedTuple):
    """A lane in one column: how many vectors ran, how many were identical, the first difference and the worst."""

    lane: str
    label: str
    vectors: int
    identical: int
    first: Difference | None
    worst: Difference | None


def run_lane(lane: Lane, groups: Sequence[Group], labels: Sequence[str] = LABELS) -> list[Cell]:
    """One row of the matrix, in this process.

    Args:
        lane: The lane, present on this host.
        groups: Golden vectors.
        labels: The columns to run.
    """
    return [_cell(lane, label, [group for group in groups if group.label == label]) for label in labels]


def run_lanes(names: Sequence[str], groups: Sequence[Group], advance: Callable[[Cell], None]) -> dict[str, list[Cell]]:
    """Rows of the matrix, by lane name, a cell at a time in two worker processes: most of the time goes to the compilers.

    Args:
        names: Lanes that are present on this host.
        groups: Golden vectors.
        advance: Called with each cell as it is done.
    """
    # The compiled lanes first: they take longest.
    cells = sorted(((name, label) for name in names for label in LABELS), key=lambda cell: not cell[0].endswith("compiled"))
    done: dict[tuple[str, str], Cell] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_run_cell, name, label, [group for group in groups if group.label == label]): (name, label)
            for name, label in cells
        }
        try:
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: [done[name, label] for label in LABELS] for name in names}


def _run_cell(name: str, label: str, groups: Sequence[Group]) -> Cell:
    lane = next(lane for lane in find_lanes() if lane.name == name)
    return _cell(lane, label, groups)


def _cell(lane: Lane, label: str, groups: Sequence[Group]) -> Cell:
    vectors, identical = 0, 0
    first: Difference | None = None
    worst: Difference | None = None
    for index, results in enumerate(lane.run(groups)):
        for group, result in zip(groups, results, strict=True):
            differences = _differences(f"{group.id}[{index}]", group, group.vectors[index], result)
            vectors += 1
            identical += not differences
            for difference in differences:
                first = first or difference
                worst = difference if worst is None or _badness(difference) > _badness(worst) else worst
    expected = sum(len(group.vectors) for group in groups)
    if vectors != expected:
        raise RuntimeError(f"The lane {lane.name} gave {vectors} results for {expected} vectors.")
    return Cell(lane.name, label, vectors, identical, first, worst)


def _differences(name: str, group: Group, vector: Vector, result: Result) -> list[Difference]:
    found = []
    expected = {"the aggregate": (group.result, vector.aggregate, result.aggregate)}
    for loss, gradient in vector.gradients.items():
        expected[f"the gradient to {loss}"] = (group.formats[loss], gradient, result.gradients[loss])
    for what, (fmt, value, (actual_fmt, actual)) in expected.items():
        if actual_fmt != fmt:  # another format: compared in the wider of the two, as a difference in any case
            found.append(
                Difference(
                    name, f"{what} ({actual_fmt}, not {fmt})", "f64", _as_f64(to_bits(value, fmt), fmt), _as_f64(actual, actual_fmt)
                )
            )
        elif not same(actual, to_bits(value, fmt), fmt):
            found.append(Difference(name, what, fmt, to_bits(value, fmt), actual))
    return found


def _as_f64(bits: int, fmt: str) -> int:
    return to_bits(from_bits(bits, fmt), "f64")


def _badness(difference: Difference) -> float:
    return math.inf if difference.ulp is None else difference.ulp
