"""LLVM IR: how often each block of a function rounds, and what comes next."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from loss_balancers.audit.dumps.llvm import FLOATS
from loss_balancers.audit.dumps.roundings import KINDS, Block, Blocks
from loss_balancers.audit.expressions.dag import NotEstablishedError

NAME = re.compile(r"%[\w.\-]+")
CHOICE = "a choice"
#: From a value to what uses it: the result that it goes into; `CHOICE` for a choice that may not take it; None for all else.
Uses = dict[str, list[str | None]]


def blocks(body: str) -> Blocks:
    """The blocks of a function's body. The first may have a name or none.

    Raises:
        NotEstablishedError: A block ends with what is neither a branch nor a return.
    """
    lines = [line.partition(";")[0].rstrip() for line in body.replace('"', "").splitlines()]
    uses = _uses(lines)
    known: dict[str, bool] = {}
    current = Block(Counter(), Counter(), [])
    found, ended = {"": current}, False
    for line in lines:
        if match := re.match(r"^([\w.\-]+):", line):
            if not ended:
                current.successors.append(match[1])  # only the nameless block before the first name falls through
            current, ended = found.setdefault(match[1], Block(Counter(), Counter(), [])), False
        elif match := re.match(r"^\s+(%[\w.]+) = (\w+) ", line):
            kind = "sqrt" if "@llvm.sqrt.f32(" in line else FLOATS.get(match[2])
            if kind == "mul" and re.search(r"[ ,]2\.000000e\+00\)?(,|$)", line):
                kind = "add"  # the code generator adds a number to itself instead, which rounds neither
            if kind in KINDS:
                (current.may if _only_chosen(match[1], uses, known) else current.must)[kind] += 1
        elif re.match(r"^\s+(br|ret|unreachable)\b", line):
            current.successors.extend(re.findall(r"label %([\w.\-]+)", line))
            ended = True
        elif re.match(r"^\s+(switch|indirectbr|invoke)\b", line):
            raise NotEstablishedError(f"an instruction that cannot be read: {line.strip()}")
    return found


def _uses(lines: list[str]) -> Uses:
    uses: Uses = defaultdict(list)
    for line in lines:
        match = re.match(r"^\s+(%[\w.]+) = (?:(?:must|no)?tail )?(\w+) (.*)$", line)
        if match is None or match[2] == "phi" or (match[2] == "call" and "@llvm." not in match[3]):
            used: list[tuple[str, str | None]] = [(line, None)]
        elif match[2] == "select":
            condition, _, values = match[3].partition(",")
            used = [(condition, match[1]), (values, CHOICE)]
        else:
            used = [(match[3], match[1])]
        for text, use in used:
            for name in NAME.findall(text):
                uses[name].append(use)
    return uses


def _only_chosen(name: str, uses: Uses, known: dict[str, bool]) -> bool:
    """Whether all that needs a value is a choice that may take another. What is ``known`` is not asked again."""
    if name not in known:
        known[name] = all(use is not None and (use == CHOICE or _only_chosen(use, uses, known)) for use in uses[name])
    return known[name]
