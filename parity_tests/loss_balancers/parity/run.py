"""Runs vectors on lanes and finds, cell by cell, what is not bit-identical to the exact reference."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import cycle, islice
from multiprocessing import get_context
from typing import NamedTuple

from loss_balancers.parity.bits import describe, from_bits, same, to_bits, ulp_distance
from loss_balancers.parity.compiled import NotCompiledError
from loss_balancers.parity.host import Flag, flags_of
from loss_balancers.parity.lanes import LABELS, Lane, find_lanes
from loss_balancers.parity.own_process import begin, one_process, where_it_runs
from loss_balancers.parity.vectors import Case, Value, case_name, cases, columns, digest, shape, values_of
from loss_balancers.spec import Group, Vector

#: The labels that run with another, since a compilation has its price: both formats of 16 bits, and those with float64, for which
#: JAX needs a switch.
_RELATED = {"f16": "bf16", "mixed": "f64"}

#: Groups by balancer and label.
Columns = dict[tuple[str, str], list[Group]]


class Difference(NamedTuple):
    """One value of a case that is not the reference's: in another format, or with other bits."""

    case: str
    what: str
    format: str
    expected: int
    actual_format: str
    actual: int

    @property
    def title(self) -> str:
        """What differs, and the format where that is what differs."""
        return self.what if self.actual_format == self.format else f"{self.what} ({self.actual_format}, not {self.format})"

    @property
    def comparable(self) -> tuple[str, int, int]:
        """A format that both values can be compared in, the bits expected and the actual ones."""
        if self.actual_format == self.format:
            return self.format, self.expected, self.actual
        return (
            "f64",
            to_bits(from_bits(self.expected, self.format), "f64"),
            to_bits(from_bits(self.actual, self.actual_format), "f64"),
        )

    @property
    def ulp(self) -> int | None:
        """The distance in ulp, None where one of the two is NaN."""
        fmt, expected, actual = self.comparable
        return ulp_distance(actual, expected, fmt)

    def __str__(self) -> str:
        fmt, expected, actual = self.comparable
        return f"{self.case}, {self.title}: {describe(actual, expected, fmt)}"


class Cell(NamedTuple):
    """One balancer on one lane in one column: a digest for each case, in the order of the vectors, and every difference.

    Or, where the device lacks a format of the column, none of them, and ``absent`` says why.
    """

    lane: str
    balancer: str
    label: str
    digests: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    absent: str | None = None

    @property
    def vectors(self) -> int:
        """How many cases ran."""
        return len(self.digests)

    @property
    def identical(self) -> int:
        """How many of them have the bits of the reference in every value."""
        return self.vectors - len({difference.case for difference in self.differences})

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return next(iter(self.differences), None)

    @property
    def worst(self) -> Difference | None:
        """The difference with the largest distance; a NaN against a number is the worst."""
        return max(self.differences, key=lambda d: math.inf if d.ulp is None else d.ulp, default=None)


def run_lane(lane: Lane, groups: Sequence[Group], labels: Sequence[str] = LABELS) -> list[Cell]:
    """One row of the matrix, in this process.

    Args:
        lane: The lane, present on this host.
        groups: Golden vectors.
        labels: The columns to run.
    """
    chosen = columns(groups, labels)
    cells = {(cell.balancer, cell.label): cell for together in _together(chosen) for cell in _cells(lane, together)}
    return [cells[pair] for pair in chosen]


def _together(chosen: Columns) -> list[Columns]:
    """The columns that one run of a lane can serve: of related labels, and of one shape. A compilation for each would take minutes.

    What a balancer without state gives depends on no order: its vectors join where they fit.
    """
    found: dict[tuple[str, tuple[int, int]], Columns] = {}
    for (balancer, label), groups in sorted(chosen.items(), key=lambda column: _free(column[1][0])):
        own = (_RELATED.get(label, label), shape(groups[0]))
        place = next((other for other in found if other[0] == own[0] and _fits(groups[0], other[1])), own)
        found.setdefault(place, {})[balancer, label] = groups
    return list(found.values())


def _free(group: Group) -> bool:
    """Whether the balancer has no state, so that any step may follow any other."""
    return not group.vectors[0].state


def _fits(group: Group, of_others: tuple[int, int]) -> bool:
    return shape(group) == of_others or (_free(group) and len(group.vectors) <= math.prod(of_others))


def _laid_out(groups: Sequence[Group]) -> list[Group]:
    """Groups that run together in the shape of the first: those without state are filled up from the front."""
    sequences, steps = shape(groups[0])
    return [group._replace(sequences=_in_rows(group.vectors, sequences, steps)) if _free(group) else group for group in groups]


def _in_rows(vectors: Sequence[Vector], count: int, length: int) -> tuple[tuple[Vector, ...], ...]:
    again = cycle(vectors)
    return tuple(tuple(islice(again, length)) for _ in range(count))


class Ran(NamedTuple):
    """What `run_lanes` gives, by lane: the rows of the matrix, why others are absent after all, and the flags where each ran."""

    rows: dict[str, list[Cell]]
    absent: dict[str, str]
    flags: dict[str, dict[str, Flag]]


