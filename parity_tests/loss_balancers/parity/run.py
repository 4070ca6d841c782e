"""Runs vectors on lanes, which columns together and in which process, and finds what is not bit-identical, cell by cell."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import cycle, islice
from multiprocessing import get_context
from typing import NamedTuple

from loss_balancers.parity.golden.comparison import Cell, differences
from loss_balancers.parity.golden.vectors import LABELS, Value, case_name, cases, column_digest, columns, digest, shape, values_of
from loss_balancers.parity.lanes.absent import NotCompiledError
from loss_balancers.parity.lanes.known import MODES, added_lanes, find_lanes, lanes_of
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.own_process import begin, one_process, tidy, where_it_runs
from loss_balancers.parity.lanes.switches import Flag, flags_of
from loss_balancers.spec import Group, Vector

#: The labels that run with another, since a compilation has its price: both formats of 16 bits, and those with float64, for which
#: JAX needs a switch.
_RELATED = {"f16": "bf16", "mixed": "f64"}

#: Of how many balancers the columns run together.
_TOGETHER = 4

#: Groups by balancer and label.
Columns = dict[tuple[str, str], list[Group]]


def run_lane(lane: Lane, groups: Sequence[Group], labels: Sequence[str] = LABELS) -> list[Cell]:
    """One row of the matrix, in this process.

    Args:
        lane: The lane, present on this host.
        groups: Golden vectors.
        labels: The columns to run.
    """
    chosen = columns(groups, labels)
    cells = {(cell.balancer, cell.label): cell for lot in _lots(chosen) for cell in _cells(lane, lot)}
    return [cells[column] for column in chosen]


def _lots(chosen: Columns) -> list[Columns]:
    """The columns that one run of a lane can serve: of related labels, of one shape, and of a few balancers.

    A compilation for each column would take minutes, and so would one for all: a compiler looks at pairs of operations. What a
    balancer without state gives depends on no order: its vectors join where they fit.
    """
    found: list[tuple[str, tuple[int, int], Columns]] = []
    for (balancer, label), groups in sorted(chosen.items(), key=lambda column: _free(column[1][0])):
        related, own = _RELATED.get(label, label), shape(groups[0])
        lots = (lot for of, its, lot in found if of == related and _fits(groups[0], its) and _has_room(lot, balancer))
        if (lot := next(lots, None)) is None:
            found.append((related, own, lot := {}))
        lot[balancer, label] = groups
    return [lot for _, _, lot in found]


def _has_room(lot: Columns, balancer: str) -> bool:
    return len({balancer, *(other for other, _ in lot)}) <= _TOGETHER


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
    lots = _lots(chosen)
    lanes = {name: lane for name, lane in _lanes_here().items() if name in names}
    here = [name for name, lane in lanes.items() if lane.device != "cpu"]
    rest = sorted(lanes.keys() - set(here), key=_turn)
    done: dict[tuple[str, str, str], Cell] = {}
    ran = Ran({}, {}, {})

    def finish(given: _Given) -> None:
        ran.absent.update(given.absent)
        ran.flags.update(given.flags)
        for cell in given.cells:
            done[cell.lane, cell.balancer, cell.label] = cell
            advance(cell)

    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            # First no column at all, to find out whether there is a compiler. Inductor then compiles its headers, the first time,
            # which takes as long as a lane and a lock on them: meanwhile the other worker runs lanes that need none.
            jobs = [(name, []) for name in rest if name.endswith("compiled")]
            jobs += [(name, job) for name in rest for job in _jobs(lanes[name], lots)]
            futures = [pool.submit(_run_cells, *job) for job in jobs]
            for name in here:
                for lot in lots:
                    finish(_run_cells(name, [lot]))
            for future in as_completed(futures):
                finish(future.result())
        except BaseException:
            workers = list((pool._processes or {}).values())  # to wait for what they run may take minutes
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise
    ran.rows.update({name: [done[name, *column] for column in chosen] for name in names if name not in ran.absent})
    return ran


def _turn(name: str) -> tuple[bool, bool, str]:
    """When a lane gets its turn: those with one long job first, then those that take longest, Inductor's after JAX's."""
    return not _lanes_here()[name].at_once, not name.endswith(("compiled", "step")), name


def _jobs(lane: Lane, lots: Sequence[Columns]) -> list[list[Columns]]:
    """What a worker does of a lane before it turns to others."""
    return [list(lots)] if lane.at_once else [[lot] for lot in lots]


def _begin_worker() -> None:
    begin()
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX starts every device that it finds, as soon as it is asked for one


@cache
def _lanes_here() -> dict[str, Lane]:
    return {lane.name: lane for lane in find_lanes()}


@cache
def _lane_here(name: str) -> Lane:
    """A lane of this host. Of this library's lanes, those of its framework alone are loaded: each framework takes seconds."""
    framework = name.partition("-")[0]
    lanes = [*(lanes_of(framework) if framework in MODES else ()), *added_lanes()]
    return next(lane for lane in lanes if lane.name == name)


class _Given(NamedTuple):
    """What a job gives: cells and the flags that they were computed with, by lane; or why the lane is absent."""

    cells: list[Cell]
    absent: dict[str, str] = {}  # noqa: RUF012  # of a NamedTuple, and never changed
    flags: dict[str, dict[str, Flag]] = {}  # noqa: RUF012


def _run_cells(name: str, job: Sequence[Columns]) -> _Given:
    """The cells of some columns on a lane. Where the lane is absent none, but why: known before, or found by what ran."""
    lane = _lane_here(name)
    if (reason := lane.why_absent()) is not None:
        return _Given([], {name: reason})
    with one_process():
        try:
            cells = [cell for lot in job for cell in _cells_and_tidy(lane, lot)]
        except NotCompiledError as error:
            return _Given([], {name: str(error)})
        return _Given(cells, flags={name: where_it_runs(lane.run, flags_of, lane.framework)} if job else {})


def _cells_and_tidy(lane: Lane, lot: Columns) -> list[Cell]:
    cells = _cells(lane, lot)
    tidy()
    return cells


def _cells(lane: Lane, lot: Columns) -> list[Cell]:
    reasons = {column: lane.why_no_column(groups) for column, groups in lot.items()}
    absent = [Cell(lane.name, *column, absent=reason) for column, reason in reasons.items() if reason is not None]
    present = {column: groups for column, groups in lot.items() if reasons[column] is None}
    return [*absent, *_cells_of_present(lane, present)] if present else absent


def _cells_of_present(lane: Lane, lot: Columns) -> list[Cell]:
    groups = [group for chosen in lot.values() for group in chosen]
    given: dict[tuple[str, str], tuple[Value, ...]] = {}
    for index, results in enumerate(lane.run(_laid_out(groups))):
        for group, result in zip(groups, results, strict=True):
            if index < len(group.vectors):
                given[group.balancer, case_name(group, index)] = values_of(result)
    expected = {column: cases(chosen) for column, chosen in lot.items()}
    if set(given) != {(balancer, case.name) for (balancer, _), of_column in expected.items() for case in of_column}:
        count = sum(map(len, expected.values()))
        raise RuntimeError(f"The lane {lane.name} gave {len(given)} results for {count} vectors.")
    return [
        Cell(
            lane=lane.name,
            balancer=balancer,
            label=label,
            vectors=len(of_column),
            digest=column_digest(digest(given[balancer, case.name]) for case in of_column),
            differences=tuple(different for case in of_column for different in differences(case, given[balancer, case.name])),
        )
        for (balancer, label), of_column in expected.items()
    ]
