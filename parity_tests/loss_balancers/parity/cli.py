"""The command line: ``loss-balancers``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    sys.exit(f"loss-balancers: the command line needs {error.name}. Run `pip install 'loss-balancers[parity]'`.")

if TYPE_CHECKING:
    from loss_balancers.parity.lanes import Lane
    from loss_balancers.parity.run import Cell

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Loss balancers in PyTorch and JAX: shows that both give the same bits."
)
console = Console()
USAGE_ERROR = 2


@app.command()
def parity(
    lane: Annotated[list[str] | None, typer.Option(help="Run this lane only, such as torch-cpu-eager. May be given again.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the matrix to this file as JSON.", dir_okay=False)] = None,
) -> None:
    """Runs the golden vectors on the lanes of this machine and prints the matrix lane x format.

    Exit status 0 if every result is bit-identical to the exact reference, 1 on any difference, 2 on wrong usage.
    """
    from loss_balancers.parity.files import write_json
    from loss_balancers.parity.lanes import find_lanes
    from loss_balancers.parity.run import run_lanes
    from loss_balancers.spec import load_golden

    chosen, absent = _chosen(find_lanes(), lane)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        _usage(f"--json: the folder {json_file.absolute().parent} does not exist. Create it first.")
    groups = load_golden()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{len(chosen)} lanes, vectors", total=sum(len(group.vectors) for group in groups) * len(chosen))
        rows = run_lanes(chosen, groups, lambda cell: progress.advance(task, cell.vectors))
    _print(rows)
    if lane is None:
        for name, reason in absent.items():
            console.print(f"absent: {name} ({reason})", soft_wrap=True, highlight=False)
    if json_file is not None:
        write_json(json_file, _as_json(rows))
    raise typer.Exit(0 if all(cell.identical == cell.vectors for row in rows.values() for cell in row) else 1)


@app.command()
def audit(
    target: Annotated[list[str], typer.Option(help="A target, such as tpu:v6e, cuda:sm_90 or cpu. May be given again.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write verdicts to this file as JSON.", dir_okay=False)] = None,
) -> None:
    """Compiles the JAX balancers for devices that are not here, and compares what the compiler emitted with the spec.

    Exit status 0 if all is as specified and every planted fault is found, 1 if not, 2 if a target cannot be compiled for.
    """
    from loss_balancers.parity.audit.__main__ import main as run_audit

    arguments = [word for name in target for word in ("--target", name)]
    raise typer.Exit(run_audit([*arguments, *(("--json", str(json_file)) if json_file is not None else ())]))


def _chosen(known: Sequence[Lane], names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The lanes to run, and the reason for each that is absent. One that was asked for must not be absent."""
    by_name = {lane.name: lane for lane in known}
    for name in names or ():
        if name not in by_name:
            _usage(f"--lane: there is no lane {name!r} on this machine. The lanes are {', '.join(by_name)}.")
    asked = list(dict.fromkeys(names or by_name))
    absent = {name: reason for name in asked if (reason := by_name[name].why_absent()) is not None}
    for name in names or ():
        if name in absent:
            _usage(f"--lane: {name} cannot run on this machine: {absent[name]}")
    return [name for name in asked if name not in absent], absent


def _usage(message: str) -> None:
    Console(stderr=True).print(f"loss-balancers: {message}", style="red", soft_wrap=True, highlight=False)
    raise typer.Exit(USAGE_ERROR)


def _print(rows: dict[str, list[Cell]]) -> None:
    from loss_balancers.parity.lanes import LABELS

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="StaticLossBalancer: golden vectors bit-identical to the exact reference\n(aggregate and gradients)",
    )
    table.add_column("lane", no_wrap=True)
    for label in LABELS:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    results = agreed = 0
    for name, cells in rows.items():
        identical, vectors = sum(cell.identical for cell in cells), sum(cell.vectors for cell in cells)
        style = "green" if identical == vectors else "red"
        table.add_row(
            name,
            *(f"[{'green' if c.identical == c.vectors else 'red'}]{c.identical}/{c.vectors}" for c in cells),
            f"[{style}]{identical}/{vectors}",
        )
        results, agreed = results + vectors, agreed + identical
    console.print(table)
    console.print(
        f"{len(rows)} lanes, {agreed}/{results} bit-identical", style="green" if agreed == results else "red", highlight=False
    )
    for name, cells in rows.items():
        for cell in cells:
            if cell.first is not None and cell.worst is not None:
                console.print(f"{name}, {cell.label}: first {cell.first}", style="red", soft_wrap=True, highlight=False)
                console.print(f"{name}, {cell.label}: worst {cell.worst}", style="red", soft_wrap=True, highlight=False)


def _as_json(rows: dict[str, list[Cell]]) -> dict[str, Any]:
    from loss_balancers.spec import golden_hash

    return {
        "schema": 1,
        "library": version("loss-balancers"),
        "frameworks": {name: version(name) for name in ("torch", "jax", "jaxlib", "flax", "numpy")},
        "host": {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()},
        "vectors": {"StaticLossBalancer": golden_hash()},
        "matrix": {
            name: {
                cell.label: {
                    "vectors": cell.vectors,
                    "identical": cell.identical,
                    "first": None if cell.first is None else str(cell.first),
                    "worst": None if cell.worst is None else str(cell.worst),
                }
                for cell in cells
            }
            for name, cells in rows.items()
        },
    }


def main() -> None:
    """The console script."""
    app()
