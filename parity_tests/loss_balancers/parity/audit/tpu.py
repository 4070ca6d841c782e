"""TPU: the final bundles of the top-level program, a straight line of VLIW instructions on scalars and broadcast vectors.

Every operand carries two names, that of the value and that of the register (``%s148_s23``): an operand whose register meanwhile
holds another value cannot be read. Registers are read as they were before the bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError, float_bits

BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|\d+)\s+([A-Z]{2})?\s*:\s*\{(.*)\}\s*$")
REGISTER = re.compile(r"%(?:s|v|vm|p)\d+_(s|v|vm|p)(\d+)$")
ALLOCATION = re.compile(r"\[#allocation(\d+)(?: \+ \$0x([0-9a-f]+))?\]")
ARITHMETIC = {"mul.f32": "mul", "add.f32": "add", "sub.f32": "sub"}
MAGNITUDE = 0x7FFFFFFF
#: The words by which the address after an address in HBM is further on. Were it another number, results would be missing.
GRANULE = 8


class Address(NamedTuple):
    """``parameter`` i; ``allocation`` i; ``results``, where the runtime says the results are, ``offset`` words on; ``result`` i."""

    kind: str
    number: int
    offset: int = 0


class Literal(NamedTuple):
    """An immediate operand."""

    text: str


Value = Node | Address | Literal


def read_program(bundles: str, results: int, dag: Dag) -> list[Node]:
    """The results of a compiled module, from the final bundles of its top-level program.

    Raises:
        NotEstablishedError: The program has a loop, or does not store every result once.
    """
    program = _Program(dag)
    _no_loops(bundles)
    for label, text in _bundles(bundles):
        if label in {"LH", "LB", "LE"}:
            raise NotEstablishedError(f"a loop: {text}")
        program.bundle(text)
    if sorted(program.results) != list(range(results)):
        raise NotEstablishedError(f"expected {results} results, found stores to {sorted(program.results) or 'none'}")
    return [program.results[i] for i in range(results)]


def _bundles(text: str) -> Iterator[tuple[str, str]]:
    if not re.search(r"scalar_parameter_address", text):
        raise NotEstablishedError("the program reads no parameter")
    text = re.sub(r"/\* BoundsCheck.*?\n \*/", "", text, flags=re.DOTALL)  # it has comments inside
    for line in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).splitlines():
        if match := BUNDLE.match(line):
            yield match[1] or "", match[2].strip()
        elif re.match(r"^\s*(0x[0-9a-f]+|\d+)\s+[A-Z ]*:", line):
            raise NotEstablishedError(f"a bundle that cannot be read: {line.strip()}")


def _no_loops(text: str) -> None:
    """Every branch must go forward: past work that this core or this run has no part in."""
    for branch in re.finditer(r"sbr\.\w+[^;\n]*target = \$region(\d+)", text):
        if not re.search(rf"region {branch[1]}\b", text[branch.end() :]):
            raise NotEstablishedError(f"a branch that does not go forward: {branch[0]}")


class _Program:
    """Executes bundles on nodes."""

    def __init__(self, dag: Dag) -> None:
        self.results: dict[int, Node] = {}
        self._dag = dag
        self._values: dict[str, Value] = {}
        self._held: dict[tuple[str, str], set[str]] = {}  # register -> the names of what it holds
        self._queues: dict[str, list[str]] = {"vpush": [], "eup": []}
        self._memory: dict[tuple[str, int], Value] = {}

    def bundle(self, text: str) -> None:
        """All its instructions read before any writes; an `int_to_ptr` only names the value of its operand again."""
        written: list[tuple[str, Value]] = []
        names: list[tuple[str, str]] = []
        for part in text.split(";;"):
            line = part.strip()
            if match := re.match(r"^(%\w+) = int_to_ptr\.\w+ \[[^\]]*\] (%\w+)$", line):
                names.append((match[1], match[2]))
            elif match := re.match(r"^(%\w+) = ([\w.\-]+)\s*(.*)$", line):
                value = self._execute(match[1], match[2], match[3].strip(), line)
                written.append((match[1], value))
            elif line:
                raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        for name, value in written:
            self._values[name] = value
            if register := _register(name):
                self._held[register] = {name}
        for name, source in names:
            self._values[name] = self._values.get(source, self._dag.opaque(f"{name} = {source}"))
            if register := _register(name):
                self._held.setdefault(register, set()).add(name)

    def _execute(self, name: str, op: str, rest: str, line: str) -> Value:
        if op.startswith("dma."):
            self._transfer(op, rest, line)
        elif op == "vst" and (match := re.match(r"^\[vmem:(\[#[^\]]*\]) sm:\$0x\w+\]\s+(%\w+)$", rest)):
            self._store("vmem", match[1], self._read(match[2]), line)
        elif op not in {"sld", "vld"} and (places := re.findall(r"\[(\w+):\[#allocation(\d+)", rest)):
            for space, number in places:  # some other store
                self._memory[space, int(number)] = self._dag.opaque(line)
        elif op in {"vpush", "vrcp.f32", "vrsqrt.f32"} or op.startswith(("vpow2", "vlog2")):
            queue = "vpush" if op == "vpush" else "eup"
            self._queues[queue].append(name)
            value = self._read(rest)
            return value if op == "vpush" or not isinstance(value, Node) else self._dag.op(op, value, line=line)
        elif op in {"spop", "vpop.eup"}:
            queue = self._queues["vpush" if op == "spop" else "eup"]
            if not queue or queue.pop(0) != rest:
                raise NotEstablishedError(f"a queue out of order: {line}")
            return self._values[rest]
        else:
            return self._computed(name, op, rest, line)
        return self._dag.opaque(line)

    def _computed(self, name: str, op: str, rest: str, line: str) -> Value:
        if op == "scalar_parameter_address":
            return Address("parameter", int(rest))
        if op in {"sld", "vld"} and (match := re.match(r"^\[(\w+):(\[#[^\]]*\])(?: sm:\$0x\w+)?\](?: \(!?%\w+\))?$", rest)):
            return self._load(match[1], match[2], line)
        if op == "smov" and (match := re.match(r"^\((!?)(%\w+), (%\w+)\), (\S+)$", rest)):
            return self._moved(name, match[1], match[2], match[3], match[4], line)
        if re.search(r"^\(!?%\w+\),|\(!?%\w+\)$", rest):
            return self._dag.opaque(line)  # predicated: what the register held before may stay
        arguments = [self._read(text.strip()) for text in rest.split(",")]
        if op in {"smov", "vmov", "vstv"}:
            return arguments[0]
        if op == "sshll.u32" and isinstance(arguments[0], Address):
            return arguments[0]  # from granules to bytes
        if op == "scalar_lea.hbm" and (base := _results(arguments[0])) and arguments[1] == Literal("1"):
            return base._replace(offset=base.offset + GRANULE)
        if match := re.match(r"^[sv](\w+\.f32)$", op):
            return self._dag.op(ARITHMETIC.get(match[1], op), *self._floats(arguments, line), line=line)
        if match := re.match(r"^[sv]cmp\.(\w+)\.f32\.partialorder$", op):
            return self._dag.op(f"cmp.{match[1]}", *self._floats(arguments, line), line=line)
        if op in {"sand.u32", "vand.u32"}:
            return self._masked(arguments, line)
        if op in {"vsel", "scalar_select"}:
            return self._selected(arguments, line)
        if op == "scmp.ne.s32.totalorder" and arguments[1] == Literal("0") and _is_truth(arguments[0]):
            return arguments[0]
        return self._dag.opaque(line)

    def _masked(self, arguments: list[Value], line: str) -> Value:
        mask, value = arguments
        if isinstance(value, Node) and mask == Literal(str(MAGNITUDE)) and not _is_truth(value):
            return self._dag.op("abs", value, line=line)
        return value if mask == Literal("255") and _is_truth(value) else self._dag.opaque(line)

    def _selected(self, arguments: list[Value], line: str) -> Value:
        condition, yes, no = arguments
        if (yes, no) == (Literal("1"), Literal("0")) and _is_truth(condition):
            return condition
        return self._dag.op("select", *self._floats(arguments, line), line=line)

    def _moved(self, name: str, negated: str, predicate: str, before: str, text: str, line: str) -> Node:
        """A predicated move: the register keeps ``before`` where the predicate does not hold, so both must be one register."""
        if _register(name) is None or _register(name) != _register(before):
            return self._dag.opaque(line)
        condition, old, new = self._floats([self._read(predicate), self._read(before), self._read(text)], line)
        yes, no = (old, new) if negated else (new, old)
        return self._dag.op("select", condition, yes, no, line=line)

    def _transfer(self, op: str, rest: str, line: str) -> None:
        if op == "dma.done.wait":
            return
        arguments = [text.strip() for text in rest.removeprefix("[thread:$0]").split(",")]
        source, target = self._read(arguments[0]), self._read(arguments[2]) if len(arguments) > 2 else None
        if not (isinstance(source, Address) and isinstance(target, Address)):
            return  # of the runtime's own; a result that is missing for it is noticed at the end
        if op == "dma.hbm_to_vmem" and source.kind == "parameter":
            self._memory["vmem", target.number] = self._dag.input(source.number, line)
        elif op == "dma.hbm_to_smem":
            self._memory["smem", target.number] = source if source.kind == "results" else self._dag.input(source.number, line)
        elif op == "dma.vmem_to_hbm" and target.kind in {"results", "result"}:
            number = target.number if target.kind == "result" else 0
            value = self._memory.get(("vmem", source.number))
            if number in self.results or not isinstance(value, Node):
                raise NotEstablishedError(f"a result that cannot be read: {line}")
            self.results[number] = value
        else:
            raise NotEstablishedError(f"a transfer that cannot be read: {line}")

    def _store(self, space: str, place: str, value: Value, line: str) -> None:
        match = ALLOCATION.match(place)
        if match is None or match[2]:
            raise NotEstablishedError(f"a store that cannot be read: {line}")
        self._memory[space, int(match[1])] = value

    def _load(self, space: str, place: str, line: str) -> Value:
        match = ALLOCATION.match(place)
        if match is None:
            return self._dag.opaque(line)
        number, offset = int(match[1]), int(match[2] or "0", 16)
        held = self._memory.get((space, number))
        if held is None:
            return Address("results", number) if space == "smem" and not offset else self._dag.opaque(line)
        if table := _results(held):
            return Address("result", table.offset + offset)
        return self._dag.opaque(line) if offset else held

    def _read(self, text: str) -> Value:
        if text.startswith("%"):
            register = _register(text)
            stale = register is not None and text not in self._held.get(register, set())
            return self._dag.opaque(f"a stale operand {text}") if stale else self._values.get(text, self._dag.opaque(text))
        if (match := ALLOCATION.match(text)) and not match[2]:
            return Address("allocation", int(match[1]))
        return Literal(text)

    def _floats(self, values: list[Value], line: str) -> list[Node]:
        return [self._float(value, line) for value in values]

    def _float(self, value: Value, line: str) -> Node:
        if isinstance(value, Literal) and re.match(r"^-?\d+(\.\d+)?(e[+-]?\d+)?$", value.text):
            decimal = re.search(r"[.e]", value.text)  # what has neither is the bits of a materialised constant
            return self._dag.const(float_bits(float(value.text)) if decimal else int(value.text))
        return value if isinstance(value, Node) else self._dag.opaque(line)


def _register(name: str) -> tuple[str, str] | None:
    """The register of a value: ``("s", "23")``. None for what has none, a transfer or a queue entry."""
    match = REGISTER.match(name)
    return (match[1], match[2]) if match else None


def _results(value: Value) -> Address | None:
    return value if isinstance(value, Address) and value.kind == "results" else None


def _is_truth(value: Value) -> bool:
    return isinstance(value, Node) and value.op.startswith("cmp.")
