"""The command line of the audit: ``python -m loss_balancers.audit --target cuda:sm_90``."""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loss_balancers.audit.compilers.targets import TARGETS, UnavailableError
from loss_balancers.audit.expressions.comparison import Finding
from loss_balancers.audit.page import page
from loss_balancers.audit.prescribed.cases import Case, all_cases
from loss_balancers.audit.prescribed.planted import planted_cases
from loss_balancers.audit.prescribed.state_cases import state_cases
from loss_balancers.audit.run import Verdict, audit
from loss_balancers.parity.files import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

FINDINGS, USAGE_ERROR = 1, 2
CELLS = {
    "as specified": "[green]as spec",
    "findings": "[red]FINDING",
    "not established": "[red]NOT EST.",
    "found": "[green]found",
    "missed": "[red]MISSED",
}
#: The width of a column: the longest cell and its frame.
COLUMN = 20
Matrix = dict[str, dict[str, Verdict]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the audit: 0 if all is as specified and every planted fault found, 1 if not, 2 if a target cannot be compiled for."""
    parser = argparse.ArgumentParser(
        prog="python -m loss_balancers.audit",
        description="Compiles every balancer for devices that are not present and compares the operations with the spec's.",
    )
    parser.add_argument("--target", action="append", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; may be given again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write verdicts, findings and versions to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of the docs that shows them to this file")
    given = parser.parse_args(arguments)
    if not given.target:
        parser.error(f"--target is needed. The targets are {', '.join(TARGETS)}.")
    for name in given.target:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}. The targets are {', '.join(TARGETS)}.")
    for option, file in (("--json", given.json), ("--markdown", given.markdown)):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{option}: the folder {file.absolute().parent} does not exist. Create it first.")
    cases = every_case()
    try:
        matrix, versions = _audited(list(dict.fromkeys(given.target)), cases)
    except UnavailableError as error:
        print(f"loss-balancers: {error}", file=sys.stderr)
        return USAGE_ERROR
    _print(matrix, cases)
    data = _as_json(matrix, versions, cases)
    try:
        if given.json is not None:
            write_json(given.json, data)
        if given.markdown is not None:
            write_text(given.markdown, page(data))
    except OSError as error:
        print(f"loss-balancers: a file cannot be written: {error}.", file=sys.stderr)
        return USAGE_ERROR
    return 0 if all(verdict.passed for row in matrix.values() for verdict in row.values()) else FINDINGS


def every_case() -> list[Case]:
    """All cases of all targets, planted faults last."""
    cases = [*all_cases(), *(each.case for each in state_cases()), *planted_cases()]
    return sorted(cases, key=lambda case: bool(case.planted))


def _audited(names: Sequence[str], cases: Sequence[Case]) -> tuple[Matrix, dict[str, dict[str, str]]]:
    """All targets, two at a time: each compiles in a process of its own."""
    start = time.monotonic()

    def audited(name: str) -> tuple[dict[str, Verdict], dict[str, str]]:
        target = TARGETS[name]
        some = target.cases(cases)
        print(f"{name}: compiling and reading {len(some)} cases", file=sys.stderr, flush=True)
        verdicts, versions = audit(target, some)
        passed = sum(verdict.passed for verdict in verdicts.values())
        print(f"{name}: {passed} of {len(some)} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
        return verdicts, versions

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(audited, name) for name in names]
        try:
            pairs = {name: result.result() for name, result in zip(names, results, strict=True)}
        except UnavailableError:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: verdicts for name, (verdicts, _) in pairs.items()}, {name: versions for name, (_, versions) in pairs.items()}


def _print(matrix: Matrix, cases: Sequence[Case]) -> None:
    from rich.console import Console

    console = Console()
    widest = max(len(case.name) for case in cases)
    # As many targets beside one another as fit, so that no cell is cut. A pipe has no width.
    beside = max(1, (console.width - widest - 4) // COLUMN) if console.is_terminal else len(matrix)
    names = list(matrix)
    for start in range(0, len(names), beside):
        some = names[start : start + beside]
        table = _table({name: matrix[name] for name in some}, cases)
        (console if console.is_terminal else Console(width=widest + 4 + COLUMN * beside)).print(table)
    counts = "In brackets: the multiplications and additions that the spec prescribes, then the quotients."
    console.print(f"{counts} Without: no race and no overwritten state, and nothing of the arithmetic.", style="dim")
    for name in matrix:
        for case, reason in TARGETS[name].left_out.items():
            console.print(f"{name}, {case}: left out: {reason}", style="dim", markup=False, highlight=False, soft_wrap=True)
    for name, row in matrix.items():
        for case, verdict in ((case, row[case.name]) for case in cases if case.name in row):
            if verdict.reason:
                console.print(f"{name}, {case.name}: NOT ESTABLISHED: {verdict.reason}", style="red", markup=False, soft_wrap=True)
            for finding in _shown(case, verdict):
                style = "dim" if verdict.passed else "red"
                console.print(f"{name}, {case.name}: {finding}", style=style, markup=False, highlight=False, soft_wrap=True)


def _shown(case: Case, verdict: Verdict) -> Sequence[Finding]:
    """The findings that matter: of a planted fault that is found, the first of its kind."""
    return [each for each in verdict.findings if each.kind in case.planted][:1] if verdict.passed else verdict.findings


def _table(matrix: Matrix, cases: Sequence[Case]) -> Table:
    from rich.table import Table

    table = Table(title="Compiled code against the spec")
    table.add_column("case", no_wrap=True)
    for name in matrix:
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        verdicts = [row.get(case.name) for row in matrix.values()]
        table.add_row(case.name, *("–" if each is None else CELLS[each.status] + _counts(each) for each in verdicts))
    return table


def _counts(verdict: Verdict) -> str:
    if not verdict.passed or not (verdict.operations or verdict.quotients):
        return ""
    return f" ({verdict.operations}{f', {verdict.quotients}' if verdict.quotients else ''})"


def _as_json(matrix: Matrix, versions: dict[str, dict[str, str]], cases: Sequence[Case]) -> dict[str, Any]:
    try:
        library = version("loss-balancers")
    except PackageNotFoundError:
        library = "unknown"
    return {
        "schema": 2,
        "library": library,
        "host": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions,
        "left_out": {target: TARGETS[target].left_out for target in matrix},
        "matrix": {
            target: {
                case.name: {
                    "status": row[case.name].status,
                    "operations": row[case.name].operations,
                    "quotients": row[case.name].quotients,
                    "reason": row[case.name].reason,
                    "findings": [finding._asdict() for finding in _shown(case, row[case.name])],
                }
                for case in cases
                if case.name in row
            }
            for target, row in matrix.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
