"""TPU: the final bundles of the top-level program, which works on scalars and calls a program for each fusion of vectors."""

from __future__ import annotations

import re

from loss_balancers.audit.dumps import fusions
from loss_balancers.audit.dumps.hlo import Buffer, Instruction, index, instructions, parameters
from loss_balancers.audit.dumps.hlo import constant as constant_buffer
from loss_balancers.audit.dumps.tpu_program import Program, Value
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError, walk

OPERAND = re.compile(
    r"= inlined_call_operand\.(<[^>]*>|\w+) \[shape: (\w+)\[(\d*)\][^,]*, index: (\d+), kind: (\w+), shape index: \{(\d*)\}\]"
)
#: Operations on floats that do not round. The last packs truths, for all its name.
UNROUNDED = ("cmp.", "max.f32", "weird.f32", "smask.f32", "pack.c.bf16")
ALIASES = ("copy", "bitcast", "copy-start", "copy-done")


def read_module(hlo: str, bundles: str, calls: dict[str, str], results: int, dag: Dag) -> list[Node]:
    """The results of a compiled module.

    Args:
        hlo: Its optimised HLO. From it comes which vector goes where.
        bundles: The final bundles of its top-level program.
        calls: Those of the programs that it calls, by the name of the HLO instruction.
        results: How many there are, all scalars.
        dag: Where nodes are made.

    Raises:
        NotEstablishedError: A program has a loop, or does not store every result once.
    """
    if not re.search(r"scalar_parameter_address", bundles):
        raise NotEstablishedError("the program reads no parameter")
    module = _Module(hlo, calls, dag)
    program = Program(dag, module.parameters, module.call)
    program.run(bundles)
    if sorted(program.results) != list(range(results)):
        raise NotEstablishedError(f"expected {results} results, found stores to {sorted(program.results) or 'none'}")
    return [program.results[i] for i in range(results)]


class _Module:
    """The entry computation, as far as vectors go, and the programs that are called."""

    def __init__(self, hlo: str, calls: dict[str, str], dag: Dag) -> None:
        entry = instructions(hlo, "ENTRY ")
        self._hlo = hlo
        self._dag = dag
        self._calls = calls
        self._entry = {each.name: each for each in entry}
        self._named = parameters(entry, dag)
        self._done: dict[str, list[Buffer]] = {}
        given = sorted((each for each in entry if each.op == "parameter"), key=lambda each: int(each.inside))
        self.parameters = [self._named[each.name] for each in given]

    def call(self, name: str, arguments: list[Value]) -> list[tuple[Value, Buffer]]:
        """What a called program stores, and where."""
        if name not in self._calls or name not in self._entry:
            raise NotEstablishedError(f"there are no bundles for %{name} among {', '.join(self._calls) or 'none'}")
        text, each = self._calls[name], self._entry[name]
        declared = {int(match[4]): match for match in OPERAND.finditer(text)}
        if sorted(declared) != list(range(len(arguments))):
            raise NotEstablishedError(f"the program of %{name} has {len(declared)} operands and is given {len(arguments)}")
        inputs = [place for place in sorted(declared) if declared[place][5] == "input"]
        operands = [self._operand(each, place, declared[place][1], arguments[place]) for place in inputs]
        outputs = sorted((place for place in declared if declared[place][5] == "output"), key=lambda at: int(declared[at][6] or 0))
        sizes = [int(declared[place][3] or 1) for place in outputs]
        results = self._elementwise(text, operands, outputs, sizes)
        if any(node.op == "opaque" for node in walk([node for buffer in results for node in buffer])):
            results = self._by_hlo(text, each, operands)
        self._done[name] = results
        return [(arguments[place], buffer) for place, buffer in zip(outputs, results, strict=True)]

    def _operand(self, each: Instruction, place: int, space: str, argument: Value) -> Buffer:
        """A scalar in a register, or a vector by the name that HLO gives it."""
        if space.startswith("<"):
            return [argument if isinstance(argument, Node) else Program(self._dag, [], None).word(argument, each.line)]
        buffers = self._resolved(each.operands[place])
        if len(buffers) != 1:
            raise NotEstablishedError(f"an operand that cannot be read: %{each.operands[place]}")
        return buffers[0]

    def _resolved(self, name: str) -> list[Buffer]:
        each = self._entry[name]
        if each.op == "parameter":
            return [self._named[name]]
        if each.op == "constant":
            return [constant_buffer(each, self._dag)]
        if each.op in ALIASES:
            return self._resolved(each.operands[0])
        if each.op == "get-tuple-element":
            return [self._resolved(each.operands[0])[index(each)]]
        if name not in self._done:
            raise NotEstablishedError(f"a vector whose origin cannot be read: {each.line}")
        return self._done[name]

    def _elementwise(self, text: str, operands: list[Buffer], outputs: list[int], sizes: list[int]) -> list[Buffer]:
        """The program executed once for each element, as if lanes had nothing to do with one another: else it reads as opaque."""
        results: list[Buffer] = [[] for _ in outputs]
        for element in range(max(sizes)):
            program = Program(self._dag, [], None)
            bound = [buffer[0] if len(buffer) == 1 else buffer[element : element + 1] or None for buffer in operands]
            program.bind([each[0] if isinstance(each, list) else each for each in bound], outputs)
            program.run(text)
            for result, place in zip(results, outputs, strict=True):
                result.append(program.stored.get(place) or self._dag.opaque(f"operand {place} of a called program is not stored"))
        return [result[:size] for result, size in zip(results, sizes, strict=True)]

    def _by_hlo(self, text: str, each: Instruction, operands: list[Buffer]) -> list[Buffer]:
        """What HLO says of a program that moves elements across lanes, if its bundles round as often as that, and nothing else."""
        found = []
        for operation in re.findall(r"= [sv]([\w.]*f(?:32|16)[\w.]*)", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)):
            name = operation.removesuffix(".f32")
            if name in {"mul", "add", "sub"}:
                found.append(name)
            elif not operation.startswith(UNROUNDED):
                raise NotEstablishedError(f"%{each.name} moves elements across lanes and has an operation {operation}")
        wanted = fusions.roundings(self._hlo, each)
        if sorted(found) != wanted:
            raise NotEstablishedError(f"%{each.name} moves elements across lanes; HLO rounds {wanted}, its bundles {sorted(found)}")
        return fusions.run(self._hlo, each, operands, self._dag)
