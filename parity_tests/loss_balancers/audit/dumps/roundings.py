"""How often code rounds, by kind of operation, along each of its paths: what a code generator may move, and what it may not.

It may lay a copy of a block behind each block that jumps to it, and equal ends of blocks together: the operations in all then
change, those of a path do not. It may make a choice among values a branch, and skip what only the other value needs; or make a
branch a choice. It may not leave out or repeat what a path must execute: a fusion does.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import NamedTuple

from loss_balancers.audit.expressions.dag import NotEstablishedError

KINDS = ("mul", "add", "sub", "div", "sqrt")
#: How many of each kind.
Counts = tuple[int, ...]


class Block(NamedTuple):
    """A straight line.

    Args:
        must: How often it rounds, by kind, whatever is chosen.
        may: How often it rounds for choices: only they use the results, so a branch may skip these.
        successors: The labels of the blocks that may come next; none where it returns.
    """

    must: Counter[str]
    may: Counter[str]
    successors: list[str]


#: The blocks of a function by label; it begins with the first.
Blocks = dict[str, Block]


class Span(NamedTuple):
    """What a path executes at least, and at most."""

    least: Counts
    most: Counts


def round_alike(emitted: Blocks, found: Blocks) -> bool:
    """Whether each path of ``found`` executes what one of ``emitted`` may, and for each of those there is one that executes all.

    Raises:
        NotEstablishedError: The paths of one cannot be followed.
    """
    wanted, held = along_paths(emitted), along_paths(found)
    allowed = all(any(_covers(path.most, each.least) and _covers(each.most, path.most) for each in wanted) for path in held)
    return allowed and all(any(_covers(path.most, each.most) for path in held) for each in wanted)


def along_paths(blocks: Blocks) -> set[Span]:
    """What the paths from the first block to a return execute; a function without blocks has one, and it executes nothing.

    Raises:
        NotEstablishedError: There is a loop, or a jump that goes to no block.
    """
    nothing = Span(*[(0,) * len(KINDS)] * 2)
    known: dict[str, set[Span]] = {}
    entered: set[str] = set()

    def onward(label: str) -> set[Span]:
        if label in known:
            return known[label]
        if label not in blocks:
            raise NotEstablishedError(f"a jump that cannot be followed: {label}")
        if label in entered:
            raise NotEstablishedError(f"a loop: the block at {label}")
        entered.add(label)
        must, may, successors = blocks[label]
        here = Span(_counts(must), _counts(must + may))
        after = {span for each in successors for span in onward(each)} if successors else {nothing}
        known[label] = {Span(_sum(here.least, span.least), _sum(here.most, span.most)) for span in after}
        return known[label]

    return onward(next(iter(blocks))) if blocks else {nothing}


def shown(blocks: Blocks) -> str:
    """The operations of all blocks: ``3 mul, 2 add``."""
    counts = sum((block.must + block.may for block in blocks.values()), Counter())
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "nothing that rounds"


def _covers(most: Counts, least: Counts) -> bool:
    return all(map(operator.ge, most, least))


def _sum(a: Counts, b: Counts) -> Counts:
    return tuple(map(operator.add, a, b))


def _counts(rounds: Counter[str]) -> Counts:
    return tuple(rounds[kind] for kind in KINDS)
