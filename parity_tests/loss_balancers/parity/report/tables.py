"""The matrix as a person reads it: on the terminal, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loss_balancers.parity.certificates.claims import AGREE, CONTRADICTION
from loss_balancers.parity.certificates.claims import in_words as claim_in_words
from loss_balancers.parity.lanes.switches import concerns, turned
from loss_balancers.parity.report.absences import absences

#: How many disagreements are listed; the JSON has them all.
SHOWN = 20
#: What stands between two columns.
_GAP = 3

#: A matrix, and a part of one, as `merge` makes them.
Matrix = Mapping[str, Any]


def print_matrix(matrix: Matrix, console: Console) -> None:
    """Prints the hosts where there are several, the counts, what did not run, the worst of each cell, and the disagreements.

    The counts are by lane and format where there is one balancer, else by lane and balancer: one column fits whatever its formats.
    """
    several = len(matrix["certificates"]) > 1
    for index in range(len(matrix["certificates"])) if several else ():
        _print(console, f"host {index + 1}: {_host(matrix, index)}")
    console.print("Golden vectors bit-identical to the exact reference, in every value", style="italic")
    for columns in _tables(matrix, console.width):
        console.print(_table(matrix, columns))
    _print(console, _total(matrix), "green" if matrix["identical"] == matrix["results"] else "red")
    for line in [*_absent(matrix), *_switches(matrix)]:
        _print(console, line)
    for line in [*_worst_cells(matrix), *_disagreements(matrix)]:
        _print(console, line, "red")
    for line, together in _claims(matrix):
        _print(console, line, {AGREE: "", CONTRADICTION: "red"}.get(together, "yellow"))


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)  # as Text: the words of a certificate are no markup


#: A column of a table: its head, and the cells of a lane that it counts.
Column = tuple[str, Callable[[Matrix], bool]]


def _tables(matrix: Matrix, width: int) -> Iterator[list[Column]]:
    """The columns of each table, as many as fit beside the names of the lanes."""
    balancers: list[str] = matrix["balancers"]
    if len(balancers) == 1:
        yield [*((label, partial(_has, "label", label)) for label in matrix["labels"]), ("all", bool)]
        return
    columns: list[Column] = [(_head(balancer), partial(_has, "balancer", balancer)) for balancer in balancers]
    taken = left = max(len(lane["id"]) for lane in matrix["lanes"]) + _GAP
    table: list[Column] = []
    for column in columns:
        counts = (_count([cell for cell in _cells(matrix, lane["id"]) if column[1](cell)])[0] for lane in matrix["lanes"])
        needs = max(map(len, [*column[0].split("\n"), *counts])) + _GAP
        if table and taken + needs > width:
            yield table
            table, taken = [], left
        table.append(column)
        taken += needs
    yield table


def _has(key: str, value: str, cell: Matrix) -> bool:
    return cell[key] == value


def _head(balancer: str) -> str:
    """A name on as many lines as it has words, without what all balancers end in."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "\n", balancer.removesuffix("LossBalancer") or balancer)


