"""State that moves: from one framework to the other, and from one set of losses to another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.state import StateEntry, base_entries

SCHEMA = "loss-balancers-state/2"

#: The schema before, which is still read. Its ``pending`` has one count for all losses: the number of calls.
_ONE_COUNT = "loss-balancers-state/1"

#: The parts of an exported state that are not arrays.
DESCRIPTION = ("schema", "balancer", "settings", "names")

Array = np.ndarray[Any, Any]


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
) -> dict[str, Array]:
    """The arrays of an exported state, for a balancer with these entries (spec T6, T7).

    Args:
        balancer: The class name.
        settings: Its settings, as JSON has them.
        names: Its losses in canonical order.
        entries: Its state.
        exported: What `export_state` returned, in either framework.
        renamed: For each of ``names``, its name in ``exported``, or None for a loss that starts afresh. A name that is not
            given keeps its own. Settings are then not compared, since they name losses too.

    Raises:
        TypeError: ``exported`` is not a mapping, or ``renamed`` is not a mapping of names.
        ValueError: Another schema, balancer, settings, names or entries; each error lists both sides.
    """
    check_parts(exported)
    if isinstance(exported["schema"], str) and exported["schema"] == _ONE_COUNT:
        exported = {**exported, "schema": SCHEMA, "state": _with_counts(exported["state"], exported["names"])}
    for what, mine in (("schema", SCHEMA), ("balancer", balancer)):
        if not isinstance(exported[what], str) or exported[what] != mine:
            raise errors.state_mismatch(what, mine, exported[what])
    theirs = exported["names"]
    sources = _sources(names, theirs, renamed)
    if renamed is None:
        _check_settings(settings, exported["settings"])
    arrays = _checked_arrays(entries, len(theirs) - len(names), exported["state"])
    return {entry.name: _reordered(arrays[entry.name], entry, sources) for entry in entries}


def check_loadable(exported: Any, settings: Any = None) -> None:
    """Raises unless a balancer can load an exported state, in the words of `checked_state`.

    Args:
        exported: What `export_state` returned.
        settings: Those of ``exported``, or None if they are of a balancer that this library does not know. Then only the entries
            that every balancer has are known, and what else there is must be an array that an entry can be.

    Raises:
        TypeError: ``exported`` is not a mapping, or does not have its parts.
        ValueError: A part, or an entry, is not as every balancer has it.
    """
    check_parts(exported)
    schema, balancer, names, state = (exported[part] for part in ("schema", "balancer", "names", "state"))
    if not isinstance(schema, str) or schema not in (SCHEMA, _ONE_COUNT):
        raise errors.state_mismatch("schema", SCHEMA, schema)
    if not isinstance(balancer, str):
        raise errors.state_mismatch("balancer", "the name of a class", balancer)
    if not _distinct_names(names):
        raise errors.names_of_state(names)
    if schema == _ONE_COUNT:
        state = _with_counts(state, names)
    if settings is None:
        _checked_arrays(_entries_of(names, state), 0, state)
    else:
        _checked_arrays(settings.entries, len(names) - len(settings.names), state)


def _entries_of(names: Sequence[str], state: Any) -> list[StateEntry]:
    """The entries that a balancer must have which keeps these arrays."""
    held: dict[Any, Any] = dict(state) if isinstance(state, Mapping) else {}
    observed = 0 if getattr(held.get("pending"), "shape", None) == (2,) else len(names)  # some balancers observe nothing
    entries = {entry.name: entry for entry in base_entries(observed)}
    for name, array in held.items():
        dtype = "int32" if getattr(array, "dtype", None) == np.int32 else "float32"
        entries.setdefault(name, StateEntry(name, dtype, getattr(array, "shape", ())))
    return list(entries.values())


def _checked_arrays(entries: Sequence[StateEntry], more: int, state: Any) -> dict[str, Array]:
    """The arrays of these entries; ``more`` is how many more losses the state has than the entries."""
    if not isinstance(state, Mapping) or set(state) != {entry.name for entry in entries}:
        received = list(state) if isinstance(state, Mapping) else type(state).__name__
        raise errors.state_mismatch("entries", [entry.name for entry in entries], received)
    return {entry.name: _checked_array(entry, more, state[entry.name]) for entry in entries}


def _with_counts(state: Any, names: Any) -> Any:
    """A state of the schema with one count, changed to a count per loss; as it is if its ``pending`` is not of that schema."""
    pending = state.get("pending") if isinstance(state, Mapping) else None
    if not isinstance(pending, np.ndarray) or pending.shape == (
        2,
    ):  # a balancer that observes no losses: the schemas do not differ
        return state
    if not isinstance(names, Sequence) or pending.shape != (len(names) + 2,):
        raise errors.state_entry(
            "pending", "float32 with an element per loss and two more", f"{pending.dtype} of shape {pending.shape}"
        )
    counts = np.full(len(names), pending[-2], pending.dtype)
    return {**state, "pending": np.concatenate([pending[:-2], counts, pending[-2:]])}


def check_parts(exported: Any) -> None:
    """Raises unless ``exported`` has the parts of an exported state (spec T6).

    Raises:
        TypeError: ``exported`` is not a mapping, or does not have exactly these parts.
    """
    if not isinstance(exported, Mapping):
        raise errors.not_a_state(type(exported).__name__)
    if set(exported) != {*DESCRIPTION, "state"}:
        raise errors.not_a_state(errors.shown(list(exported)))


def _check_settings(mine: Mapping[str, Any], theirs: Any) -> None:
    if not isinstance(theirs, Mapping):
        raise errors.state_settings(mine, theirs)
    differ = [name for name in {**mine, **theirs} if name not in mine or name not in theirs or not _same(mine[name], theirs[name])]
    if differ:
        raise errors.state_settings(*({name: side[name] for name in differ if name in side} for side in (mine, theirs)))


def _same(mine: Any, theirs: Any) -> bool:
    """Whether two values are the same JSON."""
    try:
        return json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False


def _sources(names: Sequence[str], theirs: Any, renamed: Mapping[str, str | None] | None) -> list[int | None]:
    """For each of our names, its place in the exported state; None for a loss that starts afresh."""
    if not _distinct_names(theirs):
        raise errors.state_names(names, theirs)
    wanted: dict[str, str | None] = {name: name for name in names}
    if renamed is not None:
        if not isinstance(renamed, Mapping) or not all(isinstance(name, (str, type(None))) for name in renamed.values()):
            raise errors.renamed_type(renamed)
        unknown = [name for name in renamed if name not in wanted]
        if unknown:
            raise errors.renamed_unknown(unknown, names)
        wanted |= renamed
        strange = {name: source for name, source in renamed.items() if source is not None and source not in theirs}
        if strange:
            raise errors.renamed_absent(strange, theirs)
    absent = [name for name in wanted.values() if name is not None and name not in theirs]
    if absent or (renamed is None and list(names) != list(theirs)):
        raise errors.state_names(names, list(theirs))
    return [None if source is None else theirs.index(source) for source in wanted.values()]


def _distinct_names(names: Any) -> bool:
    return isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _checked_array(entry: StateEntry, more: int, value: Any) -> Array:
    """The array of an entry; ``more`` is how many more losses the exported state has than ours."""
    shape = (entry.shape[0] + entry.blocks * more,) if entry.named else entry.shape
    if not isinstance(value, (np.ndarray, np.generic)):
        raise errors.state_entry(entry.name, f"{entry.dtype} of shape {shape}", f"one of type {type(value).__name__}")
    array: Array = np.asarray(value)
    if array.dtype != entry.dtype or array.shape != shape:
        raise errors.state_entry(entry.name, f"{entry.dtype} of shape {shape}", f"{array.dtype} of shape {array.shape}")
    check_values(entry, array)
    return array


def check_values(entry: StateEntry, array: Array) -> None:
    """Raises if a number cannot come from a run. ``array`` may have a wider format than the entry.

    Raises:
        ValueError: A number is not finite, or a count is negative, or the entry's format does not hold it.
    """
    with np.errstate(all="ignore"):
        held = array.astype(entry.dtype)
    fits = (held == array).all() if entry.dtype == "int32" else np.isfinite(held).all()
    counts: Array = array if entry.dtype == "int32" else array[len(array) // 2 - 1 :] if entry.name == "pending" else array[:0]
    if not fits or not np.isfinite(array).all() or (counts < 0).any():
        raise errors.state_values(entry.name, array.tolist())


def _reordered(array: Array, entry: StateEntry, sources: Sequence[int | None]) -> Array:
    if not entry.named:
        return array.copy()
    rest = entry.shape[0] - entry.blocks * entry.named
    theirs = (len(array) - rest) // entry.blocks
    by_block = array[: len(array) - rest].reshape(entry.blocks, theirs)
    fresh = np.reshape(entry.start or np.zeros(entry.blocks * entry.named), (entry.blocks, entry.named)).astype(array.dtype)
    mine = [fresh[:, i] if source is None else by_block[:, source] for i, source in enumerate(sources)]
    return np.concatenate([np.array(mine, array.dtype).T.ravel(), array[len(array) - rest :]])