def run_lanes(names: Sequence[str], groups: Sequence[Group], advance: Callable[[Cell], None]) -> Ran:
    """Rows of the matrix, by lane name, a cell at a time.

    Those of the CPU in two worker processes, because most of the time goes to the compilers. Those of any other device in this
    process, because a TPU belongs to one process, and JAX takes most of a GPU's memory for one.

    Args:
        names: Lanes on devices of this host.
        groups: Golden vectors.
        advance: Called with each cell as it is done.
    """
    chosen = columns(groups, LABELS)
    batches = _together(chosen)
    lanes = {name: lane for name, lane in _lanes_here().items() if name in names}
    here = [name for name, lane in lanes.items() if lane.device != "cpu"]
    rest = sorted(lanes.keys() - set(here), key=_turn)
    done: dict[tuple[str, str, str], Cell] = {}
    ran = Ran({}, {}, {})

    def finish(job: _Job) -> None:
        ran.absent.update(job.absent)
        ran.flags.update(job.flags)
        for cell in job.cells:
            done[cell.lane, cell.balancer, cell.label] = cell
            advance(cell)

    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            # First no column at all, to find out whether there is a compiler. Inductor then compiles its headers, the first time,
            # which takes as long as a lane and a lock on them: meanwhile the other worker runs lanes that need none.
            jobs = [(name, []) for name in rest if name.endswith("compiled")]
            jobs += [(name, job) for name in rest for job in _jobs(lanes[name], batches)]
            futures = [pool.submit(_run_cells, *job) for job in jobs]
            for name in here:
                for batch in batches:
                    finish(_run_cells(name, [batch]))
            for future in as_completed(futures):
                finish(future.result())
        except BaseException:
            workers = list((pool._processes or {}).values())  # to wait for what they run may take minutes
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise
    ran.rows.update({name: [done[name, *pair] for pair in chosen] for name in names if name not in ran.absent})
    return ran


def _turn(name: str) -> tuple[bool, bool, str]:
    """When a lane gets its turn: those with one long job first, then those that take longest, Inductor's after JAX's."""
    return not _lanes_here()[name].at_once, not name.endswith(("compiled", "step")), name


def _jobs(lane: Lane, batches: Sequence[Columns]) -> list[list[Columns]]:
    """What a worker does of a lane before it turns to others."""
    return [list(batches)] if lane.at_once else [[batch] for batch in batches]


def _begin_worker() -> None:
    begin()
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX starts every device that it finds, as soon as it is asked for one


@cache
def _lanes_here() -> dict[str, Lane]:
    return {lane.name: lane for lane in find_lanes()}


class _Job(NamedTuple):
    """What a job gives: cells and the flags that they were computed with, by lane; or why the lane is absent."""

    cells: list[Cell]
    absent: dict[str, str] = {}  # noqa: RUF012  # of a NamedTuple, and never changed
    flags: dict[str, dict[str, Flag]] = {}  # noqa: RUF012


def _run_cells(name: str, job: Sequence[Columns]) -> _Job:
    """The cells of some columns on a lane. Where the lane is absent none, but why: known before, or found by what ran."""
    lane = _lanes_here()[name]
    if (reason := lane.why_absent()) is not None:
        return _Job([], {name: reason})
    with one_process():
        try:
            cells = [cell for together in job for cell in _cells(lane, together)]
        except NotCompiledError as error:
            return _Job([], {name: str(error)})
        return _Job(cells, flags={name: where_it_runs(lane.run, flags_of, lane.framework)} if job else {})


def _cells(lane: Lane, together: Columns) -> list[Cell]:
    reasons = {pair: lane.why_no_column(groups) for pair, groups in together.items()}
    absent = [Cell(lane.name, *pair, absent=reason) for pair, reason in reasons.items() if reason is not None]
    present = {pair: groups for pair, groups in together.items() if reasons[pair] is None}
    return [*absent, *_cells_of_present(lane, present)] if present else absent


def _cells_of_present(lane: Lane, together: Columns) -> list[Cell]:
    groups = [group for chosen in together.values() for group in chosen]
    given: dict[tuple[str, str], tuple[Value, ...]] = {}
    for index, results in enumerate(lane.run(_laid_out(groups))):
        for group, result in zip(groups, results, strict=True):
            if index < len(group.vectors):
                given[group.balancer, case_name(group, index)] = values_of(result)
    expected = {pair: cases(chosen) for pair, chosen in together.items()}
    if set(given) != {(balancer, case.name) for (balancer, _), of_pair in expected.items() for case in of_pair}:
        count = sum(map(len, expected.values()))
        raise RuntimeError(f"The lane {lane.name} gave {len(given)} results for {count} vectors.")
    return [
        Cell(
            lane=lane.name,
            balancer=balancer,
            label=label,
            digests=tuple(digest(given[balancer, case.name]) for case in of_pair),
            differences=tuple(different for case in of_pair for different in differences(case, given[balancer, case.name])),
        )
        for (balancer, label), of_pair in expected.items()
    ]


def differences(case: Case, given: Sequence[Value]) -> list[Difference]:
    """Each value that was given for a case and is not the reference's.

    Raises:
        RuntimeError: Other values were given than the case has, such as the gradient to another loss.
    """
    if [value.what for value in given] != [value.what for value in case.values]:
        raise RuntimeError(f"{case.name} gave {[value.what for value in given]}, not {[value.what for value in case.values]}.")
    found = (difference(case.name, wanted, actual) for wanted, actual in zip(case.values, given, strict=True))
    return [different for different in found if different is not None]


def difference(case: str, wanted: Value, actual: Value) -> Difference | None:
    """How a value differs from the one wanted; None if it has the same format and the same bits, or both are NaN."""
    if wanted.format == actual.format and same(actual.bits, wanted.bits, wanted.format):
        return None
    return Difference(case, wanted.what, wanted.format, wanted.bits, actual.format, actual.bits)
