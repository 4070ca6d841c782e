"""Whether emitted code computes a step of the spec: not how it looks, but what it computes, and from what.

Of a node of the emitted code that is to be the step, three things must hold:

- it depends on nothing but the operands of the step, and nothing fused or unknown is on the way. Where the step asks whether a
  sum is finite, code may ask that of a term of the sum instead, and know no more of the term;
- a division or a reciprocal of the device reaches it through conversions to integers and comparisons alone;
- executed, it gives the step's bits on all inputs that were drawn, whatever the device's divisions give within `execute.ERROR`.
  Where the spec does not define a step on the way, the greatest of numbers one of which is NaN, the results must have its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from loss_balancers.audit.expressions.dag import CONSTANTS, INFINITY, Node, walk
from loss_balancers.audit.expressions.execute import defined, fingerprints
from loss_balancers.audit.expressions.steps import STEP
from loss_balancers.audit.expressions.words import ESTIMATES, Words

#: By how the mnemonics start that round a product and a sum once.
FUSED = ("fma", "mad")
Same = Callable[[Node, Node], bool]


class Established:
    """Executes both DAGs once, then compares nodes.

    Args:
        expected: The results that the spec prescribes.
        actual: Those of the emitted code.
        inputs: The words of every input, as many draws each.
        same: Whether a node of the spec and one of the emitted code are the same.
    """

    def __init__(self, expected: Sequence[Node], actual: Sequence[Node], inputs: Sequence[Words], same: Same) -> None:
        self._same = same
        lanes = defined(expected, inputs)
        some = [x[lanes] for x in inputs]
        self._bits = fingerprints(expected, some) | fingerprints(actual, some)
        self._rest = None
        if not lanes.all():
            rest = [x[~lanes] for x in inputs]
            self._rest = fingerprints(expected, rest) | fingerprints(actual, rest)

    def equal(self, want: Node, have: Node) -> bool:
        """Whether both give the same bits."""
        bits = self._bits.get(id(have))
        return bits is not None and bits == self._bits[id(want)]

    def not_executed(self, have: Node) -> Node | None:
        """What on the way to a node cannot be executed, first."""
        return next((node for node in walk([have]) if self._bits.get(id(node)) is None), None)

    def differ(self, want: Node, have: Node) -> bool:
        """Whether a result has other bits than the spec's where some step on the way to it is not defined."""
        bits = None if self._rest is None else self._rest.get(id(have))
        return self._rest is not None and (bits is None or bits != self._rest[id(want)])

    def holds(self, want: Node, have: Node) -> bool:
        """Whether ``have`` is the step ``want``."""
        return self.equal(want, have) and self.objection(want, have) is None

    def objection(self, want: Node, have: Node) -> str | None:
        """What keeps ``have`` from being established as a function of the step's operands; None if nothing does."""
        operands, terms = list(_operands(want)), _terms_that_must_be_finite(want)
        estimate = native_quotient(have, lambda node: self._is_operand(operands, node))
        if estimate is not None:
            return f"a native quotient reaches it: {estimate.line}"
        seen: set[int] = set()
        stack = list(have.args)
        while stack:
            node = stack.pop()
            if id(node) in seen or node.op in CONSTANTS or self._is_operand(operands, node):
                continue
            seen.add(id(node))
            magnitude = _compared_with_infinity(node)
            if magnitude is not None and self._is_operand(terms, magnitude):
                continue
            if not node.args:
                return f"it depends on what is no operand of it: {node.line or node}"
            if node.op.startswith(FUSED):
                return f"a fused operation: {node.line}"
            stack.extend(node.args)
        return None

    def _is_operand(self, operands: list[Node], node: Node) -> bool:
        return any(self._same(operand, node) for operand in operands)


def _operands(want: Node, seen: set[int] | None = None) -> Iterator[Node]:
    """What a step is computed from: its operands, with and without `keep`, and what steps among them are computed from.

    Compilers merge a step with the next: they test a choice's condition once, or work on the bits of what is to be flushed.
    """
    seen = set() if seen is None else seen
    for arg in want.args:
        if arg.op == "const" or id(arg) in seen:
            continue
        seen.add(id(arg))
        yield arg
        inner = arg.args[0] if arg.op == "keep" else arg
        if inner is not arg:
            yield inner
        if inner.op == STEP:
            yield from _operands(inner, seen)


def _terms_that_must_be_finite(want: Node) -> list[Node]:
    """What is under the signs of the terms of sums of which a step asks whether they are finite: else the sums are not."""
    sums = [each.args[0] for each in walk([want]) if each.op == STEP and each.value == "finite"]
    return [_magnitude(term) for each in sums for term in terms_of(each)]


def _compared_with_infinity(node: Node) -> Node | None:
    """What is under the sign of that of which a comparison tells whether it is NaN, infinite or finite, and nothing else."""
    if not node.op.startswith("cmp.") or not any(arg.op == "const" and arg.value == INFINITY for arg in node.args):
        return None
    x = next((arg for arg in node.args if _unflushed(arg).op == "abs"), None)
    return None if x is None else _magnitude(x)


def _unflushed(node: Node) -> Node:
    return _unflushed(node.args[0]) if node.op == "keep" else node


def _magnitude(node: Node) -> Node:
    return _magnitude(node.args[0]) if node.op in {"abs", "keep"} else node


def terms_of(node: Node) -> list[Node]:
    """The terms of a sum, however it is nested."""
    return [term for arg in node.args for term in terms_of(arg)] if node.op == "add" else [node]


def native_quotient(have: Node, is_operand: Callable[[Node], bool] = lambda _: False) -> Node | None:
    """A division or reciprocal of the device that reaches ``have`` otherwise than as an integer or through a comparison."""
    seen: set[int] = set()
    stack = [have]
    while stack:
        node = stack.pop()
        if (
            id(node) in seen
            or node.op.startswith("to_int")
            or node.op.startswith("cmp.")
            or (node is not have and is_operand(node))
        ):
            continue
        seen.add(id(node))
        if node.op in ESTIMATES:
            return node
        stack.extend(node.args)
    return None
