"""The operations of the spec on nodes: with them its reference gives the expression of a result in place of a number."""

from __future__ import annotations

from collections.abc import Sequence

from loss_balancers.audit.expressions.dag import Dag, Node
from loss_balancers.spec.ops import Ops

Operand = Node | float


class Nodes(Ops):
    """The operations on nodes of a `Dag`, in float32. A constant is rounded to that.

    Products, sums and flushes are single operations, which code must have just so. Quotients and choices are steps, which a
    compiler may make of anything that computes the same.
    """

    def __init__(self, dag: Dag) -> None:
        self._dag = dag

    def node(self, a: Operand) -> Node:
        """The node of an operand."""
        return a if isinstance(a, Node) else self._dag.number(a)

    def multiply(self, a: Operand, b: Operand, fmt: str) -> Node:
        return self._op("mul", fmt, a, b)

    def add(self, a: Operand, b: Operand, fmt: str) -> Node:
        return self._op("add", fmt, a, b)

    def div(self, a: Operand, b: Operand, fmt: str) -> Node:
        return self._step("div", self.flush(a, fmt), self.flush(b, fmt))

    def round(self, a: Operand, fmt: str) -> Node:
        assert fmt == "f32"
        return self.node(a)

    def flush(self, a: Operand, fmt: str) -> Node:
        return self._op("keep", fmt, a)

    def negate(self, a: Operand, fmt: str) -> Node:
        assert fmt == "f32"
        return self._step("negate", a)

    def exp(self, a: Operand) -> Node:
        return self._step("exp", a)

    def log(self, a: Operand) -> Node:
        return self._step("log", a)

    def sqrt(self, a: Operand) -> Node:
        return self._step("sqrt", a)

    def total(self, powers: Sequence[Operand]) -> Node:
        return self._step("total", *powers)

    def greatest(self, numbers: Sequence[Operand]) -> Node:
        return self._step("greatest", *numbers) if len(numbers) > 1 else self.node(numbers[0])

    def magnitude(self, a: Operand) -> Node:
        return self._op("abs", "f32", a)

    def above(self, a: Operand, b: Operand) -> Node:
        return self._step("above", a, b)

    def equal(self, a: Operand, b: Operand) -> Node:
        return self._step("equal", a, b)

    def finite(self, a: Operand) -> Node:
        return self._step("finite", a)

    def every(self, truths: Sequence[Node]) -> Node:
        return self._step("every", *truths)

    def choose(self, truth: Node, yes: Operand, no: Operand) -> Node:
        return self._step("choose", truth, yes, no)

    def _op(self, op: str, fmt: str, *operands: Operand) -> Node:
        assert fmt == "f32"
        return self._dag.op(op, *map(self.node, operands))

    def _step(self, name: str, *operands: Operand) -> Node:
        return self._dag.step(name, *map(self.node, operands))
