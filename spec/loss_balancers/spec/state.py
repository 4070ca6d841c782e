"""The state of balancers: what it holds, and how it is observed and committed.

State is observed in the forward and committed by ``step()``, once per optimizer step:

- ``pending``, float32 ``(n + 2,)``: the sums of the n observed losses since the last commit in canonical order, how many calls
  they sum, and how many were left out because a sum would not have been finite.
- ``steps`` and ``skipped``, int32 ``()``: commits so far, and calls left out so far.

and what a method adds. Every entry starts at zero. The reference holds numbers as Python floats and ints. How state moves is in
`moving.py` and `state_files.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from loss_balancers.spec import arithmetic
from loss_balancers.spec.formats import flush


class StateEntry(NamedTuple):
    """One entry of a balancer's state. The first ``named`` of its elements belong to the losses, in canonical order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    named: int = 0


#: From entry to value: a float or an int, or a tuple of them for a vector.
ReferenceState = dict[str, Any]


def base_entries(observed: int) -> tuple[StateEntry, ...]:
    """The entries that every balancer with state has; ``observed`` says how many losses it observes."""
    return (
        StateEntry("steps", "int32", ()),
        StateEntry("skipped", "int32", ()),
        StateEntry("pending", "float32", (observed + 2,), observed),
    )


def initial_state(entries: Sequence[StateEntry]) -> ReferenceState:
    """All zero."""
    zero: dict[str, Any] = {"float32": 0.0, "int32": 0}
    return {e.name: (zero[e.dtype],) * e.shape[0] if e.shape else zero[e.dtype] for e in entries}


def as_observed(values: Sequence[float], formats: Sequence[str]) -> list[float]:
    """Losses as state sees them: in float32, rounded and flushed (spec T2)."""
    return [flush(arithmetic.narrow(arithmetic.widen(x, fmt), "f32"), "f32") for x, fmt in zip(values, formats, strict=True)]


def observe(state: ReferenceState, losses: Sequence[float]) -> ReferenceState:
    """Adds losses, in float32, to the pending sums; leaves them out if a sum would not be finite (spec T3)."""
    row = [*losses, 1.0, 0.0]
    taken = tuple(flush(arithmetic.add(a, b, "f32"), "f32") for a, b in zip(state["pending"], row, strict=True))
    if not all(map(math.isfinite, taken)):
        *others, left_out = state["pending"]
        taken = (*others, left_out + 1.0)
    return {**state, "pending": taken}


def pending_mean(pending: Sequence[float]) -> tuple[float, ...] | None:
    """The mean of the observed losses, None if there is nothing to commit (spec T4)."""
    *sums, count, _ = pending
    if count == 0 or not all(map(math.isfinite, sums)):
        return None
    return tuple(arithmetic.div(total, count, "f32") for total in sums)


def advance(state: ReferenceState) -> ReferenceState:
    """The counters after a commit, and the pending sums cleared (spec T4)."""
    *_, left_out = state["pending"]
    cleared = (0.0,) * len(state["pending"])
    return {**state, "steps": state["steps"] + 1, "skipped": state["skipped"] + int(left_out), "pending": cleared}
