"""The state of balancers: what it holds, how it is observed and committed, and how it moves.

State is observed in the forward and committed by ``step()``, once per optimizer step:

- ``pending``, float32 ``(n + 2,)``: the sums of the n observed losses since the last commit in canonical order, how many calls
  they sum, and how many were left out because a sum would not have been finite.
- ``steps`` and ``skipped``, int32 ``()``: commits so far, and calls left out so far.

and what a method adds. Every entry starts at zero. The reference holds numbers as Python floats and ints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.spec import arithmetic, errors
from loss_balancers.spec.formats import flush

SCHEMA = "loss-balancers-state/1"


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


# --- moving it ------------------------------------------------------------------------------------------------------


def exported(balancer: str, settings: Mapping[str, Any], names: Sequence[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """What ``export_state()`` returns: plain NumPy arrays, with all that is needed to know what they are."""
    return {
        "schema": SCHEMA,
        "balancer": balancer,
        "settings": dict(settings),
        "names": list(names),
        "state": {name: np.array(value) for name, value in state.items()},
    }


def checked_state(
    balancer: str,
    settings: Mapping[str, Any],
    names: Sequence[str],
    entries: Sequence[StateEntry],
    exported: Any,
    renamed: Mapping[str, str | None] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an exported state, for a balancer with these entries; nothing is changed if they do not fit.

    Args:
        balancer: The class name.
        settings: Its settings, as JSON has them.
        names: Its losses in canonical order.
        entries: Its state.
        exported: What `export_state` returned, in either framework.
        renamed: For each of ``names``, its name in ``exported``, or None for a loss that starts afresh. Names that are not
            given keep theirs. Settings are then not compared: they name losses too.

    Raises:
        TypeError: ``exported`` is no mapping.
        ValueError: Another schema, balancer, settings, names or entries; each error lists both sides.
    """
    if not isinstance(exported, Mapping) or list(exported) != ["schema", "balancer", "settings", "names", "state"]:
        raise errors.not_a_state(list(exported) if isinstance(exported, Mapping) else type(exported).__name__)
    for what, mine in (("schema", SCHEMA), ("balancer", balancer)):
        if exported[what] != mine:
            raise errors.state_mismatch(what, mine, exported[what])
    sources = _sources(names, exported["names"], renamed)
    if renamed is None and exported["settings"] != settings:
        raise errors.state_mismatch("settings", dict(settings), exported["settings"])
    arrays = {e.name: _checked_array(e, len(exported["names"]) - len(names), exported["state"]) for e in entries}
    if len(exported["state"]) != len(entries):
        raise errors.state_mismatch("entries", [e.name for e in entries], list(exported["state"]))
    if renamed is not None and arrays["pending"][-2:].any():
        raise errors.pending_and_renamed()
    return {e.name: _reordered(arrays[e.name], e, sources) for e in entries}


def _sources(names: Sequence[str], theirs: Any, renamed: Mapping[str, str | None] | None) -> list[int | None]:
    """For each of our names, where the exported state has it."""
    wanted = {name: name for name in names}
    if renamed is not None:
        unknown = [name for name in renamed if name not in wanted]
        if unknown:
            raise errors.renamed_unknown(unknown, list(names))
        wanted |= renamed  # type: ignore[reportArgumentType]
    if (renamed is None and list(names) != list(theirs)) or not set(filter(None, wanted.values())) <= set(theirs):
        raise errors.state_names(list(names), list(theirs))
    return [None if source is None else list(theirs).index(source) for source in wanted.values()]


def _checked_array(entry: StateEntry, more: int, state: Any) -> np.ndarray[Any, Any]:
    """The array of an entry; ``more`` is how many more losses the exported state has than ours."""
    if not isinstance(state, Mapping) or entry.name not in state:
        raise errors.state_mismatch("entries", entry.name, list(state) if isinstance(state, Mapping) else type(state).__name__)
    array = np.asarray(state[entry.name])
    shape = (entry.shape[0] + more,) if entry.named else entry.shape
    if array.dtype != entry.dtype or array.shape != shape:
        raise errors.state_mismatch(f"state[{entry.name!r}]", f"{entry.dtype}{shape}", f"{array.dtype}{array.shape}")
    if not np.isfinite(array).all() or (entry.dtype == "int32" and array.min(initial=0) < 0):
        raise errors.state_values(entry.name, array.tolist())
    return array


def _reordered(array: np.ndarray[Any, Any], entry: StateEntry, sources: Sequence[int | None]) -> np.ndarray[Any, Any]:
    if not entry.named:
        return array.copy()
    mine = [array.dtype.type(0) if source is None else array[source] for source in sources]
    rest = array[len(array) - (entry.shape[0] - entry.named) :] if entry.shape[0] > entry.named else array[:0]
    return np.concatenate([np.array(mine, array.dtype), rest])
