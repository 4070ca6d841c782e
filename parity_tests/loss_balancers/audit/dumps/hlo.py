"""The entry computation of optimised HLO: which kernel reads and writes which buffer."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import NamedTuple

from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError

#: What a buffer holds, element by element.
Buffer = list[Node]
#: From a kernel's name, what its operands hold and how many elements each of its results has, to what those hold.
Kernel = Callable[[str, list[Buffer], list[int]], list[Buffer]]

INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (\([^()]*(?:\([^()]*\)[^()]*)*\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
SHAPE = re.compile(r"\b(f32|s32|u32|s64|u64|pred)\[([\d,]*)\]")
ALIASES = ("bitcast", "copy")


class Instruction(NamedTuple):
    """A line of HLO. ``inside`` is what stands in the brackets, ``attributes`` what comes after."""

    root: bool
    name: str
    shape: str
    op: str
    inside: str
    attributes: str
    line: str

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    @property
    def sizes(self) -> list[int]:
        """How many elements the results have.

        Raises:
            NotEstablishedError: One is no array of words or truths.
        """
        sizes = [prod(map(int, size.split(","))) if size else 1 for _, size in SHAPE.findall(self.shape)]
        if not sizes or len(sizes) != len(re.findall(r"\[", re.sub(r"\{[^}]*\}", "", self.shape))):
            raise NotEstablishedError(f"%{self.name} is no array of words but {self.shape}")
        return sizes


def instructions(text: str, header: str) -> list[Instruction]:
    """The instructions of the computation whose first line matches ``header``.

    Raises:
        NotEstablishedError: There is no such computation, or a line in it that cannot be read.
    """
    match = re.search(rf"^{header}[^\n]*\{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise NotEstablishedError(f"the module has no computation {header}")
    read = []
    for line in match[1].splitlines():
        if line.strip():
            found = INSTRUCTION.match(line)
            if found is None:
                raise NotEstablishedError(f"an instruction of the HLO cannot be read: {line.strip()}")
            root, name, shape, op, inside, attributes = found.groups()
            read.append(Instruction(bool(root), name, shape, op, inside, attributes, line.strip()))
    return read


def parameters(entry: list[Instruction], dag: Dag) -> dict[str, Buffer]:
    """The parameters by name, their elements numbered one after the other."""
    given = sorted((each for each in entry if each.op == "parameter"), key=lambda each: int(each.inside))
    buffers: dict[str, Buffer] = {}
    number = 0
    for each in given:
        (size,) = each.sizes
        buffers[each.name] = [dag.input(number + i, each.line) for i in range(size)]
        number += size
    return buffers


def constant(each: Instruction, dag: Dag) -> Buffer:
    """What a constant holds; opaque if that cannot be read."""
    (size,) = each.sizes
    values = re.findall(r"[^{},\s]+", each.inside)
    if len(values) != size:
        return [dag.opaque(each.line)] * size
    if each.shape.startswith("f32"):
        return [dag.number(float(value)) for value in values]
    return [dag.const({"true": 1, "false": 0}[v] if v in {"true", "false"} else int(v) & 0xFFFFFFFF) for v in values]


def evaluate_entry(text: str, dag: Dag, kernel: Kernel) -> list[Node]:
    """The results of the entry computation, all scalars, each kernel worked out by ``kernel``.

    Raises:
        NotEstablishedError: There is no entry computation, or an instruction in it that cannot be read.
    """
    entry = instructions(text, "ENTRY ")
    values: dict[str, list[Buffer]] = {name: [buffer] for name, buffer in parameters(entry, dag).items()}
    for each in entry:
        if each.op == "constant":
            values[each.name] = [constant(each, dag)]
        elif each.op != "parameter":
            if any(name not in values for name in each.operands):
                raise NotEstablishedError(f"an operand is not defined before its use: {each.line}")
            values[each.name] = _value(each, [values[name] for name in each.operands], kernel)
        if each.root:
            return [node for buffer in values[each.name] for node in buffer]
    raise NotEstablishedError("the entry computation has no root")


def _value(each: Instruction, operands: list[list[Buffer]], kernel: Kernel) -> list[Buffer]:
    if each.op in ALIASES:
        return operands[0]
    if each.op == "tuple":
        return [buffer for operand in operands for buffer in operand]
    if each.op == "get-tuple-element":
        return [operands[0][index(each)]]
    return kernel(each.name, [buffer for operand in operands for buffer in operand], each.sizes)


def index(each: Instruction) -> int:
    """The index of a get-tuple-element."""
    match = re.search(r"index=(\d+)", each.attributes)
    if match is None:
        raise NotEstablishedError(f"get-tuple-element %{each.name} has no index")
    return int(match[1])


def alike(text: str, name: str) -> list[str]:
    """The fusions of the entry computation that compute the same as ``name``: XLA emits one kernel for all of them."""
    bodies = {each.name: _body(text, each) for each in instructions(text, "ENTRY ") if each.op == "fusion"}
    return [other for other, body in bodies.items() if other != name and body == bodies.get(name)]


def called(text: str, each: Instruction) -> list[Instruction]:
    """The computation that a fusion or reduction calls."""
    match = re.search(r"(?:calls|to_apply)=(%[\w.\-]+)", each.attributes)
    if match is None:
        raise NotEstablishedError(f"%{each.name} calls no computation")
    return instructions(text, f"{re.escape(match[1])} ")


def _body(text: str, each: Instruction) -> list[tuple[object, ...]]:
    """A fusion's computation without names and metadata."""
    order: dict[str, int] = {}
    lines: list[tuple[object, ...]] = []
    for line in called(text, each):
        order[line.name] = len(order)
        operands = [order.get(name, -1) for name in line.operands] or line.inside
        attributes = re.sub(r", (metadata|backend_config|frontend_attributes)=.*", "", line.attributes)
        lines.append((line.root, line.shape, line.op, operands, attributes))
    return lines
