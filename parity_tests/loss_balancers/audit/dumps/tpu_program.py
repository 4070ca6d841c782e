"""Executes the final bundles of one TPU program on nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from loss_balancers.audit.dumps.bundles import Literal, bundles, computed, register, word
from loss_balancers.audit.dumps.hlo import Buffer
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError

ALLOCATION = re.compile(r"\[#allocation(\d+(?:_spill)?)(?: \+ \$0x([0-9a-f]+))?\]")
#: The words by which the address after an address in HBM is further on. Were it another number, results would be missing.
GRANULE = 8
#: Queues by the instruction that takes from them.
QUEUES = {"spop": "push", "vpop.eup": "eup", "vpop.crf": "crf"}


class Address(NamedTuple):
    """``parameter`` i; ``allocation`` i; ``results``, where the runtime says the results are, ``offset`` words on; ``result`` i;
    ``operand`` i of a called program, ``output`` i of it.
    """

    kind: str
    number: int
    offset: int = 0
    name: str = ""


Value = Node | Address | Literal
#: From the name of an HLO instruction and the arguments of its program to what that stores, and where.
Call = Callable[[str, list[Value]], list[tuple[Value, Buffer]]]


class Program:
    """A program: what it has in registers, queues and memory.

    Args:
        dag: Where nodes are made.
        parameters: What the parameters of the module hold.
        call: Carries out the calls of other programs; None where there are none.
    """

    def __init__(self, dag: Dag, parameters: Sequence[Buffer], call: Call | None) -> None:
        self.results: dict[int, Node] = {}
        self.stored: dict[int, Node] = {}  # by a called program: the output -> what it stores there
        self._dag = dag
        self._parameters = parameters
        self._call = call
        self._operands: dict[int, Address] = {}
        self._held_by: list[Node | None] = []
        self._values: dict[str, Value] = {}
        self._held: dict[tuple[str, str], set[str]] = {}  # register -> the names of what it holds
        self._queues: dict[str, list[str]] = {queue: [] for queue in QUEUES.values()}
        self._memory: dict[tuple[str, str], Value | Buffer] = {}

    def bind(self, operands: Sequence[Node | None], outputs: Sequence[int]) -> None:
        """The operands of a called program: for each the element that it works on."""
        self._held_by = list(operands)
        self._operands = {i: Address("operand", i) for i in range(len(operands))} | {i: Address("output", i) for i in outputs}

    def run(self, text: str) -> None:
        """Executes all bundles."""
        for bundle in bundles(text):
            self._bundle(bundle)

    def word(self, value: Value, line: str) -> Node:
        """A value as a word."""
        return word(value, self._dag, line)

    def _bundle(self, text: str) -> None:
        """All its instructions read before any writes; an `int_to_ptr` only names the value of its operand again."""
        written: list[tuple[str, Value]] = []
        names: list[tuple[str, str]] = []
        for part in text.split(";;"):
            line = part.strip()
            if match := re.match(r"^(%\w+) = int_to_ptr\.\w+ \[[^\]]*\] (%\w+)$", line):
                names.append((match[1], match[2]))
            elif match := re.match(r"^(%\w+) = (inlined_call_operand\.<[^>]*>|[\w.\-]+)\s*(.*)$", line):
                written.append((match[1], self._execute(match[1], match[2], match[3].strip(), line)))
            elif line:
                raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        for name, value in written:
            self._values[name] = value
            if place := register(name):
                self._held[place] = {name}
        for name, source in names:
            self._values[name] = self._values.get(source, self._dag.opaque(f"{name} = {source}"))
            if place := register(name):
                self._held.setdefault(place, set()).add(name)

    def _execute(self, name: str, op: str, rest: str, line: str) -> Value:
        if op.startswith("inlined_call_operand") and (match := re.search(r"index: (\d+)", rest)):
            return self._operand(int(match[1]), op)
        if op == "inlined_call":
            self._called(rest, line)
        elif op.startswith("dma."):
            self._transfer(op, rest, line)
        elif op in {"vst", "cst", "sst"} and (match := re.match(r"^\[(\w+):(\[[^\]]*\])(?: sm:\$0x\w+)?\]\s+(%\w+)$", rest)):
            self._store(match[1], match[2], self._read(match[3]), line)
        elif op not in {"sld", "vld", "cld"} and (places := re.findall(r"\[(\w+):\[#allocation(\w+)", rest)):
            for space, number in places:  # some other store
                self._memory[space, number] = self._dag.opaque(line)
        elif op in {"vpush", "vrcp.f32", "vrsqrt.f32", "cld"} or op.startswith(("vpow2", "vlog2")):
            return self._queued(name, op, rest, line)
        elif op in QUEUES:
            queue = self._queues[QUEUES[op]]
            if not queue or queue.pop(0) != rest:
                raise NotEstablishedError(f"a queue out of order: {line}")
            return self._values[rest]
        else:
            return self._computed(name, op, rest, line)
        return self._dag.opaque(line)

    def _operand(self, number: int, op: str) -> Value:
        address = self._operands.get(number, Address("operand", number))
        if "<" in op and address.kind == "operand":
            return self._held_by[number] or self._dag.opaque(f"operand {number}")
        return address

    def _queued(self, name: str, op: str, rest: str, line: str) -> Value:
        queue = {"vpush": "push", "cld": "crf"}.get(op, "eup")
        self._queues[queue].append(name)
        if op == "cld":
            return self._loaded(rest, line)
        value = self._read(rest)
        return value if op == "vpush" else self._dag.op(op, self.word(value, line), line=line)

    def _computed(self, name: str, op: str, rest: str, line: str) -> Value:
        if op == "scalar_parameter_address":
            return Address("parameter", int(rest))
        if op in {"sld", "vld"}:
            return self._loaded(rest, line)
        if op == "smov" and (match := re.match(r"^\((!?)(%\w+), (%\w+)\), (\S+)$", rest)):
            return self._moved(name, match[1], match[2], match[3], match[4], line)
        if re.search(r"^\(!?%\w+\),|\(!?%\w+\)$", rest):
            return self._dag.opaque(line)  # predicated: what the register held before may stay
        arguments = [self._read(text.strip()) for text in rest.split(",")]
        if op in {"smov", "vmov", "vstv"}:
            return arguments[0]
        if any(isinstance(argument, Address) for argument in arguments):
            return self._pointer(op, arguments) or self._dag.opaque(line)
        return computed(op, [self.word(argument, line) for argument in arguments], self._dag, line)

    def _pointer(self, op: str, arguments: list[Value]) -> Address | None:
        first = arguments[0]
        if op == "sshll.u32" and isinstance(first, Address):
            return first  # from granules to bytes
        if op == "scalar_lea.hbm" and isinstance(first, Address) and first.kind == "results" and arguments[1] == Literal("1"):
            return first._replace(offset=first.offset + GRANULE)
        if op in {"scalar_lea.hbm", "scalar_lea.cmem"} and isinstance(first, Address) and first.kind == "allocation":
            # An allocation at its place in that memory, which the runtime says.
            return first if isinstance(arguments[1], Address) or not isinstance(arguments[1], Literal) else None
        return None

    def _moved(self, name: str, negated: str, predicate: str, before: str, text: str, line: str) -> Node:
        """A predicated move: the register keeps ``before`` where the predicate does not hold, so both must be one register."""
        if register(name) is None or register(name) != register(before):
            return self._dag.opaque(line)
        condition, old, new = (self.word(self._read(each), line) for each in (predicate, before, text))
        yes, no = (old, new) if negated else (new, old)
        return self._dag.op("select", condition, yes, no, line=line)

    def _called(self, rest: str, line: str) -> None:
        match = re.match(r"^(.*) @([\w.\-]+)$", rest)
        if match is None or self._call is None:
            return  # of the runtime's own; a result that is missing for it is noticed at the end
        for place, buffer in self._call(match[2], [self._read(text.strip()) for text in match[1].split(",")]):
            self._put(place, buffer, line)

    def _put(self, place: Value, buffer: Buffer, line: str) -> None:
        """A buffer goes to an address: of a result, or of an allocation, in whatever memory."""
        if isinstance(place, Address) and place.kind == "allocation":
            for space in ("vmem", "hbm", "cmem", "smem"):
                self._memory[space, place.name] = buffer
        elif isinstance(place, Address) and place.kind in {"results", "result"} and len(buffer) == 1:
            # The last store counts: the compiler may use the memory of a result for something else before.
            self.results[_result(place)] = buffer[0]
        else:
            raise NotEstablishedError(f"where a called program stores cannot be read: {line}")

    def _transfer(self, op: str, rest: str, line: str) -> None:
        match = re.match(r"^dma\.(\w+?)_to_(\w+)$", op)
        if match is None:
            return
        arguments = [text.strip() for text in re.sub(r"^\[thread:\$\d+\]", "", rest).split(",")]
        source, target = self._read(arguments[0]), self._read(arguments[2]) if len(arguments) > 2 else None
        if not (isinstance(source, Address) and isinstance(target, Address)):
            return  # of the runtime's own; a result that is missing for it is noticed at the end
        held: Value | Buffer | None = self._memory.get((match[1], source.name)) if source.kind == "allocation" else None
        if source.kind == "parameter":
            if source.number >= len(self._parameters):
                raise NotEstablishedError(f"the module has no parameter {source.number}: {line}")
            held = self._parameters[source.number]
        elif source.kind == "results" and match[2] == "smem":
            held = source
        elif source.kind in {"results", "result"} and _result(source) in self.results:
            held = [self.results[_result(source)]]
        if target.kind in {"results", "result"}:
            if not isinstance(held, list):
                held = [held] if isinstance(held, Node) else None
            if held is None:
                raise NotEstablishedError(f"a result that cannot be read: {line}")
            self._put(target, held, line)
        elif target.kind == "output":
            self._keep_output(target.number, held if isinstance(held, Node) else self._dag.opaque(line), line)
        elif target.kind == "allocation":
            self._memory[match[2], target.name] = self._dag.opaque(line) if held is None else held
        else:
            raise NotEstablishedError(f"a transfer that cannot be read: {line}")

    def _store(self, space: str, place: str, value: Value, line: str) -> None:
        if match := re.match(r"^\[(%\w+)\]$", place):
            address = self._read(match[1])
            if isinstance(address, Address) and address.kind == "output":
                self._keep_output(address.number, self.word(value, line), line)
            return  # elsewhere: of the runtime's own
        match = ALLOCATION.match(place)
        if match is None or match[2]:
            raise NotEstablishedError(f"a store that cannot be read: {line}")
        self._memory[space, match[1]] = value

    def _keep_output(self, number: int, node: Node, line: str) -> None:
        if number in self.stored:
            raise NotEstablishedError(f"an output that is stored twice: {line}")
        self.stored[number] = node

    def _loaded(self, rest: str, line: str) -> Value:
        match = re.match(r"^\[(\w+):(\[#[^\]]*\]|\[%\w+\])(?: sm:\$0x\w+)?\](?: \(!?%\w+\))?$", rest)
        if match is None:
            return self._dag.opaque(line)
        space, place = match[1], match[2]
        if place.startswith("[%"):
            address = self._read(place[1:-1])
            if isinstance(address, Address) and address.kind == "operand" and address.number < len(self._held_by):
                return self._held_by[address.number] or self._dag.opaque(line)
            return self._dag.opaque(line)
        found = ALLOCATION.match(place)
        if found is None:
            return self._dag.opaque(line)
        name, offset = found[1], int(found[2] or "0", 16)
        held = self._memory.get((space, name))
        if held is None:
            return Address("results", 0, name=name) if space == "smem" and not offset else self._dag.opaque(line)
        if isinstance(held, Address) and held.kind == "results":
            return held if name.endswith("_spill") else Address("result", held.offset + offset)
        if isinstance(held, list):
            return held[0] if len(held) == 1 and not offset else self._dag.opaque(line)
        return self._dag.opaque(line) if offset else held

    def _read(self, text: str) -> Value:
        if text.startswith("%"):
            place = register(text)
            stale = place is not None and text not in self._held.get(place, set())
            return self._dag.opaque(f"a stale operand {text}") if stale else self._values.get(text, self._dag.opaque(text))
        if (match := ALLOCATION.match(text)) and not match[2]:
            return Address("allocation", 0, name=match[1])
        return Literal(text)


def _result(place: Address) -> int:
    """Which result is at an address."""
    return place.number if place.kind == "result" else 0
