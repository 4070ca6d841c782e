"""LLVM IR: the functions of a module, executed on nodes."""

from __future__ import annotations

import re
from typing import NamedTuple

from loss_balancers.audit.dumps.hlo import Buffer
from loss_balancers.audit.dumps.llvm_vectors import Vectors, element, is_vector
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError, bits_float, float_bits, is_wide_node

FUNCTION = re.compile(r'^define [^\n]*@"?([\w.\-]+)"?\(([^\n]*)\)[^\n]*\{\n(.*?)^\}', re.DOTALL | re.MULTILINE)
FLOATS = {"fmul": "mul", "fadd": "add", "fsub": "sub", "fdiv": "div", "fneg": "neg"}
INTEGERS = {
    **{name: f"i.{name}" for name in ("add", "sub", "mul", "and", "or", "xor", "shl")},
    **{"lshr": "i.shr", "ashr": "i.sar"},
}
#: Flags that say what the operands are: what is not so has no defined result.
PROMISES = ("nuw", "nsw", "disjoint", "exact", "nneg", "samesign", "nnan", "ninf")
CONVERSIONS = {
    ("zext", "i32", "i64"): "w.zext",
    ("zext", "i1", "i64"): "w.zext",
    ("sext", "i32", "i64"): "w.sext",
    ("trunc", "i64", "i32"): "low",
    ("uitofp", "i64", "float"): "wide_to_float.u",
    ("sitofp", "i64", "float"): "wide_to_float",
    ("uitofp", "i32", "float"): "to_float.u",
    ("sitofp", "i32", "float"): "to_float",
    ("fptosi", "float", "i32"): "to_int",
}
#: `fcmp` predicates under the names of `words`: ordered, and unordered with a `u` at the end.
PREDICATES = {"ord": "ord", "uno": "uno"} | {
    sign + name: name + ("u" if sign == "u" else "") for sign in "ou" for name in ("le", "lt", "ge", "gt", "eq", "ne")
}
#: `icmp` predicates: those that end in `i.` are of signed numbers.
ORDERS = {"eq": "eq", "ne": "ne"} | {
    sign + name: ("u" if sign == "u" else "") + name for sign in "us" for name in ("le", "lt", "ge", "gt")
}
CALLS = {"@llvm.fabs.f32": "abs", "@llvm.fma.f32": "fma", "@llvm.fmuladd.f32": "fma"} | {
    f"@llvm.{sign}{name}.i{bits}": f"{kind}.{'u' if sign == 'u' else ''}{name}"
    for bits, kind in ((32, "i"), (64, "w"))
    for sign in "us"
    for name in ("min", "max")
}
CALLS |= {f"@llvm.{name}.f32": name for name in ("floor", "ceil", "trunc")}
CALLS |= {
    "@llvm.is.fpclass.f32": "is_of_class",
    "@llvm.usub.sat.i64": "w.usub.sat",
    "@llvm.minimum.f32": "minimum",
    "@llvm.sqrt.f32": "sqrt",
    "@llvm.maximum.f32": "maximum",
}
#: Calls whose second argument says what they do of a number that has no result: nothing may depend on that.
BITS = ("@llvm.ctlz.i32", "@llvm.ctlz.i64", "@llvm.abs.i32", "@llvm.abs.i64")
NAMED = {"+inf": 0x7F800000, "-inf": 0xFF800000, "+qnan": 0x7FC00000, "true": 1, "false": 0}
WORDS = {"float": 4, "i32": 4, "i64": 8, "i8": 1}


class Pointer(NamedTuple):
    """``frame``: what a kernel is called with; ``arguments``: its table of buffers; ``workgroup``: which part of the work it does;
    ``buffer`` i. ``offset`` bytes on.
    """

    kind: str
    number: int = 0
    offset: int = 0


Value = Node | Pointer


