"""What `assert_twins` says when twins differ: where first, what, how far, and how often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from loss_balancers.parity.bits import FORMAT_OF_DTYPE, array_bits, from_bits, ulp_distance
from loss_balancers.parity.twins.cases import Losses
from loss_balancers.parity.twins.outcome import SECOND, Outcome, Run

#: How many elements of an array a message shows.
_SHOWN = 8


class Row(NamedTuple):
    """One step of one run: what it is called, the losses, and what each lane gave."""

    title: str
    losses: Losses
    outcomes: dict[str, Outcome]


def rows_of(runs: Sequence[Run], outcomes: Mapping[str, Sequence[Sequence[Outcome]]]) -> list[Row]:
    """The steps of all runs, one after the other."""
    return [
        Row(
            f"{one.title}, step {t}" if one.commits else one.title,
            losses,
            {lane: of_lane[index][t] for lane, of_lane in outcomes.items()},
        )
        for index, one in enumerate(runs)
        for t, losses in enumerate(one.steps)
    ]


def elements(rows: Sequence[Row]) -> int:
    """How many numbers are compared."""
    return sum(array.size for row in rows for outcome in row.outcomes.values() for array in outcome.values())


class Difference(NamedTuple):
    """A result of one lane that is not the first lane's that has it."""

    row: int
    what: str
    lane: str
    ulp: float  # infinite where it is no distance between numbers


def differences(rows: Sequence[Row], max_ulp: int) -> list[Difference]:
    """Each result of a lane that is not that of the first lane, or that is only on one side."""
    return [
        Difference(index, what, lane, ulp)
        for index, row in enumerate(rows)
        for what in dict.fromkeys(what for outcome in row.outcomes.values() for what in outcome)
        for lane, ulp in _distances(row, what).items()
        if ulp > max_ulp
    ]


def _distances(row: Row, what: str) -> dict[str, float]:
    """How far each lane is from the first, or from the first that has it of what some lanes cannot give."""
    given = {lane: outcome.get(what) for lane, outcome in row.outcomes.items()}
    if what.startswith(SECOND):  # `torch.compile` has no second backward
        given = {lane: array for lane, array in given.items() if array is not None}
    first, *others = given
    return {lane: _distance(given[lane], given[first]) for lane in others}


def _distance(actual: np.ndarray | None, expected: np.ndarray | None) -> float:
    """The worst distance in ulp between two results; infinite where formats or shapes differ, or only one is there or a number."""
    if actual is None or expected is None or actual.dtype != expected.dtype or actual.shape != expected.shape:
        return math.inf
    fmt = FORMAT_OF_DTYPE.get(actual.dtype.name)
    if fmt is None:  # an entry of a state, such as a flag
        return 0 if np.array_equal(actual, expected) else math.inf
    differ = np.argwhere(array_bits(actual) != array_bits(expected))
    return max((_ulp(int(array_bits(actual)[tuple(i)]), int(array_bits(expected)[tuple(i)]), fmt) for i in differ), default=0)


def _ulp(actual: int, expected: int, fmt: str) -> float:
    values = from_bits(actual, fmt), from_bits(expected, fmt)
    if all(math.isnan(value) for value in values):
        return 0
    distance = ulp_distance(actual, expected, fmt)
    return distance if distance is not None and all(math.isfinite(value) for value in values) else math.inf


def message(rows: Sequence[Row], runs: Sequence[Run], found: Sequence[Difference], max_ulp: int) -> str:
    """The text of the AssertionError."""
    first, worst = found[0], max(found, key=lambda difference: difference.ulp)
    counts = Counter(difference.what for difference in found)
    failed = len({difference.row for difference in found})
    allowed = f" by more than {max_ulp} ulp" if max_ulp else ""
    lines = [
        f"The twins differ{allowed}: first of {len(found)} differences in {_counted(runs)}, {failed} of which differ",
        f"{rows[first.row].title}:",
        *_table({name: _value(array) for name, array in rows[first.row].losses.items()}),
        *_result(rows[first.row], first),
        "differences by result:",
        *_table({what: str(counts[what]) for what in _in_order(rows) if what in counts}),
    ]
    if worst.ulp > first.ulp:
        lines += [f"worst, {rows[worst.row].title}:", *_result(rows[worst.row], worst)]
    return "\n".join(lines)


def _counted(runs: Sequence[Run]) -> str:
    cases, sequences = [one for one in runs if not one.commits], [one for one in runs if one.commits]
    of_sequences = f"{sum(len(one.steps) for one in sequences)} steps of {len(sequences)} sequences"
    return " and ".join([f"{len(cases)} cases"] * bool(cases) + [of_sequences] * bool(sequences))


def _in_order(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(what for row in rows for outcome in row.outcomes.values() for what in outcome))


def _result(row: Row, difference: Difference) -> list[str]:
    """One result as each lane gave it; of an array, the element that is farthest off, by which the array counts as different."""
    what = difference.what
    arrays = {lane: outcome.get(what) for lane, outcome in row.outcomes.items() if what in outcome or not what.startswith(SECOND)}
    expected = next(iter(arrays.values()))
    element = _worst_element(arrays[difference.lane], expected)
    if element and expected is not None:
        arrays = {
            lane: array[(*element, ...)] if array is not None and array.shape == expected.shape else array
            for lane, array in arrays.items()
        }
        expected = expected[(*element, ...)]
    table = {lane: "nothing" if array is None else f"{_value(array)}{_apart(array, expected)}" for lane, array in arrays.items()}
    return [f"{what}{f', element {element}' if element else ''}:", *_table(table)]


def _worst_element(actual: np.ndarray | None, expected: np.ndarray | None) -> tuple[int, ...]:
    """The index of the first element that no other is farther off than; empty where format or shape differ, and for scalars."""
    if actual is None or expected is None or actual.dtype != expected.dtype or actual.shape != expected.shape:
        return ()
    return max(np.ndindex(actual.shape), key=lambda index: _distance(actual[(*index, ...)], expected[(*index, ...)]), default=())


def _apart(actual: np.ndarray, expected: np.ndarray | None) -> str:
    ulp = _distance(actual, expected)
    if not math.isinf(ulp):
        return f"  {int(ulp)} ulp off" if ulp else ""
    if expected is None:
        return ""
    if actual.dtype != expected.dtype:
        return "  another format"
    if actual.shape != expected.shape:
        return "  another shape"
    return "  a number against a NaN or an infinity" if actual.dtype.name in FORMAT_OF_DTYPE else "  another value"


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"    {name:<{width}}  {value}" for name, value in rows.items()]


def _value(array: np.ndarray) -> str:
    """Format and value: in hex, the way that a case is written, and a scalar in decimal too, for the eye."""
    fmt = FORMAT_OF_DTYPE.get(array.dtype.name, array.dtype.name)
    values = [float(x) for x in array.astype(np.float64).flat]
    if array.shape == ():
        return f"{fmt}  {values[0].hex()}  ({values[0]:.9g})"
    shown = ", ".join(value.hex() for value in values[:_SHOWN])
    return f"{fmt} {array.shape}  [{shown}{', ...' if len(values) > _SHOWN else ''}]"
