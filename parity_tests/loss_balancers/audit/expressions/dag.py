"""Expressions over operations on words, in one canonical form: what the spec prescribes and what a dump shows are built with it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from loss_balancers.audit.expressions.steps import KEPT, STEP
from loss_balancers.audit.expressions.words import folded, is_wide

#: The bits of the smallest normal number, up to which `keep` gives +0.
TINY = 0x00800000
ONE = 0x3F800000
TWO = 0x40000000
INFINITY = 0x7F800000
MINUS_INFINITY = 0xFF800000
ZERO = 0
SIGN = 0x80000000
#: All bits but the sign.
MAGNITUDE = 0x7FFFFFFF

#: Comparisons in which `keep(x)` is `select(|x| cmp tiny, 0, x)`, and those in which it is `select(|x| cmp tiny, x, 0)`. A
#: comparison with NaN must choose x: `le` is ordered, `gtu` is true of NaN.
FLUSHES = ("cmp.le",)
KEEPS = ("cmp.gtu",)
#: Operations that give 0 or 1, the comparisons of floats apart.
TRUTHS = (
    "is_weird",
    "is_of_class",
    *(f"{kind}.{sign}{name}" for kind in ("i", "wide") for sign in ("", "u") for name in ("lt", "le", "gt", "ge", "eq", "ne")),
)


CONSTANTS = ("const", "wide")
EXTENSIONS = ("w.sext", "w.zext")


class NotEstablishedError(Exception):
    """The dump, or a part of it that reaches a result, cannot be read."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on the results of others. Within one `Dag`, equal nodes are one object.

    Args:
        op: ``input``, ``const``, ``wide`` (a constant of 64 bits), those of `words`, or ``step``; the mnemonic itself where it is
            none of the canonical ones.
        args: Its operands.
        value: The number of an input, the bits of a constant, the text of what could not be read (``opaque``), the step's name.
        line: The line of the dump that it comes from.
    """

    op: str
    args: tuple[Node, ...] = ()
    value: int | str = ""
    line: str = field(default="", repr=False)

    def __str__(self) -> str:
        return render(self)


class Dag:
    """A builder of nodes. It shares equal nodes, and rewrites what is the same on every input, NaN's payload apart.

    - ``select(|x| <= tiny, +0, x)`` is ``keep(x)``, ``keep(keep(x))`` is ``keep(x)``, and ``|keep(x)|`` is ``keep(|x|)``;
    - a word without its sign bit is ``|x|``;
    - ``mul(x, 1)``, ``add(x, -0)`` and ``maximum(x, -inf)`` are ``x``, and ``add(keep(x), +0)`` is ``keep(x)``;
    - ``mul(x, -1)`` is ``-x``, ``x + x`` is ``mul(x, 2)``, ``keep(-keep(x))`` is ``keep(-x)``, and ``|x * x|`` is ``x * x``;
    - ``select(|x| <= tiny, +0, x * w)`` is ``keep(x) * w`` for a finite constant ``w`` without a sign: LLVM does that;
    - ``select(|x| <= tiny, c, x + c)`` is ``keep(x) + c`` for a constant ``c``: LLVM does that too;
    - a choice among words that are extended to 64 bits is a choice, extended;
    - what is done to integer constants and to truths (0 or 1) is worked out.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}

    def input(self, number: int, line: str = "") -> Node:
        """The argument with this number."""
        return self._node("input", (), number, line)

    def const(self, bits: int) -> Node:
        """The float32 with these bits."""
        return self._node("const", (), bits, "")

    def wide(self, bits: int) -> Node:
        """The integer of 64 bits, or the float64, with these bits."""
        return self._node("wide", (), bits & 0xFFFFFFFFFFFFFFFF, "")

    def number(self, value: float) -> Node:
        """The float32 nearest to ``value``."""
        return self.const(float_bits(value))

    def opaque(self, line: str) -> Node:
        """Something that cannot be read; no harm unless a result depends on it."""
        return self._node("opaque", (), line, line)

    def step(self, name: str, *args: Node) -> Node:
        """A step of the spec that is no single operation, of `steps`."""
        if name == "negate" and args[0].op == "const":
            return self.op("keep", self.op("neg", args[0]))
        return self._node(STEP, args, name, "")

    def op(self, op: str, *args: Node, line: str = "") -> Node:
        """``op`` of ``args``, in canonical form."""
        return self._simpler(op, args, line) or self._node(op, args, "", line)

    def _simpler(self, op: str, args: tuple[Node, ...], line: str) -> Node | None:
        if op == "add" and (same := self._added(args[0], args[1], line)):
            return same
        if args and all(arg.op in CONSTANTS for arg in args):
            value = folded(op, *(int(arg.value) for arg in args), wide=[arg.op == "wide" for arg in args])
            wide = is_wide(op) or (op == "select" and args[1].op == "wide")
            return None if value is None else self.wide(value) if wide else self.const(value)
        if op == "mul":
            return next((self._times_one(x, factor, line) for x, factor in (args, args[::-1]) if _is_one(factor)), None)
        if op == "maximum":
            return next((x for x, least in (args, args[::-1]) if _is_const(least, MINUS_INFINITY)), None)
        if op == "keep" and args[0].op == "neg" and args[0].args[0].op == "keep":
            return self.op("keep", self.op("neg", args[0].args[0].args[0], line=line), line=line)
        if op == "keep":
            return args[0] if is_kept(args[0]) else None
        if op == "abs" and args[0].op == "mul" and args[0].args[0] is args[0].args[1]:
            return args[0]
        if op == "abs" and args[0].op in {"abs", "keep"}:
            return args[0] if args[0].op == "abs" else self.op("keep", self.op("abs", args[0].args[0], line=line), line=line)
        if op == "select":
            return self._chosen(*args, line=line)
        if op == "i.and" and any(_is_const(arg, MAGNITUDE) for arg in args):
            return self.op("abs", next(arg for arg in args if not _is_const(arg, MAGNITUDE)), line=line)
        return self._truth(op, args, line) if op in {"i.and", "i.eq", "i.ne"} else None

    def _added(self, a: Node, b: Node, line: str) -> Node | None:
        """A sum with a zero that changes nothing, or of a number and itself."""
        if a is b and a.op != "const":
            return self.op("mul", a, self.const(TWO), line=line)
        for x, zero in ((a, b), (b, a)):
            if _is_const(zero, SIGN) or (_is_const(zero, ZERO) and is_kept(x)):
                return x
        return None

    def _times_one(self, x: Node, factor: Node, line: str) -> Node:
        return x if factor.value == ONE else self.op("neg", x, line=line)

    def _truth(self, op: str, args: tuple[Node, ...], line: str) -> Node | None:
        """A truth that is masked, or compared with 0."""
        x, y = args if args[1].op == "const" else args[::-1]
        if not (is_truth(x) and y.op == "const"):
            return None
        if (op == "i.and" and int(y.value) & 1) or (op == "i.ne" and y.value == 0):
            return x
        return self.op("i.xor", x, self.const(1), line=line) if op == "i.eq" and y.value == 0 else None

    def _chosen(self, condition: Node, yes: Node, no: Node, *, line: str) -> Node | None:
        if condition.op == "const" or yes is no:
            return yes if condition.value or yes is no else no
        if is_truth(condition) and _is_const(yes, 1) and _is_const(no, 0):
            return condition
        if condition.op == "i.xor" and _is_const(condition.args[1], 1):  # the opposite
            return self.op("select", condition.args[0], no, yes, line=line)
        for extended, constant in ((yes, no), (no, yes)):
            if extended.op in EXTENSIONS and constant.op == "wide":
                low = self.op("low", constant)
                if self.op(extended.op, low) is constant:  # a choice among words, each extended
                    x = extended.args[0]
                    return self.op(
                        extended.op, self.op("select", condition, *((x, low) if extended is yes else (low, x)), line=line)
                    )
        if yes.op == "select" and yes.args[0] is condition:
            return self.op("select", condition, yes.args[1], no, line=line)
        if no.op == "select" and no.args[0] is condition:
            return self.op("select", condition, yes, no.args[2], line=line)
        return self._kept(condition, yes, no, line=line)

    def _kept(self, condition: Node, yes: Node, no: Node, *, line: str) -> Node | None:
        if condition.op in FLUSHES:
            zero, x = yes, no
        elif condition.op in KEEPS:
            x, zero = yes, no
        else:
            return None
        magnitude, bound = condition.args
        if not _is_const(bound, TINY):
            return None
        tested = next((each for each in (x, *x.args) if self.op("abs", each) is magnitude), None)
        if tested is None:
            return None
        if (
            x.op == "add"
            and zero.op == "const"
            and set(x.args) == {tested, zero}
            and not (_is_const(self.op("keep", zero), ZERO) and zero.value)
        ):
            return self.op("add", self.op("keep", tested, line=line), zero, line=x.line)
        if x.op == "neg" and _is_const(zero, SIGN):
            return self.op("neg", self.op("keep", tested, line=line), line=line)
        if not _is_const(zero, ZERO):
            return None
        if tested is x:
            return self.op("keep", x, line=line)
        if x.op == "mul":
            factor = x.args[1] if x.args[0] is tested else x.args[0]
            if factor.op == "const" and isinstance(factor.value, int) and factor.value < INFINITY:
                return self.op("mul", self.op("keep", tested, line=line), factor, line=x.line)
        return None

    def _node(self, op: str, args: tuple[Node, ...], value: int | str, line: str) -> Node:
        key = (op, *map(id, args), value)
        return self._nodes.setdefault(key, Node(op, args, value, line))


