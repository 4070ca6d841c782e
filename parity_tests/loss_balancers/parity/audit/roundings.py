"""How often code rounds: its multiplications, additions, subtractions and divisions, in all and along each of its paths.

A code generator moves what it is given. It lays a copy of a block behind each block that jumps to it, and equal ends of blocks
together: that changes how many operations there are in all, and no path. It makes a choice a branch, or a branch a choice: that
changes what a path executes, and nothing in all. A fusion takes operations away from both.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import NamedTuple

from loss_balancers.parity.audit.dag import NotEstablishedError

KINDS = ("mul", "add", "sub", "div")
#: How many of each kind.
Counts = tuple[int, ...]


class Block(NamedTuple):
    """A straight line: how often it rounds, by kind, and the labels of the blocks that may come next; none where it returns."""

    rounds: Counter[str]
    successors: list[str]


#: The blocks of a function by label; it begins with the first.
Blocks = dict[str, Block]


def round_alike(emitted: Blocks, found: Blocks) -> bool:
    """Whether ``found`` rounds as often as ``emitted``.

    Either its paths execute what those of ``emitted`` do, or it holds as many operations in all and has, for each path of
    ``emitted``, one that executes no fewer.

    Raises:
        NotEstablishedError: The paths of one cannot be followed.
    """
    if not (emitted and found):
        return in_all(emitted) == in_all(found)
    wanted, held = along_paths(emitted), along_paths(found)
    if in_all(emitted) != in_all(found):
        return wanted == held
    return all(any(all(map(operator.ge, most, each)) for most in held) for each in wanted)


def in_all(blocks: Blocks) -> Counts:
    """The operations of all blocks."""
    return _counts(sum((block.rounds for block in blocks.values()), Counter()))


def along_paths(blocks: Blocks) -> set[Counts]:
    """What the paths from the first block to a return execute: each number of operations that there is.

    Raises:
        NotEstablishedError: There is a loop, or a jump that goes to no block.
    """
    known: dict[str, set[Counts]] = {}
    entered: set[str] = set()

    def onward(label: str) -> set[Counts]:
        if label in known:
            return known[label]
        if label not in blocks:
            raise NotEstablishedError(f"a jump that cannot be followed: {label}")
        if label in entered:
            raise NotEstablishedError(f"a loop: the block at {label}")
        entered.add(label)
        here, successors = _counts(blocks[label].rounds), blocks[label].successors
        after = {counts for each in successors for counts in onward(each)} if successors else {(0,) * len(KINDS)}
        known[label] = {tuple(map(sum, zip(here, counts, strict=True))) for counts in after}
        return known[label]

    return onward(next(iter(blocks)))


def _counts(rounds: Counter[str]) -> Counts:
    return tuple(rounds[kind] for kind in KINDS)
