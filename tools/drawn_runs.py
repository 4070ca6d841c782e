"""`make drawn-runs`: drawn runs of every balancer whose weights follow from the losses, in five ways, against the exact reference.

Of each balancer 52 sequences of 50 steps, shared out among its examples; with ``count=`` and with ``share=`` half as many. The
tests run the first few of them. It writes docs/evidence/drawn-runs.md: of the balancers that it ran, unless it ran fewer sequences.
The rows of the others stay there, so that the command need not be run in one piece.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import drawn
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loss_balancers.parity.certificates.host import frameworks, host
from loss_balancers.parity.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "evidence" / "drawn-runs.md"
TOP = """\
# Drawn runs

Written by `make drawn-runs`, from what it found: whole training runs of every balancer whose weights follow from the losses, step
after step, against the exact reference. Aggregates, gradients, weights and state are compared after each step, as bits; any NaN
is as good as another. The losses are float32, of scales that are far apart, drawn with the seed {seed}; one step in eight has a
zero, a NaN, an infinity or another hard loss. Among the sequences are those with `count=` and with `share=`, in which losses are
absent.

| balancer | way | sequences | steps | results compared | that differ | seconds | measured on |
| --- | --- | --: | --: | --: | --: | --: | --- |
{rows}

The latest rows were measured on a CPU: {processor}, Python {python}, PyTorch {torch}, JAX {jax}, Flax {flax}, NumPy {numpy}. The
seconds are those of one process each, compilation included, {workers} at a time.
"""


class Job(NamedTuple):
    """What one process runs at a time: the examples of a balancer, in one way, with a keyword or without."""

    balancer: str
    way: str
    keyword: str
    sequences: int


class Row(NamedTuple):
    """What came out of jobs: how much was compared, and what differs, in words."""

    sequences: int
    results: int
    different: list[str]
    seconds: float


def jobs(balancers: Iterable[str], sequences: int) -> list[Job]:
    """All jobs, the longest first: JAX's eager mode calls XLA once for each operation."""
    found = [
        Job(balancer, way, keyword, drawn.shared_out(sequences, balancer, keyword))
        for balancer, way, keyword in itertools.product(balancers, drawn.WAYS, drawn.KEYWORDS)
    ]
    return sorted(found, key=lambda job: job.way != "jax-eager")


#: Kept, because the exact reference takes a quarter of the time.
drawn_once = cache(drawn.groups)


def run(job: Job) -> Row:
    """Runs one job."""
    groups = drawn_once(job.balancer, job.keyword, job.sequences)
    began = time.monotonic()
    compared = drawn.compared(groups, drawn.run(job.way, groups))
    return Row(sum(len(group.sequences) for group in groups), *compared, time.monotonic() - began)


def ran(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, Row]]:
    """What each job gave, as soon as it is done."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()


def added(found: Mapping[Job, Row]) -> dict[tuple[str, str], Row]:
    """By balancer and way, in their order: what all keywords gave together."""
    total: dict[tuple[str, str], Row] = {}
    for of in itertools.product(drawn.BALANCERS, drawn.WAYS):
        if rows := [row for job, row in found.items() if (job.balancer, job.way) == of]:
            different = [words for row in rows for words in row.different]
            total[of] = Row(
                sum(row.sequences for row in rows), sum(row.results for row in rows), different, sum(row.seconds for row in rows)
            )
    return total


Cells = dict[tuple[str, str], list[str]]


def table(total: Mapping[tuple[str, str], Row]) -> Cells:
    """By balancer and way, the other cells of the page's table."""
    today = datetime.now(UTC).date().isoformat()
    return {
        of: [f"{row.sequences}", f"{drawn.STEPS}", f"{row.results:,}", f"{len(row.different):,}", f"{row.seconds:.0f}", today]
        for of, row in total.items()
    }


def measured_before(text: str) -> Cells:
    """The same, of the page as it was."""
    rows = [[cell.strip("` ") for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| `")]
    return {(balancer, way): cells for balancer, way, *cells in rows}


def page(cells: Cells, workers: int) -> str:
    """The page as text: the registry's balancers, in its order."""
    ordered = [(of, cells[of]) for of in itertools.product(drawn.BALANCERS, drawn.WAYS) if of in cells]
    rows = "\n".join(f"| `{balancer}` | {way} | {' | '.join(others)} |" for (balancer, way), others in ordered)
    here = host()
    words = {"processor": here["processor"], "python": here["python"], "workers": workers, **frameworks()}
    return TOP.format(seed=drawn.SEED, rows=rows, **words)


def main() -> int:
    """The exit status: 1 if one bit differs."""
    parser = argparse.ArgumentParser(description="drawn runs of every balancer whose weights follow from the losses")
    parser.add_argument("--balancer", action="append", choices=list(drawn.BALANCERS), help="this one; may be given again")
    parser.add_argument("--sequences", type=int, default=drawn.SEQUENCES, help="of each balancer; half as many with a keyword")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    workers = os.cpu_count() or 1
    todo = jobs(arguments.balancer or drawn.BALANCERS, arguments.sequences)
    found: dict[Job, Row] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("drawn runs", total=len(todo))
        for job, row in ran(todo, workers):
            found[job] = row
            words = " ".join(filter(None, (job.balancer, job.way, job.keyword)))
            progress.console.print(f"{words}: {row.results:,} results, {len(row.different):,} differ; {row.seconds:.0f} s")
            for different in row.different[:5]:
                progress.console.print(f"    {different}", style="red")
            progress.advance(task)
    total = added(found)
    bad = sum(len(row.different) for row in total.values())
    print(f"{sum(row.results for row in total.values()):,} results compared with the exact reference, {bad:,} differ.")
    if arguments.sequences < drawn.SEQUENCES:
        print("These were fewer sequences than the page promises: it stays as it was.")
    else:
        before = measured_before(arguments.page.read_text("utf-8")) if arguments.page.exists() else {}
        write_text(arguments.page, page(before | table(total), workers))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
