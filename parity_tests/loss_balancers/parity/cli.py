"""The command line: ``loss-balancers``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from typer.core import TyperGroup
except ImportError as error:
    from loss_balancers.spec.errors import missing_package

    print(f"loss-balancers: {missing_package('the command line needs', str(error.name), 'parity')}", file=sys.stderr)
    sys.exit(70)

if TYPE_CHECKING:
    from loss_balancers.parity.golden.vectors import Vectors
    from loss_balancers.parity.lanes.lane import Lane

#: Exit statuses. 1 is said of results alone, 2 of how a command was called. The others are those of sysexits.h and of shells.
DIFFERENT, USAGE_ERROR, UNEXPECTED, NOT_WRITTEN, INTERRUPTED = 1, 2, 70, 74, 130


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # some versions of typer exit with 1
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Loss balancers in PyTorch and JAX: shows that both give the same bits.",
)
console = Console()


@app.command()
def parity(
    lane: Annotated[list[str] | None, typer.Option(help="Run this lane only, such as torch-cpu-eager. May be given again.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="Run the lanes of this mode only, such as jit. May be given again.")
    ] = None,
    balancer: Annotated[
        list[str] | None,
        typer.Option(help="Run this balancer's vectors only, such as StaticLossBalancer. May be given again."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Run this column only: bf16, f16, f32, f64 or mixed. May be given again.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Write what was computed to this file, for `merge`.", dir_okay=False)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the matrix to this file as JSON.", dir_okay=False)] = None,
) -> None:
    """Runs the golden vectors on the lanes of this machine and prints the matrix lane x format.

    Exit status 0 if every result is bit-identical to the exact reference, 1 on any difference, 2 on wrong usage.
    """
    from loss_balancers.parity.certificates.certificate import make_certificate
    from loss_balancers.parity.certificates.merge import merge as merged
    from loss_balancers.parity.certificates.reading import check
    from loss_balancers.parity.files import json_text
    from loss_balancers.parity.golden.vectors import LABELS, columns, installed_vectors
    from loss_balancers.parity.lanes.absent import why_no_framework
    from loss_balancers.parity.lanes.known import MODES, find_lanes
    from loss_balancers.parity.report.tables import print_matrix
    from loss_balancers.parity.run import run_lanes

    known, vectors = find_lanes(), installed_vectors()
    for name in balancer or ():
        if name not in vectors:
            _usage(f"--balancer: there are no vectors of {name!r}. The balancers are {', '.join(vectors)}.")
    for name in label or ():
        if name not in LABELS:
            _usage(f"--label: there is no column {name!r}. The columns are {', '.join(LABELS)}.")
    if balancer and certificate is not None:
        _usage("--certificate: a certificate is of all balancers. Leave out --balancer.")
    if label and certificate is not None:
        _usage("--certificate: a certificate is of all columns. Leave out --label.")
    vectors = {name: of_balancer for name, of_balancer in vectors.items() if not balancer or name in balancer}
    vectors = {name: _of_labels(of_balancer, label or LABELS) for name, of_balancer in vectors.items()}
    modes = dict.fromkeys(one.mode for one in known)
    for name in mode or ():
        if name not in modes:
            _usage(f"--mode: no lane of this machine has the mode {name!r}. The modes are {', '.join(modes)}.")
    known = [one for one in known if not mode or one.mode in mode]
    chosen = _chosen(known, lane)
    _check_outputs({"--certificate": certificate, "--json": json_file})
    groups = [group for of_balancer in vectors.values() for group in of_balancer.groups]
    counts = {pair: sum(len(group.vectors) for group in found) for pair, found in columns(groups, LABELS).items()}
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*shown, console=console, transient=True) as progress:
        task = progress.add_task(f"{len(chosen)} lanes, vectors", total=sum(counts.values()) * len(chosen))
        ran = run_lanes(chosen, groups, lambda cell: progress.advance(task, counts[cell.balancer, cell.label]))
    # A lane may prove to be absent only where it runs: in a worker process, or by what is compiled.
    for name in lane or ():
        if name in ran.absent:
            _usage(f"--lane: {name} cannot run on this machine: {ran.absent[name]}")
    missing = {f"every lane of {name}": reason for name in MODES if (reason := why_no_framework(name)) is not None}
    absent = missing | ran.absent
    if not ran.rows:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in absent.items())
        _usage(f"no lane can run on this machine: {reasons}. Choose others, or install what is missing.")
    # Checked as `merge` will check it: nothing is written that would be refused.
    checked = check(make_certificate(ran.rows, known, vectors, ran.flags), str(certificate or "this run"), vectors, own=True)
    matrix = merged([checked])
    print_matrix(matrix, console)
    for name, reason in absent.items():
        console.print(f"absent: {name} ({reason})", soft_wrap=True, highlight=False, markup=False)
    _write([(certificate, lambda: json_text(checked.data)), (json_file, lambda: json_text(matrix))])
    raise typer.Exit(_verdict(matrix))


@app.command()
def merge(
    certificates: Annotated[list[Path], typer.Argument(help="Files that `loss-balancers parity --certificate` wrote.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the matrix to this file as JSON.", dir_okay=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it to this file as Markdown.", dir_okay=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write it to this file as one HTML page.", dir_okay=False)] = None,
    audit_file: Annotated[
        Path | None, typer.Option("--audit", help="Lay what `audit --json` wrote beside what devices gave.", dir_okay=False)
    ] = None,
) -> None:
    """Merges the certificates of several hosts into one matrix and prints it. Needs neither PyTorch nor JAX.

    Exit status 0 if all lanes agree on every bit, 1 if any two do not or one differs from the reference, 2 if a certificate or the
    audit is refused: then nothing is written.
    """
    from loss_balancers.parity.certificates.certificate import CertificateError
    from loss_balancers.parity.certificates.claims import AuditError, read_audit
    from loss_balancers.parity.certificates.merge import merge as merged
    from loss_balancers.parity.certificates.reading import read_certificate
    from loss_balancers.parity.files import json_text
    from loss_balancers.parity.golden.vectors import installed_vectors
    from loss_balancers.parity.report.tables import as_markdown, print_matrix

    inputs = {"one of the certificates": certificates, "the audit": [] if audit_file is None else [audit_file]}
    _check_outputs({"--json": json_file, "--markdown": markdown, "--html": html}, inputs)
    vectors = installed_vectors()
    try:
        checked = [read_certificate(file, vectors) for file in certificates]
        matrix = merged(checked, None if audit_file is None else read_audit(audit_file, checked))
    except (CertificateError, AuditError) as error:
        _usage(str(error))
    print_matrix(matrix, console)
    _write([(json_file, lambda: json_text(matrix)), (markdown, lambda: as_markdown(matrix)), (html, lambda: _html(matrix))])
    raise typer.Exit(_verdict(matrix))


@app.command()
def lanes(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the list to this file as JSON.", dir_okay=False)] = None,
) -> None:
    """Lists every lane that is known: those present on this machine, and for each that is absent the reason."""
    from loss_balancers.parity.certificates.measured import lines_here
    from loss_balancers.parity.files import json_text
    from loss_balancers.parity.golden.vectors import installed_vectors
    from loss_balancers.parity.lanes.known import known_lanes
    from loss_balancers.parity.lanes.survey import print_survey, survey

    _check_outputs({"--json": json_file})
    with console.status("Trying what is here"):
        found = survey(known_lanes(), [group for of_balancer in installed_vectors().values() for group in of_balancer.groups])
    print_survey(found, console)
    for line in lines_here():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    _write([(json_file, lambda: json_text(found))])


@app.command()
def audit(
    target: Annotated[list[str], typer.Option(help="A target, such as tpu:v6e, cuda:sm_90 or cpu. May be given again.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write verdicts to this file as JSON.", dir_okay=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write them to this file as a page.", dir_okay=False)] = None,
) -> None:
    """Compiles the JAX balancers for devices that are not here, and compares what the compiler emitted with the spec.

    Exit status 0 if all is as specified and every planted fault is found, 1 if not, 2 if a target cannot be compiled for.
    """
    from loss_balancers.audit.__main__ import main as run_audit

    given = [("--target", name) for name in target] + [("--json", json_file), ("--markdown", markdown)]
    raise typer.Exit(run_audit([str(word) for option, value in given if value is not None for word in (option, value)]))


def _of_labels(vectors: Vectors, labels: Sequence[str]) -> Vectors:
    return vectors._replace(groups=tuple(group for group in vectors.groups if group.label in labels))


def _chosen(known: Sequence[Lane], names: Sequence[str] | None) -> list[str]:
    """The lanes to run. One that was asked for must not be absent."""
    from loss_balancers.parity.lanes.known import known_lanes

    by_name = {lane.name: lane for lane in known}
    for name in names or ():
        if name not in by_name:
            for elsewhere in (lane for lane in known_lanes() if lane.name == name):
                _usage(f"--lane: {name} cannot run on this machine: {elsewhere.why_absent()}")
            _usage(f"--lane: there is no lane {name!r} on this machine. The lanes are {', '.join(by_name)}.")
    for name in names or ():
        if (reason := by_name[name].why_absent()) is not None:
            _usage(f"--lane: {name} cannot run on this machine: {reason}")
    return list(dict.fromkeys(names or by_name))


def _usage(message: str) -> NoReturn:
    _say(message)
    raise typer.Exit(USAGE_ERROR)


def _say(message: str) -> None:
    Console(stderr=True).print(f"loss-balancers: {message}", style="red", soft_wrap=True, highlight=False, markup=False)


def _check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Sequence[Path]] | None = None) -> None:
    """Before the work: each folder is there, and no file would replace another or one that is read, by what that is."""
    from loss_balancers.spec.whole_files import is_replaced

    taken = {
        realpath(file): what for what, files in (inputs or {}).items() for file in files
    }  # unlike Path.resolve, no error at a loop of links
    for option, file in outputs.items():
        try:
            if file is None or not is_replaced(file):
                continue  # what is written into, such as /dev/null, may be given twice
        except OSError as error:
            _usage(f"{option}: {file} cannot be written: {error.strerror or error}.")
        folder = Path(realpath(file)).parent
        if not folder.is_dir():
            _usage(f"{option}: the folder {folder} does not exist. Create it first.")
        if realpath(file) in taken:
            _usage(f"{option}: {file} is {taken[realpath(file)]} already. Name another file.")
        taken[realpath(file)] = f"the file of {option}"


def _write(outputs: Sequence[tuple[Path | None, Callable[[], str]]]) -> None:
    """Writes the files that were asked for. All texts are made before the first is written, and one that fails stops no other."""
    from loss_balancers.parity.files import write_text

    texts = [(file, make()) for file, make in outputs if file is not None]
    failed = False
    for file, text in texts:
        try:
            write_text(file, text)
        except OSError as error:
            failed = True
            _say(f"{file} cannot be written: {error.strerror or error}.")
    if failed:
        raise typer.Exit(NOT_WRITTEN)


def _verdict(matrix: Mapping[str, Any]) -> int:
    """The exit status of a matrix. One without a result says neither that lanes agree nor that they do not."""
    if matrix["results"] == 0:
        _usage("nothing was compared: every column of every lane is absent. Choose lanes that have the formats.")
    return 0 if matrix["identical"] == matrix["results"] else DIFFERENT


def _html(matrix: Mapping[str, Any]) -> str:
    from loss_balancers.parity.report.page import html_report

    return html_report(matrix)


def main() -> None:
    """The console script. Only the verdict on results exits with 1, and only wrong usage with 2."""
    from loss_balancers.parity.streams import make_streams_last

    stdout = make_streams_last()
    try:
        app()
        status = 0
    except SystemExit as end:  # typer always ends so
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else UNEXPECTED
        if isinstance(end.code, str):
            _say(end.code)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
        _say(f"this is an error of the program or of its surroundings. It says nothing about lanes (exit status {UNEXPECTED}).")
        status = UNEXPECTED
    stdout.flush()
    if stdout.lost is not None and status == 0:
        _say(f"what was printed could not be written: {stdout.lost.strerror or stdout.lost}.")
        status = NOT_WRITTEN
    sys.exit(status)