class Memory:
    """The buffers of a kernel: what its operands hold, and what it has stored, by buffer and bytes."""

    def __init__(self, operands: list[Buffer]) -> None:
        self.operands = operands
        self.stored: dict[tuple[int, int], Node] = {}

    def load(self, pointer: Pointer, size: int) -> Node | None:
        """What is there, None if nothing is known of it."""
        place = (pointer.number, pointer.offset)
        if place in self.stored:
            return self.stored[place]
        index, rest = divmod(pointer.offset, size)
        held = self.operands[pointer.number] if pointer.number < len(self.operands) else []
        if any(is_wide_node(node) != (size == 8) for node in held):
            return None
        known = pointer.number < len(self.operands) and not rest and index < len(self.operands[pointer.number])
        return self.operands[pointer.number][index] if known else None

    def results(self, name: str, sizes: list[int]) -> list[Buffer]:
        """The results. A kernel stores them in buffers after those of its operands; a single one may replace an operand."""
        numbers = sorted({number for number, _ in self.stored})
        if numbers != [len(self.operands) + i for i in range(len(sizes))] and not len(numbers) == len(sizes) == 1:
            raise NotEstablishedError(f"the function of %{name} stores to buffers {numbers}")
        return [self._elements(name, number, size) for number, size in zip(numbers, sizes, strict=True)]

    def _elements(self, name: str, number: int, size: int) -> Buffer:
        held = {offset: node for (at, offset), node in self.stored.items() if at == number}
        width = 8 if any(map(is_wide_node, held.values())) else 4
        if sorted(held) != [width * i for i in range(size)]:
            raise NotEstablishedError(f"the function of %{name} does not store each element of a result once")
        return [held[width * i] for i in range(size)]


