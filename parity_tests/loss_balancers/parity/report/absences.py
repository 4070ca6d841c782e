"""What did not run, as a person reads it: the lanes together that lack the same columns for the same reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Absence(NamedTuple):
    """Columns that some lanes did not run, and why. ``balancers`` is empty where it is all of several."""

    reason: str
    labels: list[str]
    balancers: list[str]
    lanes: list[str]


def absences(matrix: Mapping[str, Any]) -> list[Absence]:
    """Those of a matrix, as `merge` makes it."""
    by_lane: dict[tuple[str, str, str], list[str]] = {}
    for column in matrix["absent"]:
        by_lane.setdefault((column["reason"], column["lane"], column["balancer"]), []).append(column["label"])
    # A card, or a line, says "these formats of these balancers", so balancers that lack the same formats go together.
    together: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (reason, lane, balancer), labels in by_lane.items():
        together.setdefault((reason, lane, tuple(labels)), []).append(balancer)
    lanes: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (reason, lane, labels), balancers in together.items():
        lanes.setdefault((reason, labels, tuple(balancers)), []).append(lane)
    return [Absence(reason, list(labels), _named(matrix, balancers), names) for (reason, labels, balancers), names in lanes.items()]


def _named(matrix: Mapping[str, Any], balancers: Sequence[str]) -> list[str]:
    return [] if 1 < len(balancers) == len(matrix["balancers"]) else list(balancers)
