"""Comparison of two DAGs, operation by operation, the order of the additions included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loss_balancers.audit.expressions.dag import ONE, Node, NotEstablishedError, is_kept, render, walk
from loss_balancers.audit.expressions.established import FUSED, Established, native_quotient, terms_of
from loss_balancers.audit.expressions.steps import STEP
from loss_balancers.audit.expressions.words import Words

COMMUTATIVE = ("mul", "add")
#: By how a mnemonic starts.
APPROXIMATE = ("div.full", "div.approx", "rcp", "vrcp", "rsqrt", "vrsqrt", "sqrt.approx", "ex2", "lg2", "vpow2", "vlog2")

#: Instructions and calls that are no root, exponential or logarithm but nearly one.
APPROXIMATE_FUNCTIONS = ("ex2", "lg2", "vpow2", "vlog2", "tanh", "rsqrt")
ELEMENTARY = ("exp", "log", "sqrt")

FUSED_MULTIPLY_ADD = "fused multiply-add"
MISSING_BARRIER = "missing barrier"
MISSING_FLUSH = "missing flush"
APPROXIMATE_DIVISION = "approximate division"
UNREPAIRED_DIVISION = "unrepaired division"
APPROXIMATE_FUNCTION = "approximate function"
#: A step that is executed, and gives other bits than the spec.
OTHER_BITS = "other bits"
REASSOCIATED_SUM = "reassociated sum"
OTHER_OPERATION = "other operation"
#: What `races` finds.
RACE = "race"
OVERWRITTEN = "overwritten state"


class Finding(NamedTuple):
    """A place where the code departs from the spec: its kind, both expressions, and the line that shows it."""

    kind: str
    expected: str
    found: str
    line: str

    def __str__(self) -> str:
        shown = f" | {self.line}" if self.line else ""
        return f"{self.kind}: expected {self.expected}, found {self.found}{shown}"


def compare(expected: Sequence[Node], actual: Sequence[Node], inputs: Sequence[Words] = ()) -> list[Finding]:
    """What of ``actual`` is not what ``expected`` prescribes, result by result.

    Args:
        expected: The results that the spec prescribes.
        actual: Those of the emitted code.
        inputs: Where ``expected`` has steps: the words of every input, as many draws each, on which both are executed.

    Raises:
        NotEstablishedError: They differ where the dump could not be read, or in the number of results.
    """
    if len(expected) != len(actual):
        raise NotEstablishedError(f"expected {len(expected)} results, found {len(actual)}")
    return _Comparison(expected, actual, inputs).all(expected, actual)


class _Comparison:
    """One comparison: remembers which pairs of nodes are the same and which have been reported."""

    def __init__(self, expected: Sequence[Node], actual: Sequence[Node], inputs: Sequence[Words]) -> None:
        self._steps = Established(expected, actual, inputs, self.same) if len(inputs) else None
        self._same: dict[tuple[int, int], bool] = {}
        self._findings: list[Finding] = []
        self._reported: set[tuple[int, int]] = set()

    def all(self, expected: Sequence[Node], actual: Sequence[Node]) -> list[Finding]:
        for want, have in zip(expected, actual, strict=True):
            self._find(want, have)
            if self._steps is not None and self.same(want, have) and self._steps.differ(want, have):
                self._add(OTHER_OPERATION, want, have)
        return self._findings

    def same(self, want: Node, have: Node) -> bool:
        key = (id(want), id(have))
        if key not in self._same:
            self._same[key] = self._is_same(want, have)
        return self._same[key]

    def _is_same(self, want: Node, have: Node) -> bool:
        if want.op == STEP:
            return self._steps is not None and self._steps.holds(want, have)
        if want.op == "add" and have.op == "sub" and is_kept(want.args[0]) and is_kept(want.args[1]):
            return self._same_difference(want, have)
        if want.op != have.op or want.op == "opaque" or want.value != have.value or len(want.args) != len(have.args):
            return False
        if all(map(self.same, want.args, have.args)):
            return True
        if want.op == "keep":
            return self._same_flushed(want.args[0], have.args[0])
        return want.op in COMMUTATIVE and all(map(self.same, want.args, have.args[::-1]))

    def _same_difference(self, want: Node, have: Node) -> bool:
        """X + keep(-y) and x - y, of what is flushed: no sign of a zero tells them apart."""
        x, negated = want.args
        if not (negated.op == STEP and negated.value == "negate" and is_kept(negated.args[0])):
            return False
        return self.same(x, have.args[0]) and self.same(negated.args[0], have.args[1])

    def _same_flushed(self, want: Node, have: Node) -> bool:
        """Products with a constant of at most 1 of which one flushes its operand first: what that would do, the product's does."""
        if not want.op == have.op == "mul":
            return False
        x, factor = want.args if want.args[1].op == "const" else want.args[::-1]
        y, other = have.args if have.args[1].op == "const" else have.args[::-1]
        small = factor.op == other.op == "const" and factor.value == other.value and int(factor.value) & 0x7FFFFFFF <= ONE
        return small and self.same(_unflushed(x), _unflushed(y))

    def _find(self, want: Node, have: Node) -> None:
        if self.same(want, have) or (id(want), id(have)) in self._reported:
            return
        self._reported.add((id(want), id(have)))
        if have.op.startswith(FUSED):
            self._add(FUSED_MULTIPLY_ADD, want, have)
        elif want.op == STEP:
            self._step(want, have)
        elif want.op == "add" == have.op and self._reordered(want, have):
            self._add(REASSOCIATED_SUM, want, have)
        elif want.op == have.op and len(want.args) == len(have.args) > 0:
            for pair in self._paired(want, have):
                self._find(*pair)
        elif want.op == "keep":
            product = want.args[0].op == "mul" == have.op
            self._add(MISSING_BARRIER if product else MISSING_FLUSH, want, have)
            self._find(want.args[0], have)
        elif any(node.op == "opaque" for node in walk([have])):
            opaque = next(node for node in walk([have]) if node.op == "opaque")
            raise NotEstablishedError(f"expected {render(want)}, but this line cannot be read: {opaque.value}")
        else:
            self._add(OTHER_OPERATION, want, have)

    def _step(self, want: Node, have: Node) -> None:
        """A step that is not established: why not."""
        fused = _first(have, FUSED)
        native = native_quotient(have)
        inner = have.args[0] if have.op == "keep" else have
        reciprocal = inner if inner.op == "mul" and any(arg.op == "const" for arg in inner.args) else None
        opaque = next((node for node in walk([have]) if node.op == "opaque"), None)
        if want.value in ELEMENTARY and (approximate := _first(have, APPROXIMATE_FUNCTIONS)) is not None:
            self._add(APPROXIMATE_FUNCTION, want, have, approximate)
        elif fused is not None:
            self._add(FUSED_MULTIPLY_ADD, want, have, fused)
        elif want.value in ELEMENTARY and native is not None:
            self._add(APPROXIMATE_FUNCTION, want, have, native)
        elif native is not None:
            self._add(APPROXIMATE_DIVISION if native.op.startswith(APPROXIMATE) else UNREPAIRED_DIVISION, want, have, native)
        elif opaque is not None:
            raise NotEstablishedError(f"expected {render(want)}, but this line cannot be read: {opaque.value}")
        elif self._steps is not None and self._steps.equal(want, have):
            raise NotEstablishedError(f"expected {render(want)}; the bits are its, but {self._steps.objection(want, have)}")
        elif reciprocal is not None and want.value == "div":
            self._add(APPROXIMATE_DIVISION, want, have, reciprocal)
        elif (unknown := None if self._steps is None else self._steps.not_executed(have)) is not None:
            raise NotEstablishedError(f"expected {render(want)}, but this cannot be executed: {unknown.line or unknown}")
        else:
            executed = self._steps is not None and want.value in (*ELEMENTARY, "total")
            self._add(OTHER_BITS if executed else UNREPAIRED_DIVISION if _divides(want) else OTHER_OPERATION, want, have)

    def _reordered(self, want: Node, have: Node) -> bool:
        """Whether both are sums of the same terms, and of three or more."""
        wanted, found = terms_of(want), terms_of(have)
        if len(wanted) != len(found) or len(wanted) < 3:
            return False
        for term in wanted:
            match = next((i for i, other in enumerate(found) if self.same(term, other)), None)
            if match is None:
                return False
            del found[match]
        return True

    def _paired(self, want: Node, have: Node) -> list[tuple[Node, Node]]:
        """The operands, crossed where an operation commutes and that fits better."""
        straight = list(zip(want.args, have.args, strict=True))
        if want.op not in COMMUTATIVE:
            return straight
        crossed = list(zip(want.args, have.args[::-1], strict=True))

        def fit(pairs: list[tuple[Node, Node]]) -> int:
            return sum(10 * len(_leaves(a) & _leaves(b)) + self.same(a, b) + (a.op == b.op) for a, b in pairs)

        return crossed if fit(crossed) > fit(straight) else straight

    def _add(self, kind: str, want: Node, have: Node, shown: Node | None = None) -> None:
        line = (shown or have).line or next((node.line for node in have.args if node.line), "")
        self._findings.append(Finding(kind, render(want), render(have), line))


def _unflushed(node: Node) -> Node:
    return node.args[0] if node.op == "keep" else node


def _leaves(node: Node) -> set[tuple[str, int | str]]:
    return {(each.op, each.value) for each in walk([node]) if not each.args}


def _first(node: Node, mnemonics: tuple[str, ...]) -> Node | None:
    return next((each for each in walk([node]) if each.op.startswith(mnemonics)), None)


def _divides(want: Node) -> bool:
    return any(node.op == STEP and node.value == "div" for node in walk([want]))
