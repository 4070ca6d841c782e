"""The final bundles of a TPU program: VLIW instructions on scalars and vectors, and what each of them does to its operands.

Every operand carries two names, that of the value and that of the register (``%s148_s23``): an operand whose register meanwhile
holds another value cannot be read. Registers are read as they were before the bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError, float_bits, is_truth

BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|\d+)\s+([A-Z]{2})?\s*:\s*\{(.*)\}\s*$")
REGISTER = re.compile(r"%(?:s|v|vm|p)\d+_(s|v|vm|p)(\d+)$")
#: Instructions on scalars and on vectors, without the letter that says which.
OPERATIONS = {
    **{f"{name}.f32": name for name in ("mul", "add", "sub", "ceil", "floor", "trunc")},
    **{f"{name}.s32": f"i.{name}" for name in ("add", "sub")},
    **{f"{name}.u32": f"i.{name}" for name in ("mul", "and", "or", "xor")},
    # By 32 places or more: nothing of the number is left, or its sign alone. HLO defines it so, and its shifts become these.
    "shll.u32": "i.shl.out",
    "shrl.u32": "i.shr.out",
    "shra.s32": "i.sar.out",
    "clz": "i.clz",
    "cvt.s32.f32": "to_float",
    "weird.f32": "is_weird",
}
#: Instructions on predicates and masks.
TRUTHS = {"por": "i.or", "pand": "i.and", "pxor": "i.xor", "vmor": "i.or", "vmand": "i.and", "vmxor": "i.xor"}
TO_INTEGER = re.compile(r"[sv]cvt\.(pr\.)?f32\.s32$")
COMPARE = re.compile(r"[sv]cmp\.(\w+)\.(f32\.partialorder|s32\.totalorder|u32\.totalorder)$")
MAGNITUDE, SIGN = 0x7FFFFFFF, 0x80000000


class Literal(NamedTuple):
    """An immediate operand."""

    text: str


def bundles(text: str) -> Iterator[str]:
    """The instructions of each bundle, without comments.

    But for one: the HLO instruction that a call of another program carries out follows the call, as ``@name``.
    """
    _no_loops(text)
    text = re.sub(r"/\* BoundsCheck.*?\n \*/", "", text, flags=re.DOTALL)  # it has comments inside
    text = re.sub(r"(= inlined_call [^/\n]*?)\s*/\* %([\w.\-]+) = [^\n]*?\*/", r"\1 @\2", text)
    for line in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).splitlines():
        if match := BUNDLE.match(line):
            if match[1] in {"LH", "LB", "LE"}:
                raise NotEstablishedError(f"a loop: {match[2].strip()}")
            yield match[2].strip()
        elif re.match(r"^\s*(0x[0-9a-f]+|\d+)\s+[A-Z ]*:", line):
            raise NotEstablishedError(f"a bundle that cannot be read: {line.strip()}")


def _no_loops(text: str) -> None:
    """Every branch must go forward: past work that this core or this run has no part in."""
    for branch in re.finditer(r"sbr\.\w+[^;\n]*target = \$region(\d+)", text):
        # A region without instructions has no mark. Loops have marks of their own.
        region = re.compile(rf"region {branch[1]}\b")
        if region.search(text, 0, branch.start()) and not region.search(text, branch.end()):
            raise NotEstablishedError(f"a branch that does not go forward: {branch[0]}")


def register(name: str) -> tuple[str, str] | None:
    """The register of a value: ``("s", "23")``. None for what has none, a transfer or a queue entry."""
    match = REGISTER.match(name)
    return (match[1], match[2]) if match else None


def word(value: object, dag: Dag, line: str) -> Node:
    """A value as a word. What has neither point nor exponent is the bits of a materialised constant, or an integer."""
    if isinstance(value, Literal) and re.match(r"^-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)$", value.text):
        decimal = re.search(r"[.ef]", value.text)
        return dag.const(float_bits(float(value.text)) if decimal else int(value.text) & 0xFFFFFFFF)
    return value if isinstance(value, Node) else dag.opaque(line)


def computed(op: str, nodes: list[Node], dag: Dag, line: str) -> Node:
    """What an instruction makes of its operands; opaque if that is not known."""
    if match := COMPARE.match(op):
        prefix = {"f": "cmp.", "s": "i.", "u": "i.u"}[match[2][0]]
        suffix = "u" if prefix == "cmp." and match[1] == "ne" else ""
        return dag.op(f"{prefix}{match[1]}{suffix}", *nodes, line=line)
    if TO_INTEGER.match(op):
        # Where it is not rounded to an integer before, how the conversion rounds is not known: nothing may depend on it.
        return dag.op("to_int" if _is_integral(nodes[0]) else "to_int.either", nodes[0], line=line)
    if op in TRUTHS:
        return dag.op(TRUTHS[op], *nodes, line=line) if all(map(is_truth, nodes)) else dag.opaque(line)
    if op in {"pnand", "pneg", "vmneg"} and all(map(is_truth, nodes)):
        both = dag.op("i.and", *nodes, line=line) if op == "pnand" else nodes[0]
        return dag.op("i.xor", both, dag.const(1), line=line)
    if op in {"vsel", "scalar_select"}:
        return dag.op("select", *nodes, line=line)
    name = OPERATIONS.get(op[1:])
    if name == "i.and" and any(node.op == "const" and node.value == MAGNITUDE for node in nodes):
        return dag.op("abs", next(node for node in nodes if not (node.op == "const" and node.value == MAGNITUDE)), line=line)
    if name == "i.xor" and nodes[0].op == "const" and nodes[0].value == SIGN:
        return dag.op("neg", nodes[1], line=line)
    if name is None and not op.endswith(".f32"):
        return dag.opaque(line)
    return dag.op(name or op, *nodes, line=line)  # any other float operation stands under its own name


def _is_integral(node: Node) -> bool:
    """Whether a float has been rounded to an integer already: then a conversion has nothing to round."""
    return node.op in {"trunc", "ceil", "floor"} or (node.op == "select" and all(map(_is_integral, node.args[1:])))
