"""What differs from the exact reference: value by value, and in one cell of the matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from loss_balancers.parity.bits import describe, from_bits, same, to_bits, ulp_distance
from loss_balancers.parity.golden.vectors import Case, Value


class Difference(NamedTuple):
    """One value of a case that is not the reference's: in another format, or with other bits."""

    case: str
    what: str
    format: str
    expected: int
    actual_format: str
    actual: int

    @property
    def title(self) -> str:
        """What differs, and the format where that is what differs."""
        return self.what if self.actual_format == self.format else f"{self.what} ({self.actual_format}, not {self.format})"

    @property
    def comparable(self) -> tuple[str, int, int]:
        """A format that both values can be compared in, the bits expected and the actual ones."""
        if self.actual_format == self.format:
            return self.format, self.expected, self.actual
        return (
            "f64",
            to_bits(from_bits(self.expected, self.format), "f64"),
            to_bits(from_bits(self.actual, self.actual_format), "f64"),
        )

    @property
    def ulp(self) -> int | None:
        """The distance in ulp, None where one of the two is NaN."""
        fmt, expected, actual = self.comparable
        return ulp_distance(actual, expected, fmt)

    def __str__(self) -> str:
        fmt, expected, actual = self.comparable
        return f"{self.case}, {self.title}: {describe(actual, expected, fmt)}"


class Cell(NamedTuple):
    """One balancer on one lane in one column: how many cases ran, the digest of all that they gave, and every difference.

    Or, where the device lacks a format of the column, none of them, and ``absent`` says why.
    """

    lane: str
    balancer: str
    label: str
    vectors: int = 0
    digest: str = ""
    differences: tuple[Difference, ...] = ()
    absent: str | None = None

    @property
    def identical(self) -> int:
        """How many of them have the bits of the reference in every value."""
        return self.vectors - len({difference.case for difference in self.differences})

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return next(iter(self.differences), None)

    @property
    def worst(self) -> Difference | None:
        """The difference with the largest distance; a NaN against a number is the worst."""
        return max(self.differences, key=lambda d: math.inf if d.ulp is None else d.ulp, default=None)


def differences(case: Case, given: Sequence[Value]) -> list[Difference]:
    """Each value that was given for a case and is not the reference's.

    Raises:
        RuntimeError: Other values were given than the case has, such as the gradient to another loss.
    """
    if [value.what for value in given] != [value.what for value in case.values]:
        raise RuntimeError(f"{case.name} gave {[value.what for value in given]}, not {[value.what for value in case.values]}.")
    found = (difference(case.name, wanted, actual) for wanted, actual in zip(case.values, given, strict=True))
    return [different for different in found if different is not None]


def difference(case: str, wanted: Value, actual: Value) -> Difference | None:
    """How a value differs from the one wanted; None if it has the same format and the same bits, or both are NaN."""
    if wanted.format == actual.format and same(actual.bits, wanted.bits, wanted.format):
        return None
    return Difference(case, wanted.what, wanted.format, wanted.bits, actual.format, actual.bits)
