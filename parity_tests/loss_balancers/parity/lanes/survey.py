"""Which lanes there are, which of them this host can run, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loss_balancers.parity.golden.vectors import LABELS, columns
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.spec import Group

SCHEMA = "loss-balancers-lanes/1"


def survey(lanes: Sequence[Lane], groups: Sequence[Group]) -> dict[str, Any]:
    """What `loss-balancers lanes` shows, as JSON has it.

    Args:
        lanes: The lanes to look at.
        groups: The vectors that they would run, for the columns that a lane cannot.
    """
    return {"schema": SCHEMA, "lanes": [_entry(lane, groups) for lane in lanes]}


def _entry(lane: Lane, groups: Sequence[Group]) -> dict[str, Any]:
    reason = lane.why_absent()
    missing: dict[str, str] = {}
    if reason is None:
        for (_, label), chosen in columns(groups, LABELS).items():
            if (lacking := lane.why_no_column(chosen)) is not None:
                missing[label] = lacking  # which balancers it is about, where not all, the reason says
    kind = {"framework": lane.framework, "device": lane.device, "mode": lane.mode}
    return {"name": lane.name, **kind, "present": reason is None, "why_absent": reason, "absent_columns": missing}


def print_survey(found: dict[str, Any], console: Console) -> None:
    """A table with a row for each lane, one row for those of a device, or a framework, that is not here; a line that counts all."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("lane", no_wrap=True)
    table.add_column("on this host")
    for name, (text, style) in _rows(found["lanes"]):
        table.add_row(Text(name), Text(text, style))
    console.print(table)
    present = sum(entry["present"] for entry in found["lanes"])
    console.print(f"{present} of {len(found['lanes'])} lanes present", highlight=False)


def _rows(entries: Sequence[dict[str, Any]], *known: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The names of rows and what they say. ``torch-*``, or ``torch-cuda-*``, stands for all such lanes, absent for one reason."""
    if len(known) == 2:
        yield from ((entry["name"], _state(entry)) for entry in entries)
        return
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry[("framework", "device")[len(known)]], []).append(entry)
    for name, group in groups.items():
        if group[0]["why_absent"] is not None and len({entry["why_absent"] for entry in group}) == 1 < len(group):
            yield "-".join((*known, name, "*")), _state(group[0])
        else:
            yield from _rows(group, *known, name)


def _state(entry: dict[str, Any]) -> tuple[str, str]:
    if not entry["present"]:
        return f"absent: {entry['why_absent']}", "dim"
    by_reason: dict[str, list[str]] = {}
    for label, reason in entry["absent_columns"].items():
        by_reason.setdefault(reason, []).append(label)
    without = "".join(f"; without {', '.join(labels)}: {reason}" for reason, labels in by_reason.items())
    return f"present{without}", "yellow" if without else "green"
