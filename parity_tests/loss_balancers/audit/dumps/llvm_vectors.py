"""LLVM IR: instructions on vectors, told apart into instructions on their elements."""

from __future__ import annotations

import re
from collections.abc import Callable

from loss_balancers.audit.expressions.dag import NotEstablishedError

VECTOR = re.compile(r"<(\d+) x (\w+)>")
LITERAL = re.compile(r"<(\w+ [^<>,]+(?:, \w+ [^<>,]+)*)>")
ZEROS = {"float": "0.000000e+00", "i1": "false"}
#: What no instruction defines, so that it reads as unknown.
UNKNOWN = "%poison"


def is_vector(rest: str) -> bool:
    """Whether an instruction has to do with vectors."""
    return bool(VECTOR.search(rest))


def element(name: str, number: int) -> str:
    """The name of an element of a vector."""
    return f"{name}.element{number}"


class Vectors:
    """Which values are vectors, and how many elements they have.

    Args:
        compute: Defines a value, of an element or a scalar, by an instruction: its name, its operation and the rest.
        move: Gives a value another name.
    """

    def __init__(self, compute: Callable[[str, str, str], None], move: Callable[[str, str], None]) -> None:
        self._sizes: dict[str, int] = {}
        self._compute = compute
        self._move = move

    def define(self, name: str, op: str, rest: str) -> None:
        """Defines a value by an instruction on vectors, element by element.

        Raises:
            NotEstablishedError: It is an instruction that moves elements in a way that is not known.
        """
        if match := re.match(r"^<(\d+) x (\w+)> (.*), \w+ (\S+), i(?:32|64) (\d+)$", rest) if op == "insertelement" else None:
            for i in range(int(match[1])):
                self._move(element(name, i), match[4] if i == int(match[5]) else self.operand(match[3], i, match[2]))
            self._sizes[name] = int(match[1])
        elif match := re.match(r"^<\d+ x (\w+)> (.*), i(?:32|64) (\d+)$", rest) if op == "extractelement" else None:
            self._move(name, self.operand(match[2], int(match[3]), match[1]))
        elif op == "shufflevector":
            self._shuffle(name, rest)
        elif match := re.search(r"@llvm\.vector\.reduce\.(add|and|or|xor)\.v(\d+)(i\d+)\(<\d+ x i\d+> (%[\w.]+)\)", rest):
            self._reduce(name, match[1], int(match[2]), match[3], match[4])
        elif op in {"load", "store", "phi", "getelementptr"} or "@llvm.masked." in rest:
            raise NotEstablishedError(f"an instruction on vectors that cannot be read: {name} = {op} {rest}")
        elif match := VECTOR.search(rest):
            if re.search(r"\b(to i\d+|to float)$", rest) or re.match(r"^(?:\w+ )*i\d+ .* to <", rest):
                return  # the bits of many in one word: nothing may depend on it
            size = int(match[1])
            for i in range(size):
                self._compute(element(name, i), op, self.scalar(rest, i, match[2]))
            self._sizes[name] = size

    def defined(self, name: str, size: int) -> None:
        """A vector whose elements have been defined otherwise."""
        self._sizes[name] = size

    def scalar(self, rest: str, i: int, kind: str) -> str:
        """The operands of an instruction, for one element."""
        rest = re.sub(r"splat \(\w+ ([^()]*)\)", r"\1", rest)
        rest = re.sub(r"<(\d+) x (\w+)> zeroinitializer", lambda match: f"{match[2]} {ZEROS.get(match[2], '0')}", rest)
        rest = rest.replace("zeroinitializer", ZEROS.get(kind, "0"))
        rest = VECTOR.sub(r"\2", rest)
        rest = LITERAL.sub(lambda match: match[1].split(", ")[i].split(" ", 1)[1], rest)
        rest = re.sub(r"\b(poison|undef)\b", UNKNOWN, rest)
        rest = re.sub(r"(@llvm\.[\w.]+\.)v\d+(\w+)\(", r"\1\2(", rest)
        return re.sub(r"%[\w.]+", lambda match: element(match[0], i) if match[0] in self._sizes else match[0], rest)

    def operand(self, text: str, i: int, kind: str) -> str:
        """One element of a vector that is an operand."""
        return self.scalar(text, i, kind)

    def _shuffle(self, name: str, rest: str) -> None:
        match = re.match(r"^<(\d+) x (\w+)> (.*), <\d+ x \w+> (.*), <(\d+) x i32> (.*)$", rest)
        if match is None:
            raise NotEstablishedError(f"a shuffle that cannot be read: {rest}")
        size = int(match[1])
        for i in range(int(match[5])):
            place = self.scalar(match[6], i, "i32")
            if place.isdigit():
                text, at = (match[3], int(place)) if int(place) < size else (match[4], int(place) - size)
                self._move(element(name, i), self.operand(text, at, match[2]))
        self._sizes[name] = int(match[5])

    def _reduce(self, name: str, op: str, size: int, kind: str, vector: str) -> None:
        """Integers, added or combined in any order."""
        before = element(vector, 0)
        for i in range(1, size):
            after = name if i == size - 1 else f"{name}.sum{i}"
            self._compute(after, op, f"{kind} {before}, {element(vector, i)}")
            before = after
