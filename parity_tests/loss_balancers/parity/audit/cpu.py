"""CPU: the optimised LLVM IR of a module's kernels, and what the disassembled object code made of it.

The IR gives the DAG. XLA lets the code generator contract a multiply and an add of the IR afterwards, so the IR alone proves
nothing about fused multiply-adds: the object code must hold exactly the multiplications, additions and divisions of the IR.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError, bits_float, float_bits
from loss_balancers.parity.audit.hlo import evaluate_entry

FUNCTION = re.compile(r'^define [^\n]*@"?([\w.\-]+)"?\([^\n]*\{\n(.*?)^\}', re.DOTALL | re.MULTILINE)
ARITHMETIC = {"fmul": "mul", "fadd": "add", "fsub": "sub", "fdiv": "div", "fneg": "neg"}
#: `fcmp` predicates under the names of `dag`: ordered, and unordered with a `u`.
PREDICATES = {
    "ole": "le",
    "olt": "lt",
    "oge": "ge",
    "ogt": "gt",
    "oeq": "eq",
    "ule": "leu",
    "ult": "ltu",
    "uge": "geu",
    "ugt": "gtu",
}
CALLS = {"@llvm.fabs.f32": "abs", "@llvm.fma.f32": "fma", "@llvm.fmuladd.f32": "fma"}
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
    functions = {match[1]: match[2] for match in FUNCTION.finditer(ir)}
    emitted: Counter[str] = Counter()

    def kernel(name: str, operands: list[Node], results: int) -> list[Node]:
        if name not in functions:
            raise NotEstablishedError(f"there is no LLVM function for %{name} among {', '.join(functions) or 'none'}")
        stored, counts = _Function(dag, operands).run(functions[name])
        emitted.update(counts)
        if sorted(stored) != [len(operands) + i for i in range(results)]:
            raise NotEstablishedError(f"the function of %{name} stores to buffers {sorted(stored)}")
        return [stored[len(operands) + i] for i in range(results)]

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


class _Function:
    """Executes a function on nodes. Pointers are tuples: the call frame, its array of arguments, a buffer."""

    def __init__(self, dag: Dag, operands: list[Node]) -> None:
        self._dag = dag
        self._operands = operands
        self._values: dict[str, Node | tuple[str, int]] = {"%0": ("frame", 0)}
        self._stored: dict[int, Node] = {}
        self._counts: Counter[str] = Counter()
        self._labels: set[str] = set()

    def run(self, body: str) -> tuple[dict[int, Node], Counter[str]]:
        for raw in body.splitlines():
            line = raw.split(" ; ")[0].strip().removeprefix("; ")
            if match := re.match(r"^([\w.]+):", line):
                self._labels.add(f"%{match[1]}")
            elif match := re.match(r"^(%[\w.]+) = (?:tail )?(\w+) (.*)$", line):
                self._values[match[1]] = self._value(match[2], match[3], line)
            elif line.startswith("store "):
                self._store(line)
            elif line.startswith("br "):
                if self._labels & set(re.findall(r"label (%[\w.]+)", line)):
                    raise NotEstablishedError(f"a loop: {line}")
            elif line and not line.startswith(("ret ", "call void @llvm.assume")):
                raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        return self._stored, self._counts

    def _store(self, line: str) -> None:
        match = re.match(r"^store float (\S+), ptr (%[\w.]+)", line)
        pointer = self._values.get(match[2]) if match else None
        if match is None or not isinstance(pointer, tuple) or pointer[0] != "buffer" or pointer[1] in self._stored:
            raise NotEstablishedError(f"a store that cannot be read: {line}")
        self._stored[pointer[1]] = self._node(match[1], line)

    def _value(self, op: str, rest: str, line: str) -> Node | tuple[str, int]:
        if op in {"getelementptr", "load"} and (pointer := self._pointer(op, rest)) is not None:
            return pointer
        if op == "load" and (match := re.match(r"^float, ptr (%[\w.]+)", rest)):
            return self._loaded(self._values.get(match[1]), line)
        if op in ARITHMETIC and (match := re.match(r"^((?:[a-z]+ )*)float (\S+?)(?:, (\S+?))?(?:, !.*)?$", rest)):
            flags, *operands = match.groups()
            self._counts[ARITHMETIC[op]] += 1
            nodes = [self._node(text, line) for text in operands if text]
            return self._dag.op(f"{ARITHMETIC[op]}[{flags.strip()}]" if flags else ARITHMETIC[op], *nodes, line=line)
        if op == "fcmp" and (match := re.match(r"^(\w+) float (\S+), (\S+)$", rest)):
            nodes = [self._node(match[i], line) for i in (2, 3)]
            return self._dag.op(f"cmp.{PREDICATES.get(match[1], match[1])}", *nodes, line=line)
        if op == "select" and (match := re.match(r"^i1 (\S+), float (\S+), float (\S+)$", rest)):
            return self._dag.op("select", *(self._node(text, line) for text in match.groups()), line=line)
        if op == "call" and (match := re.match(r"^float (@[\w.]+)\((.*)\)", rest)) and match[1] in CALLS:
            nodes = [self._node(argument.split()[-1], line) for argument in match[2].split(",")]
            return self._dag.op(CALLS[match[1]], *nodes, line=line)
        return self._dag.opaque(line)

    def _pointer(self, op: str, rest: str) -> tuple[str, int] | None:
        """The frame holds, at 24, the array of arguments: 16 bytes each, the buffer's address first."""
        if match := re.match(r"^(?:inbounds )?(?:nuw )?i8, ptr (%[\w.]+), i64 (\d+)$", rest):
            base = self._values.get(match[1])
            if op == "getelementptr" and isinstance(base, tuple) and base[0] in {"frame", "arguments"}:
                return (base[0], base[1] + int(match[2]))
        elif op == "load" and (match := re.match(r"^ptr, ptr (%[\w.]+)", rest)):
            base = self._values.get(match[1])
            if base == ("frame", 24):
                return ("arguments", 0)
            if isinstance(base, tuple) and base[0] == "arguments" and base[1] % 16 == 0:
                return ("buffer", base[1] // 16)
        return None

    def _loaded(self, pointer: Node | tuple[str, int] | None, line: str) -> Node:
        if isinstance(pointer, tuple) and pointer[0] == "buffer":
            number = pointer[1]
            return self._operands[number] if number < len(self._operands) else self._stored.get(number, self._dag.opaque(line))
        return self._dag.opaque(line)

    def _node(self, text: str, line: str) -> Node:
        if match := re.match(r"^f0x([0-9A-F]{8})$", text):
            return self._dag.const(int(match[1], 16))
        if re.match(r"^-?\d+\.\d+e[+-]\d+$", text):
            bits = float_bits(float(text))
            # LLVM prints six digits only where they are enough.
            return self._dag.const(bits) if f"{bits_float(bits):.6e}" == text else self._dag.opaque(line)
        value = self._values.get(text)
        return value if isinstance(value, Node) else self._dag.opaque(line)