def is_kept(node: Node, depth: int = 6) -> bool:
    """Whether `keep` changes nothing of it, whatever it is. Of what is chosen from among many, it may not know."""
    chosen = node.args[1:] if node.op == "select" or (node.op == STEP and node.value == "choose") else ()
    if node.op == STEP and node.value == "greatest":
        chosen = node.args
    if chosen:
        return depth > 0 and all(is_kept(each, depth - 1) for each in chosen)
    if node.op == STEP:
        return node.value in KEPT
    if node.op == "mul":
        return any(_doubles(factor) and is_kept(x, depth - 1) for x, factor in (node.args, node.args[::-1]) if depth)
    return node.op == "keep" or (node.op == "const" and folded("keep", int(node.value)) == node.value)


def _doubles(node: Node) -> bool:
    """Whether a product with it is exact, and no smaller: a power of two, of at least 2."""
    return node.op == "const" and TWO <= int(node.value) < INFINITY and not int(node.value) & 0x7FFFFF


def is_truth(node: Node) -> bool:
    """Whether its words are 0 or 1."""
    if node.op in {"i.and", "i.or", "i.xor", "select"}:
        return all(map(is_truth, node.args[-2:]))
    return node.op.startswith("cmp.") or node.op in TRUTHS or (node.op == "const" and node.value in {0, 1})


