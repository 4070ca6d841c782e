"""Expressions over float32 operations, in one canonical form: what the spec prescribes and what a dump shows are built with it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

#: The bits of the smallest normal number, up to which `keep` gives +0.
TINY = 0x00800000
ONE = 0x3F800000
INFINITY = 0x7F800000
ZERO = 0

#: Comparisons in which `keep(x)` is `select(|x| cmp tiny, 0, x)`, and those in which it is `select(|x| cmp tiny, x, 0)`. A
#: comparison with NaN must choose x: `le` is ordered, `gtu` is true of NaN.
FLUSHES = ("cmp.le",)
KEEPS = ("cmp.gtu",)


class NotEstablishedError(Exception):
    """The dump, or a part of it that reaches a result, cannot be read."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on the results of others. Within one `Dag`, equal nodes are one object.

    Args:
        op: ``input``, ``const``, ``mul``, ``add``, ``keep`` and so on; the mnemonic itself where it is none of the canonical ones.
        args: Its operands.
        value: The number of an input, the bits of a constant, the text of what could not be read (``opaque``).
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

    - ``select(|x| <= tiny, +0, x)`` is ``keep(x)``, and ``keep(keep(x))`` is ``keep(x)``;
    - ``mul(x, 1)`` is ``x``;
    - ``select(|x| <= tiny, +0, x * w)`` is ``keep(x) * w`` for a finite constant ``w`` without a sign: LLVM does that.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}

    def input(self, number: int, line: str = "") -> Node:
        """The argument with this number."""
        return self._node("input", (), number, line)

    def const(self, bits: int) -> Node:
        """The float32 with these bits."""
        return self._node("const", (), bits, "")

    def number(self, value: float) -> Node:
        """The float32 nearest to ``value``."""
        return self.const(float_bits(value))

    def opaque(self, line: str) -> Node:
        """Something that cannot be read; no harm unless a result depends on it."""
        return self._node("opaque", (), line, line)

    def op(self, op: str, *args: Node, line: str = "") -> Node:
        """``op`` of ``args``, in canonical form."""
        if op == "mul":
            for x, factor in (args, args[::-1]):
                if factor.op == "const" and factor.value == ONE:
                    return x
        if op == "keep" and args[0].op == "keep":
            return args[0]
        if op == "select":
            kept = self._kept(*args, line=line)
            if kept is not None:
                return kept
        return self._node(op, args, "", line)

    def _kept(self, condition: Node, yes: Node, no: Node, *, line: str) -> Node | None:
        if condition.op in FLUSHES:
            zero, x = yes, no
        elif condition.op in KEEPS:
            x, zero = yes, no
        else:
            return None
        magnitude, bound = condition.args
        if not (_is_const(zero, ZERO) and _is_const(bound, TINY) and magnitude.op == "abs"):
            return None
        tested = magnitude.args[0]
        if tested is x:
            return self.op("keep", x, line=line)
        if x.op == "mul" and tested in x.args:
            factor = x.args[1] if x.args[0] is tested else x.args[0]
            if factor.op == "const" and isinstance(factor.value, int) and factor.value < INFINITY:
                return self.op("mul", self.op("keep", tested, line=line), factor, line=x.line)
        return None

    def _node(self, op: str, args: tuple[Node, ...], value: int | str, line: str) -> Node:
        key = (op, *map(id, args), value)
        return self._nodes.setdefault(key, Node(op, args, value, line))


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
    if node.op == "opaque":
        return "?"
    if depth == 0:
        return "…"
    return f"{node.op}({', '.join(render(arg, depth - 1) for arg in node.args)})"
