"""CPU: the optimised LLVM IR of a module's kernels, and what the disassembled object code made of it.

The IR gives the DAG. XLA lets the code generator contract a multiply and an add of the IR afterwards, so the IR alone proves
nothing about fused multiply-adds: the object code must hold none, and its paths must round as often as those of the IR.
"""

from __future__ import annotations

from typing import NamedTuple

from loss_balancers.audit.dumps import disassembly
from loss_balancers.audit.dumps.hlo import Buffer, alike, evaluate_entry
from loss_balancers.audit.dumps.llvm import FUNCTION, Function, Memory, Pointer
from loss_balancers.audit.dumps.llvm_blocks import blocks
from loss_balancers.audit.dumps.roundings import Blocks, round_alike, shown
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError


class Module(NamedTuple):
    """What was read: the results, and the lines of object code that fuse or approximate."""

    results: list[Node]
    forbidden: list[tuple[str, str]]


def read_module(hlo: str, ir: str, object_code: str, dag: Dag) -> Module:
    """The results of a compiled module, from its optimised HLO, the IR of all its kernels and their disassembly.

    Raises:
        NotEstablishedError: A kernel is missing or cannot be read, or its object code does not round as often as its IR.
    """
    functions = {match[1]: (match[2], match[3]) for match in FUNCTION.finditer(ir)}

    def kernel(name: str, operands: list[Buffer], sizes: list[int]) -> list[Buffer]:
        emitted_as = name if name in functions else next((each for each in alike(hlo, name) if each in functions), None)
        if emitted_as is None:
            raise NotEstablishedError(f"there is no LLVM function for %{name} among {', '.join(functions) or 'none'}")
        memory = Memory(operands)
        Function(functions, memory, dag).run(emitted_as, [Pointer("frame")])
        return memory.results(name, sizes)

    values = evaluate_entry(hlo, dag, kernel)
    found, forbidden = disassembly.read(object_code)
    if not forbidden:
        _same_roundings({name: blocks(body) for name, (_, body) in functions.items()}, found)
    return Module(values, forbidden)


def _same_roundings(emitted: dict[str, Blocks], found: dict[str, Blocks]) -> None:
    for name in emitted | found:
        ir, machine = emitted.get(name, {}), found.get(name, {})
        if not round_alike(ir, machine):
            raise NotEstablishedError(
                f"{name}: the IR has {shown(ir)}, the object code {shown(machine)}, and not along the same paths"
            )
