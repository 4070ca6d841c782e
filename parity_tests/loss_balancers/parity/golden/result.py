"""What one step of a balancer gave, as bits."""

from __future__ import annotations

from typing import NamedTuple

#: A format and bits.
Bits = tuple[str, int]


class Result(NamedTuple):
    """What one step gave: the bits of the aggregate and of the gradient to each loss, with their formats.

    Unless the weights are constants, also the weights; and each number of the state after the step, such as ``total[0]``.
    ``learned`` has the gradient to each number of a parameter.
    """

    aggregate: Bits
    gradients: dict[str, Bits]
    weights: dict[str, Bits] = {}  # noqa: RUF012  # of a NamedTuple, and never changed
    state: dict[str, Bits] = {}  # noqa: RUF012
    learned: dict[str, Bits] = {}  # noqa: RUF012