def _table(matrix: Matrix, columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("lane", no_wrap=True, vertical="bottom")
    for head, _ in columns:
        table.add_column(Text(head), justify="right", no_wrap=True, vertical="bottom")
    for lane in matrix["lanes"]:
        cells = _cells(matrix, lane["id"])
        counts = [_count([cell for cell in cells if counted(cell)]) for _, counted in columns]
        name = lane["id"] if len(matrix["certificates"]) > 1 else _lane(matrix, lane["id"])
        table.add_row(Text(name), *(Text(text, style) for text, style in counts))
    return table


def _cells(matrix: Matrix, lane: str, balancer: str | None = None) -> list[Matrix]:
    return [cell for cell in matrix["cells"] if cell["lane"] == lane and balancer in (None, cell["balancer"])]


def _count(cells: Sequence[Matrix]) -> tuple[str, str]:
    """How many are identical, and a colour; a dash where the lane has no such cell."""
    if not cells:
        return "-", ""
    identical, vectors = sum(cell["identical"] for cell in cells), sum(cell["vectors"] for cell in cells)
    return f"{identical}/{vectors}", "green" if identical == vectors else "red"


def _total(matrix: Matrix) -> str:
    count = len(matrix["certificates"])
    hosts = f"{count} hosts, " if count > 1 else ""
    return f"{hosts}{len(matrix['lanes'])} lanes, {matrix['identical']}/{matrix['results']} bit-identical"


def _host(matrix: Matrix, index: int) -> str:
    certificate = matrix["certificates"][index]
    host, versions = certificate["host"], certificate["frameworks"]
    devices = dict.fromkeys(lane["device_kind"] for lane in matrix["lanes"] if lane["certificate"] == index)
    return (
        f"{certificate['file']}: {', '.join(devices)}; {host['system']} {host['machine']}; torch {versions['torch']}, "
        f"jax {versions['jax']}; {certificate['created']}"
    )


def _absent(matrix: Matrix) -> list[str]:
    return [
        f"absent: {_some(matrix, absence.lanes)}, {', '.join(absence.labels)}: "
        f"{', '.join(absence.balancers) or 'every balancer'} ({absence.reason})"
        for absence in absences(matrix)
    ]


def _switches(matrix: Matrix) -> list[str]:
    """The switches that may change bits and were turned where lanes ran, with the lanes; one line each."""
    by_switch: dict[str, list[str]] = {}
    for lane in matrix["lanes"]:
        flags = matrix["certificates"][lane["certificate"]]["flags"] | lane["flags"]
        for name, value in turned(flags).items():
            if concerns(name, lane["framework"]):
                by_switch.setdefault(f"{name} = {value}", []).append(lane["id"])
    if not by_switch:
        return ["switches that may change bits: none was turned"]
    return [f"switch that may change bits: {switch}: {_some(matrix, lanes)}" for switch, lanes in by_switch.items()]


def _worst_cells(matrix: Matrix) -> Iterator[str]:
    for cell in matrix["cells"]:
        if (worst := cell["worst"]) is not None:
            yield (
                f"{_lane(matrix, cell['lane'])}, {cell['label']}: worst {cell['balancer']}, {worst['case']}, {worst['what']}: "
                f"{worst['actual']} is not {worst['expected']} ({worst['format']}, {_distance(worst['ulp'])})"
            )


def _disagreements(matrix: Matrix) -> list[str]:
    found = matrix["disagreements"]
    more = [f"and {len(found) - SHOWN} more values that differ; the JSON has them all"] if len(found) > SHOWN else []
    return [*(in_words(matrix, disagreement) for disagreement in found[:SHOWN]), *more]


def _claims(matrix: Matrix) -> Iterator[tuple[str, str]]:
    """What the audit says beside what devices gave, in words, and what the two make together. One line where all agree."""
    if "audit" not in matrix:
        return
    found = matrix["audit"]["claims"]
    agree = sum(claim["together"] == AGREE for claim in found)
    yield f"audit of {matrix['audit']['date']}: {agree} of {len(found)} claims agree with what a device gave", AGREE
    for claim in found:
        if claim["together"] != AGREE:
            yield claim_in_words(claim, _lane(matrix, claim["lane"])), claim["together"]


def _lane(matrix: Matrix, lane: str) -> str:
    """The lane with its host; only the lane where there is one host alone."""
    found = next(known for known in matrix["lanes"] if known["id"] == lane)
    name = f"{found['framework']}-{found['device']}-{found['mode']}"
    if len(matrix["certificates"]) == 1:
        return name
    return f"{name} on host {found['certificate'] + 1} ({matrix['certificates'][found['certificate']]['file']})"


def in_words(matrix: Matrix, disagreement: Mapping[str, Any]) -> str:
    """A disagreement in words: what it is, who says what, how far apart, and who is the odd one out against the reference."""
    expected = disagreement["expected"]
    by_value: dict[str, list[str]] = {}
    for value in disagreement["values"]:
        by_value.setdefault(value["value"], []).append(value["lane"])
    said = ", ".join(f"{_some(matrix, lanes)} {'has' if len(lanes) == 1 else 'have'} {value}" for value, lanes in by_value.items())
    # Without another value it is the format that differs, as the title says: then each lane listed is odd.
    odd = [lane for value, lanes in by_value.items() if value != expected for lane in lanes] or [
        value["lane"] for value in disagreement["values"]
    ]
    distance = _distance(disagreement["ulp"])
    where = f"{disagreement['balancer']}, {disagreement['case']}, {disagreement['what']}"
    return (
        f"{where}: {said} ({disagreement['format']}, {distance}). The reference has {expected}: "
        f"{'the odd one out is' if len(odd) == 1 else 'the odd ones out are'} {_some(matrix, odd)}."
    )


def _some(matrix: Matrix, lanes: Sequence[str]) -> str:
    """The first lanes by name, and how many more."""
    shown = [_lane(matrix, lane) for lane in lanes[:2]]
    more = [f"{len(lanes) - 2} more"] if len(lanes) > 2 else []
    return " and ".join([*shown, *more])


def _distance(ulp: int | None) -> str:
    """A distance in ulp; that it is no distance where a NaN stands against a number."""
    return "NaN against a number" if ulp is None else f"{ulp} ulp"


def as_markdown(matrix: Matrix) -> str:
    """The matrix as GitHub's Markdown: hosts, a table lane x balancer with counts, the worst of each cell, the disagreements."""
    balancers = matrix["balancers"]
    rows = [
        [_code(lane["id"]), _code(lane["device_kind"]), *(_marked(_cells(matrix, lane["id"], balancer)) for balancer in balancers)]
        for lane in matrix["lanes"]
    ]
    parts = [
        f"# Parity: {_total(matrix)}",
        "Golden vectors of which every value has the bits of the exact reference: aggregate, gradients, weights, state.",
        "\n".join(f"{index + 1}. {_code(_host(matrix, index))}" for index in range(len(matrix["certificates"]))),
        _markdown_table(["lane", "device", *map(_code, balancers)], rows),
    ]
    parts.append("\n".join(f"- {_code(line)}" for line in [*_absent(matrix), *_switches(matrix)]))
    worst = [
        [_code(cell["lane"]), _code(cell["balancer"]), cell["label"], *_worst_row(cell)]
        for cell in matrix["cells"]
        if cell["worst"]
    ]
    if worst:
        head = ["lane", "balancer", "format", "identical", "worst case", "value", "expected", "actual", "distance", "inputs"]
        parts += ["## The worst case of each cell", _markdown_table(head, worst)]
    if matrix["disagreements"]:
        parts += ["## Disagreements", "\n".join(f"- {_code(line)}" for line in _disagreements(matrix))]
    if "audit" in matrix:
        rows = [
            [_code(claim["lane"]), _code(claim["balancer"]), said, "identical" if claim["identical"] else "differs", together]
            for claim in matrix["audit"]["claims"]
            for together in [f"**{claim['together']}**" if claim["together"] == CONTRADICTION else claim["together"]]
            for said in [", ".join(f"{_code(target)}: {status}" for target, status in claim["targets"].items())]
        ]
        head = ["lane", "balancer", "the audit says", "float32 on the device", "together"]
        parts += [f"## The audit of {matrix['audit']['date']}", _markdown_table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _marked(cells: Sequence[Matrix]) -> str:
    text, style = _count(cells)
    return f"**{text}**" if style == "red" else text


def _worst_row(cell: Matrix) -> list[str]:
    worst = cell["worst"]
    inputs = ", ".join(f"{name} = {value}" for name, value in [*worst["inputs"].items(), ("cotangent", worst["cotangent"])])
    texts = [
        worst["case"],
        worst["what"],
        worst["expected"],
        worst["actual"],
        f"{_distance(worst['ulp'])}, {worst['format']}",
        inputs,
    ]
    return [_count([cell])[0], *map(_code, texts)]


def _markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    rows = [[text.replace("|", "\\|") for text in row] for row in [head, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _code(text: str) -> str:
    """Text as it is, in a code span: but for a backtick, neither Markdown nor HTML in it means anything there."""
    return f"`{text.replace('`', chr(39))}`"