def is_wide_node(node: Node) -> bool:
    """Whether it stands for a word of 64 bits."""
    return is_wide_node(node.args[1]) if node.op == "select" else is_wide(node.op)


def _is_one(node: Node) -> bool:
    return _is_const(node, ONE) or _is_const(node, ONE | SIGN)


def _is_const(node: Node, bits: int) -> bool:
    return node.op == "const" and node.value == bits


def float_bits(value: float) -> int:
    """The bits of ``value`` in float32, rounded to nearest, ties to even."""
    return int.from_bytes(struct.pack("<f", value), "little")


def bits_float(bits: int) -> float:
    """The float32 with these bits."""
    return struct.unpack("<f", bits.to_bytes(4, "little"))[0]


def walk(roots: list[Node]) -> Iterator[Node]:
    """Every node that the roots depend on, once, operands first."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))


def render(node: Node, depth: int = 3) -> str:
    """A short text: ``add(keep(mul(x0, 0x1.3p-2)), …)``."""
    if node.op == "input":
        return f"x{node.value}"
    if node.op == "const":
        assert isinstance(node.value, int)
        value = bits_float(node.value)
        return float.hex(value) if math.isfinite(value) else repr(value)
    if node.op == "wide":
        return hex(int(node.value))
    if node.op == "opaque":
        return "?"
    if depth == 0:
        return "…"
    return f"{node.value if node.op == STEP else node.op}({', '.join(render(arg, depth - 1) for arg in node.args)})"
