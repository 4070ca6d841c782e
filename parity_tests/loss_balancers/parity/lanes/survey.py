"""Which lanes there are, which of them this host can run, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
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
    """A table with a row for each lane, and a line that counts them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("lane", no_wrap=True)
    table.add_column("on this host")
    for entry in found["lanes"]:
        text, style = _state(entry)
        table.add_row(Text(entry["name"]), Text(text, style))
    console.print(table)
    present = sum(entry["present"] for entry in found["lanes"])
    console.print(f"{present} of {len(found['lanes'])} lanes present", highlight=False)


def _state(entry: dict[str, Any]) -> tuple[str, str]:
    if not entry["present"]:
        return f"absent: {entry['why_absent']}", "dim"
    by_reason: dict[str, list[str]] = {}
    for label, reason in entry["absent_columns"].items():
        by_reason.setdefault(reason, []).append(label)
    without = "".join(f"; without {', '.join(labels)}: {reason}" for reason, labels in by_reason.items())
    return f"present{without}", "yellow" if without else "green"