class Function:
    """Executes a function, and those that it calls."""

    def __init__(self, functions: dict[str, tuple[str, str]], memory: Memory, dag: Dag) -> None:
        self._functions = functions
        self._memory = memory
        self._dag = dag
        self._values: dict[str, Value] = {}
        self._entered: set[str] = set()
        self._edges: dict[tuple[str, str], Node] = {}  # from a block to another -> whether it is taken
        self._line = ""
        self._vectors = Vectors(self._define, self._name)

    def run(self, name: str, arguments: list[Value]) -> Node | None:
        """What the function returns, if that is a word."""
        parameters, body = self._functions[name]
        names = re.findall(r"(%[\w.]+)(?=,|$)", re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)", "", parameters))
        if len(names) != len(arguments):
            raise NotEstablishedError(f"the parameters of {name} cannot be read: {parameters}")
        self._values = dict(zip(names, arguments, strict=True))
        self._block, self._reached = f"%{len(names)}", self._dag.const(1)
        for raw in body.splitlines():
            line = re.sub(r", ![\w.]+(?: !\d+)?|, !\w+", "", raw.split(" ; ")[0].strip().removeprefix("; "))
            if match := re.match(r'^"?([\w.\-]+)"?:', line):
                self._enter(f"%{match[1]}")
            elif match := re.match(r"^(%[\w.]+) = (?:tail )?(\w+) (.*)$", line):
                self._line = line
                if is_vector(match[3]):
                    self._vector(match[1], match[2], match[3])
                else:
                    self._define(*match.groups())
            elif match := re.match(r"^(?:tail )?call void (@llvm\.(?:masked\.store|memset)\S*)\((.*)\)$", line):
                self._store_many(match[1], match[2], line)
            elif line.startswith("store "):
                self._store(line)
            elif line.startswith("br "):
                self._branch(line)
            elif match := re.match(r"^ret (float|i32|i64|i1) (\S+)$", line):
                return self._node(match[2], line, match[1] == "i64")
            elif line and not re.match(r"ret (ptr null|void)$|(tail )?call void @llvm\.(assume|experimental\.noalias)", line):
                raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        return None

    def _define(self, name: str, op: str, rest: str) -> None:
        self._values[name] = self._value(op, rest, self._line)

    def _name(self, name: str, text: str) -> None:
        """Another name for a value, or one for a constant."""
        self._values[name] = self._values.get(text) or self._node(text, self._line)

    def _vector(self, name: str, op: str, rest: str) -> None:
        """An instruction on vectors."""
        load = re.match(r"^<(\d+) x (float|i32|i64)>, ptr (%[\w.]+)", rest) if op == "load" else None
        masked = re.match(
            r"^<(\d+) x (float|i32|i64)> @llvm\.masked\.load\.\w+\.p0\(ptr [^,]*?(%[\w.]+), <\d+ x i1> (<[^>]*>|splat [^,]*), .*\)",
            rest,
        )
        if match := load or masked:
            base = self._values.get(match[3])
            for i in range(int(match[1])):
                taken = match is load or self._vectors.operand(match[4], i, "i1") == "true"
                known = self._element(base, i, WORDS[match[2]]) if taken else None
                self._values[element(name, i)] = known or self._dag.opaque(self._line)
            self._vectors.defined(name, int(match[1]))
        else:
            self._vectors.define(name, op, rest)

    def _element(self, base: Value | None, i: int, width: int) -> Node | None:
        if not isinstance(base, Pointer) or base.kind != "buffer":
            return None
        return self._memory.load(base._replace(offset=base.offset + width * i), width)

    def _store_many(self, name: str, given: str, line: str) -> None:
        """A vector, or zeros."""
        if match := re.match(r"^ptr [^,]*?(%[\w.]+), i8 0, i64 (\d+), i1 false$", given):
            words = [("0.000000e+00", "float")] * (int(match[2]) // 4) if int(match[2]) % 4 == 0 else []
            places: list[tuple[int, tuple[str, str]]] = list(enumerate(words))
            pointer = self._values.get(match[1])
        elif match := re.match(r"^<(\d+) x (\w+)> (.*), ptr [^,]*?(%[\w.]+), <\d+ x i1> (.*)$", given):
            chosen = [i for i in range(int(match[1])) if self._vectors.operand(match[5], i, "i1") == "true"]
            places = [(i, (self._vectors.operand(match[3], i, match[2]), match[2])) for i in chosen]
            pointer = self._values.get(match[4])
        else:
            places, pointer = [], None
        if not places or not isinstance(pointer, Pointer) or pointer.kind != "buffer":
            raise NotEstablishedError(f"a store that cannot be read: {line}")
        for i, (text, kind) in places:
            self._put(pointer._replace(offset=pointer.offset + WORDS[kind] * i), self._node(text, line, kind == "i64"), line)

    def _enter(self, label: str) -> None:
        """A block begins. The first may have a name or none."""
        reached = [condition for (_, to), condition in self._edges.items() if to == label]
        if self._edges or self._entered:
            self._reached = self._either(reached)
        self._block = label
        self._entered.add(label)

    def _branch(self, line: str) -> None:
        """Forward only. Every block is executed; what it stores counts where it is reached."""
        targets = re.findall(r"label (%[\w.\-]+)", line.replace('"', ""))
        if self._entered & set(targets):
            raise NotEstablishedError(f"a loop: {line}")
        conditions = [self._reached]
        if match := re.match(r"^br i1 (\S+),", line):
            taken = self._node(match[1], line)
            no = self._dag.op("i.xor", taken, self._dag.const(1), line=line)
            conditions = [self._dag.op("select", self._reached, each, self._dag.const(0), line=line) for each in (taken, no)]
        self._edges.update({(self._block, target): each for target, each in zip(targets, conditions, strict=True)})

    def _either(self, conditions: list[Node]) -> Node:
        """Whether one of them holds; always, of a condition and its opposite."""
        a, *others = conditions or [self._dag.const(0)]
        for b in others:
            opposite = self._dag.op("i.xor", a, self._dag.const(1)) is b or self._dag.op("i.xor", b, self._dag.const(1)) is a
            a = self._dag.const(1) if opposite else self._dag.op("i.or", a, b)
        return a

    def _store(self, line: str) -> None:
        match = re.match(r"^store (?:<(\d+) x )?(float|i32|i64|i8)>? (.*?), ptr (%[\w.]+)", line)
        pointer = self._values.get(match[4]) if match else None
        if match is None or not isinstance(pointer, Pointer) or pointer.kind != "buffer":
            raise NotEstablishedError(f"a store that cannot be read: {line}")
        for i in range(int(match[1] or 1)):
            text = self._vectors.operand(match[3], i, match[2]) if match[1] else match[3]
            node = self._node(text, line, match[2] == "i64")
            self._put(pointer._replace(offset=pointer.offset + WORDS[match[2]] * i), node, line)

    def _put(self, pointer: Pointer, node: Node, line: str) -> None:
        stored, place = self._memory.stored, (pointer.number, pointer.offset)
        before = stored.get(place) or self._dag.opaque(f"what was there before: {line}")
        stored[place] = self._dag.op("select", self._reached, node, before, line=line)

    def _value(self, op: str, rest: str, line: str) -> Value:
        if op in {"getelementptr", "load"}:
            return self._from_memory(op, rest, line)
        if op == "call":
            return self._called(rest, line)
        if op == "phi":
            return self._joined(rest, line)
        flags, kinds = _flags(op, rest)
        wide = [kind == "i64" for kind in kinds[op == "select" :]][:1] == [True]
        texts = re.findall(r"(?<![\w.])(?:%[\w.]+|f0x\w+|[+-](?:inf|qnan)|-?\d[\w.+\-]*|true|false)", rest)
        nodes = [self._node(text, line, wide and not (op == "select" and i == 0)) for i, text in enumerate(texts)]
        unpromised = [flag for flag in flags if flag not in PROMISES]
        if op in FLOATS and kinds == ["float"]:
            return self._dag.op(f"{FLOATS[op]}[{' '.join(unpromised)}]" if unpromised else FLOATS[op], *nodes, line=line)
        if op in INTEGERS and kinds[0] in {"i32", "i1"} and not unpromised:
            return self._dag.op(INTEGERS[op], *nodes, line=line)
        if op in INTEGERS and kinds[0] == "i64" and not unpromised:
            return self._dag.op(INTEGERS[op].replace("i.", "w."), *nodes, line=line)
        if op == "fcmp" and kinds == ["float"]:
            return self._dag.op(f"cmp.{PREDICATES.get(unpromised[-1], unpromised[-1])}", *nodes, line=line)
        if op == "icmp" and kinds[0] in {"i32", "i64"} and len(kinds) == 1:
            return self._dag.op(f"{'wide' if wide else 'i'}.{ORDERS[unpromised[-1]]}", *nodes, line=line)
        if op == "select" and kinds[0] == "i1" and set(kinds[1:]) <= {"float", "i32", "i64", "i1"}:
            return self._dag.op("select", *nodes, line=line)
        return self._converted(op, kinds, nodes, line)

    def _joined(self, rest: str, line: str) -> Node:
        """A phi: the value of the edge that is taken."""
        pairs, wide = re.findall(r"\[ (\S+), (%[\w.\-]+) \]", rest.replace('"', "")), rest.startswith("i64 ")
        result = self._node(pairs[-1][0], line, wide) if pairs else self._dag.opaque(line)
        for text, block in pairs[:-1]:
            edge = self._edges.get((block, self._block), self._dag.opaque(line))
            result = self._dag.op("select", edge, self._node(text, line, wide), result, line=line)
        return result

    def _converted(self, op: str, kinds: list[str], nodes: list[Node], line: str) -> Node:
        if op == "bitcast" or (op == "freeze" and kinds[0] in {"float", "i32", "i64", "i8", "i1"}):
            return nodes[0]
        if op == "zext" and kinds[0] == "i1" and kinds[-1] != "i64":
            return nodes[0]
        if op == "sext" and kinds == ["i1", "i32"]:
            return self._dag.op("i.sub", self._dag.const(0), nodes[0], line=line)
        if op == "sext" and kinds == ["i1", "i64"]:
            return self._dag.op("w.sub", self._dag.wide(0), self._dag.op("w.zext", nodes[0], line=line), line=line)
        if op == "trunc" and kinds[-1] == "i1":
            return self._dag.op("i.and", nodes[0], self._dag.const(1), line=line)
        if (op, *kinds) in CONVERSIONS:
            return self._dag.op(CONVERSIONS[op, kinds[0], kinds[1]], nodes[0], line=line)
        return self._dag.opaque(line)

    def _called(self, rest: str, line: str) -> Node:
        match = re.match(
            rf"^(?:(?:fastcc|{'|'.join(PROMISES)}|reassoc|range\([^()]*\)) )*(?:float|i32|i64|i1) @?\"?(@?[\w.\-]+)\"?\((.*)\)",
            rest,
        )
        if match is None:
            return self._dag.opaque(line)
        given = re.sub(r"\([^()]*\)", "", match[2])
        arguments = [argument.split()[-1] for argument in given.split(",")]
        wide = [argument.split()[0] == "i64" for argument in given.split(",")]
        name = match[1] if match[1].startswith("@") else f"@{match[1]}"
        if rest.startswith("reassoc ") and name != "@llvm.maximum.f32":  # of which any order gives the same
            return self._dag.opaque(line)
        if name in CALLS:
            return self._dag.op(CALLS[name], *map(self._node, arguments, [line] * len(arguments), wide), line=line)
        if name in BITS:
            return self._bits(name, self._node(arguments[0], line, wide[0]), line)
        if name.removeprefix("@") in self._functions:
            held: list[Value] = []
            for argument, is_wide in zip(arguments, wide, strict=True):
                value = self._values.get(argument)
                held.append(value if isinstance(value, Pointer) else self._node(argument, line, is_wide))
            inner = Function(self._functions, self._memory, self._dag)
            return inner.run(name.removeprefix("@"), held) or self._dag.opaque(line)
        return self._dag.opaque(line)

    def _bits(self, name: str, x: Node, line: str) -> Node:
        """Leading zeros, or a magnitude."""
        op = self._dag.op
        if name == "@llvm.ctlz.i32":
            return op("i.clz", x, line=line)
        if name == "@llvm.ctlz.i64":
            return op("w.zext", op("clz", x, line=line), line=line)
        wide = name.endswith("64")
        zero, kind = (self._dag.wide(0), "w") if wide else (self._dag.const(0), "i")
        negative = op(f"{'wide' if wide else 'i'}.lt", x, zero, line=line)
        return op("select", negative, op(f"{kind}.sub", zero, x, line=line), x, line=line)

    def _from_memory(self, op: str, rest: str, line: str) -> Value:
        """The frame holds, at 24, the array of arguments: 16 bytes each, the buffer's address first."""
        if match := re.match(r"^(?:inbounds )?(?:nuw )?(i8|\[4 x i8\]|float|i32), ptr (%[\w.]+), i64 (%?[\w.]+)$", rest):
            base, index = self._values.get(match[2]), self._node(match[3], line, True)
            if op == "getelementptr" and isinstance(base, Pointer) and index.op == "wide":
                return base._replace(offset=base.offset + int(index.value) * (1 if match[1] == "i8" else 4))
        elif match := re.match(r"^(ptr|float|i32|i8|i64), ptr (%[\w.]+)", rest):
            base = self._values.get(match[2])
            if op == "load" and isinstance(base, Pointer):
                if match[1] == "i64" and base.kind == "workgroup":
                    return self._dag.wide(0)  # its coordinates: there is one
                if match[1] != "ptr":
                    known = self._memory.load(base, WORDS[match[1]]) if base.kind == "buffer" and match[1] in WORDS else None
                    return known or self._dag.opaque(line)
                if base == Pointer("frame", 0, 8):
                    return Pointer("workgroup")
                if base == Pointer("frame", 0, 24):
                    return Pointer("arguments")
                if base.kind == "arguments" and base.offset % 16 == 0:
                    return Pointer("buffer", base.offset // 16)
        return self._dag.opaque(line)

    def _node(self, text: str, line: str, wide: bool = False) -> Node:
        if wide and re.match(r"^-?\d+$", text):
            return self._dag.wide(int(text))
        if match := re.match(r"^f0x([0-9A-F]{8})$", text):
            return self._dag.const(int(match[1], 16))
        if text in NAMED:
            return self._dag.const(NAMED[text])
        if re.match(r"^-?\d+\.\d+e[+-]\d+$", text):
            bits = float_bits(float(text))
            # LLVM prints six digits only where they are enough.
            return self._dag.const(bits) if f"{bits_float(bits):.6e}" == text else self._dag.opaque(line)
        if re.match(r"^-?\d+$", text):
            return self._dag.const(int(text) & 0xFFFFFFFF)
        value = self._values.get(text)
        return value if isinstance(value, Node) else self._dag.opaque(line)


def _flags(op: str, rest: str) -> tuple[list[str], list[str]]:
    """The words before the first type, and the types."""
    before = re.match(r"^((?:[a-z]+ )*?)(?=(?:float|i\d+|<)\b|<)", rest)
    flags = before[1].split() if before else [op]
    return flags, re.findall(r"(?<![%\w.])(float|i\d+|ptr|<[^>]*>)(?= |$|,)", rest) or ["?"]
