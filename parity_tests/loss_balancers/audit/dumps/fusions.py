"""The computations that fusions of optimised HLO call, executed on nodes: those few operations that move vectors and choose."""

from __future__ import annotations

import re

from loss_balancers.audit.dumps.hlo import Buffer, Instruction, called, constant
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError

ELEMENTWISE = {
    "multiply": "mul",
    "add": "add",
    "subtract": "sub",
    "maximum": "maximum",
    "abs": "abs",
    "negate": "neg",
    "select": "select",
}
#: Which of these round, by their names in machine code.
ROUNDS = {"multiply": "mul", "add": "add", "subtract": "sub"}


def run(text: str, each: Instruction, operands: list[Buffer], dag: Dag) -> list[Buffer]:
    """The results of a fusion, or of another instruction of the entry computation.

    Raises:
        NotEstablishedError: There is an operation in it that is not among those few.
    """
    if each.op != "fusion":
        return [_value(text, each, operands, dag)]
    values: dict[str, list[Buffer]] = {}
    for line in called(text, each):
        given = [buffer for name in line.operands for buffer in values[name]]
        if line.op == "parameter":
            values[line.name] = [operands[int(line.inside)]]
        elif line.op == "tuple":
            values[line.name] = given
        else:
            values[line.name] = [constant(line, dag) if line.op == "constant" else _value(text, line, given, dag)]
        if line.root:
            return values[line.name]
    raise NotEstablishedError(f"the computation of %{each.name} has no root")


def roundings(text: str, each: Instruction) -> list[str]:
    """What a fusion rounds: a `mul` or `add` for each operation on floats."""
    lines = called(text, each) if each.op == "fusion" else [each]
    return sorted(ROUNDS[line.op] for line in lines if line.op in ROUNDS and line.shape.startswith("f32"))


def _value(text: str, line: Instruction, given: list[Buffer], dag: Dag) -> Buffer:
    (size,) = line.sizes
    if line.op in {"bitcast", "copy"}:
        return given[0]
    if line.op == "broadcast" and len(given[0]) in {1, size}:
        return given[0] * (size // len(given[0]))
    if line.op == "slice" and (match := re.search(r"slice=\{\[(\d+):(\d+)\]\}", line.attributes)):
        return given[0][int(match[1]) : int(match[2])]
    if line.op == "pad" and (match := re.search(r"padding=(\d+)_(\d+)", line.attributes)):
        return [*given[1] * int(match[1]), *given[0], *given[1] * int(match[2])]
    if line.op == "concatenate":
        return [node for buffer in given for node in buffer]
    if line.op == "reduce" and [each.op for each in called(text, line)] == ["parameter", "parameter", "and"]:
        return [_all(given[0], dag, line.line)]
    if any(len(buffer) != size for buffer in given):
        raise NotEstablishedError(f"an instruction of the HLO cannot be read: {line.line}")
    return [_element(line, list(nodes), dag) for nodes in zip(*given, strict=True)]


def _element(line: Instruction, nodes: list[Node], dag: Dag) -> Node:
    float_operation = line.shape.startswith(("f32", "pred"))
    if line.op in ELEMENTWISE and (float_operation or line.op == "select"):
        return dag.op(ELEMENTWISE[line.op], *nodes, line=line.line)
    if line.op == "compare" and (match := re.search(r"direction=(\w\w)", line.attributes)):
        # Floats alone are compared in the fusions that are read; anything else would be a mistake of this reader.
        if re.search(r"type=|s32|u32", line.attributes):
            raise NotEstablishedError(f"a comparison that cannot be read: {line.line}")
        suffix = "u" if match[1] == "NE" else ""
        return dag.op(f"cmp.{match[1].lower()}{suffix}", *nodes, line=line.line)
    if line.op == "is-finite":
        return dag.op("i.xor", dag.op("is_weird", *nodes, line=line.line), dag.const(1), line=line.line)
    if line.op in {"and", "or"} and line.shape.startswith("pred"):
        return dag.op(f"i.{line.op}", *nodes, line=line.line)
    raise NotEstablishedError(f"an instruction of the HLO cannot be read: {line.line}")


def _all(truths: Buffer, dag: Dag, line: str) -> Node:
    result = truths[0]
    for truth in truths[1:]:
        result = dag.op("i.and", result, truth, line=line)
    return result
