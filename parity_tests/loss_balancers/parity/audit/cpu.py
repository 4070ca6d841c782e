"""CPU: the optimised LLVM IR of a module's kernels, and what the disassembled object code made of it.

The IR gives the DAG. XLA lets the code generator contract a multiply and an add of the IR afterwards, so the IR alone proves
nothing about fused multiply-adds: the object code must hold exactly the multiplications, additions and divisions of the IR.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError
from loss_balancers.parity.audit.hlo import Buffer, alike, evaluate_entry
from loss_balancers.parity.audit.llvm import FLOATS, FUNCTION, Function, Memory, Pointer

#: Mnemonics in object code, x86-64 and AArch64, by what they do. Packed ones count as any other: the counts then differ.
MACHINE = {
    "mul": re.compile(r"^v?mul[sp]s$|^fmul$"),
    "add": re.compile(r"^v?add[sp]s$|^fadd$"),
    "sub": re.compile(r"^v?sub[sp]s$|^fsub$"),
    "div": re.compile(r"^v?div[sp]s$|^fdiv$"),
    "fma": re.compile(r"^vf(n?)m(add|sub)\w*$|^f(n?)m(add|sub|la|ls)$"),
    "rcp": re.compile(r"^v?(rcp|rsqrt)\w*$|^fr(ecp|sqrt)[esx]$"),
}
FORBIDDEN = ("fma", "rcp")


class Module(NamedTuple):
    """What was read: the results, and the lines of object code that fuse or approximate."""

    results: list[Node]
    forbidden: list[tuple[str, str]]


def read_module(hlo: str, ir: str, disassembly: str, dag: Dag) -> Module:
    """The results of a compiled module, from its optimised HLO, the IR of all its kernels and their disassembly.

    Raises:
        NotEstablishedError: A kernel is missing, is no straight line, or its object code does not hold what the IR does.
    """
    functions = {match[1]: (match[2], match[3]) for match in FUNCTION.finditer(ir)}
    emitted = Counter(FLOATS[op] for op in re.findall(r"^\s+%[\w.]+ = (f(?:mul|add|sub|div)) ", ir, re.MULTILINE))

    def kernel(name: str, operands: list[Buffer], sizes: list[int]) -> list[Buffer]:
        emitted_as = name if name in functions else next((each for each in alike(hlo, name) if each in functions), None)
        if emitted_as is None:
            raise NotEstablishedError(f"there is no LLVM function for %{name} among {', '.join(functions) or 'none'}")
        memory = Memory(operands)
        Function(functions, memory, dag).run(emitted_as, [Pointer("frame")])
        return memory.results(name, sizes)

    values = evaluate_entry(hlo, dag, kernel)
    found, lines = _machine_operations(disassembly)
    if not any(found[kind] for kind in FORBIDDEN):
        for kind in ("mul", "add", "sub", "div"):
            if found[kind] != emitted[kind]:
                raise NotEstablishedError(f"the IR has {emitted[kind]} operations {kind!r}, the object code {found[kind]}")
    return Module(values, lines)


def _machine_operations(disassembly: str) -> tuple[Counter[str], list[tuple[str, str]]]:
    """How many operations of each kind a disassembly holds, and the lines of those that fuse or approximate."""
    found: Counter[str] = Counter()
    lines = []
    instructions = 0
    for line in disassembly.splitlines():
        match = re.match(r"^\s*[0-9a-f]+:\s+(?:[0-9a-f]{2,8}\s+)*([a-z][\w.]*)", line)
        if match is None:
            continue
        instructions += 1
        for kind, pattern in MACHINE.items():
            if pattern.match(match[1]):
                found[kind] += 1
                if kind in FORBIDDEN:
                    lines.append((kind, re.sub(r"\s+", " ", line.strip())))
    if not instructions:
        raise NotEstablishedError("the disassembly shows no instructions")
    return found, lines
