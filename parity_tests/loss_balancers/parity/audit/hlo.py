"""The entry computation of optimised HLO: which kernel reads and writes which buffer."""

from __future__ import annotations

import re
from collections.abc import Callable

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError

#: From a kernel's name, the values of its operands and the number of its results to the values of its results.
Kernel = Callable[[str, list[Node], int], list[Node]]

INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (\([^()]*(?:\([^()]*\)[^()]*)*\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
ALIASES = ("bitcast", "copy")


def evaluate_entry(text: str, dag: Dag, kernel: Kernel) -> list[Node]:
    """The results of the entry computation, each kernel worked out by ``kernel``.

    Raises:
        NotEstablishedError: There is no entry computation, or an instruction in it that cannot be read.
    """
    values: dict[str, list[Node]] = {}
    for line in _entry(text):
        match = INSTRUCTION.match(line)
        if match is None:
            raise NotEstablishedError(f"an instruction of the entry computation cannot be read: {line.strip()}")
        root, name, shape, op, inside, attributes = match.groups()
        if op == "parameter":
            values[name] = [dag.input(int(inside), line.strip())]
        elif op == "constant":
            values[name] = [dag.number(float(inside))] if shape.startswith("f32[]") else [dag.opaque(line.strip())]
        else:
            values[name] = _value(op, _operands(inside, values, line), attributes, name, shape, kernel)
        if root:
            return values[name]
    raise NotEstablishedError("the entry computation has no root")


def _entry(text: str) -> list[str]:
    match = re.search(r"^ENTRY [^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise NotEstablishedError("the module has no entry computation")
    return [line for line in match[1].splitlines() if line.strip()]


def _operands(inside: str, values: dict[str, list[Node]], line: str) -> list[list[Node]]:
    names = re.findall(r"%([\w.\-]+)", inside)
    if any(name not in values for name in names):
        raise NotEstablishedError(f"an operand is not defined before its use: {line.strip()}")
    return [values[name] for name in names]


def _value(op: str, operands: list[list[Node]], attributes: str, name: str, shape: str, kernel: Kernel) -> list[Node]:
    if op in ALIASES:
        return operands[0]
    if op == "tuple":
        return [node for operand in operands for node in operand]
    if op == "get-tuple-element":
        match = re.search(r"index=(\d+)", attributes)
        if match is None:
            raise NotEstablishedError(f"get-tuple-element %{name} has no index")
        return [operands[0][int(match[1])]]
    if not re.fullmatch(r"f32\[\](\{[^}]*\})?", shape) and not shape.startswith("("):
        raise NotEstablishedError(f"%{name} is no float32 scalar but {shape}")
    results = len(re.findall(r"f32\[\]", shape))
    return kernel(name, [node for operand in operands for node in operand], results)
