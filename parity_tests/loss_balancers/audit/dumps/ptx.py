"""PTX: the kernels of a module, executed on nodes, one thread after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from loss_balancers.audit.dumps.hlo import Buffer, evaluate_entry
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError, is_wide_node

ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)^\{(.*?)^\}", re.DOTALL | re.MULTILINE)
FLOAT = re.compile(r"0f([0-9A-Fa-f]{8})$")
#: A load; what it says of caches changes no value.
LOAD = re.compile(r"ld\.global(\.nc)?(\.L[12]::\w+)*((\.v[24])?\.[bf]32|\.b8|\.[su]32|\.b64)")
STORE = re.compile(r"st\.global\.((v[24]\.)?[bf]32|b8|b64)")
INTEGER = re.compile(r"-?(?:0x[0-9A-Fa-f]+|\d+)$")
#: Instructions that PTX defines as IEEE 754 operations, rounded to nearest. Without `.rn`, `mul` and `add` may be contracted.
FLOATS = {
    "mul.rn.f32": "mul",
    "add.rn.f32": "add",
    "sub.rn.f32": "sub",
    "div.rn.f32": "div",
    "abs.f32": "abs",
    "abs.ftz.f32": "abs.ftz",
    "neg.f32": "neg",
}
#: The same, where a look at the machine code says whether they are contracted.
CONTRACTED = {"mul.f32": "mul", "add.f32": "add", "sub.f32": "sub"}
INTEGERS = {
    **{f"{name}.s32": f"i.{name}" for name in ("add", "sub", "min", "max")},
    **{f"{name}.u32": f"i.u{name}" for name in ("min", "max")},
    **{f"{name}.{kind}": f"i.{name}" for name in ("and", "or", "xor") for kind in ("b32", "pred")},
    "mul.lo.s32": "i.mul",
    "shl.b32": "i.shl",
    "shr.u32": "i.shr",
    "shr.s32": "i.sar",
    "cvt.rn.f32.s32": "to_float",
    "cvt.rn.f32.u32": "to_float.u",
    "cvt.rzi.s32.f32": "to_int",
    "max.NaN.f32": "maximum",
    "min.NaN.f32": "minimum",
    "clz.b32": "i.clz",
}
#: Of registers of 64 bits. The shifts take the number of places from one of 32.
WIDE = {
    **{f"{name}.{kind}": f"w.{name}" for name in ("add", "sub") for kind in ("s64", "u64")},
    **{f"{name}.{sign}64": f"w.{'u' if sign == 'u' else ''}{name}" for name in ("min", "max") for sign in "su"},
    **{f"{name}.b64": f"w.{name}" for name in ("and", "or", "xor")},
    "mul.lo.s64": "w.mul",
    "mul.lo.u64": "w.mul",
    "cvt.u32.u64": "low",
    "clz.b64": "clz",
    "cvt.rn.f32.u64": "wide_to_float.u",
    "cvt.rn.f32.s64": "wide_to_float",
}
#: Of float64. Whether `mul`, `add` and `sub` are contracted, a look at the machine code says.
DOUBLES = {
    **{f"{name}{rounding}.f64": f"w.double.{name}" for name in ("mul", "add", "sub") for rounding in (".rn", "")},
    "fma.rn.f64": "w.double.fma",
    "sqrt.rn.f64": "w.double.sqrt",
    "rcp.approx.ftz.f64": "w.double.rcp",
    "neg.f64": "w.double.neg",
    "abs.f64": "w.double.abs",
    "cvt.rn.f32.f64": "double_to_float",
}
DOUBLE = re.compile(r"0d([0-9A-Fa-f]{16})$")
WIDE_SHIFTS = {"shl.b64": "w.shl", "shr.u64": "w.shr", "shr.s64": "w.sar"}
EXTENDED = {"cvt.u64.u32": "w.zext", "cvt.s64.s32": "w.sext", "cvt.f64.f32": "w.double.widened"}
IGNORED = ("griddepcontrol.", "ret", ".")
#: Runs on its own where it is not told apart by thread: no more steps than this.
STEPS = 20_000


class Pair(NamedTuple):
    """Two words in one register."""

    low: Node
    high: Node


class Bytes(list[Node]):
    """A buffer of truths: each element is a byte."""


#: A node, a pair, or an address: which buffer, and how many bytes on.
Value = Node | Pair | tuple[int, int]


def read_module(hlo: str, ptx: str, architecture: str, dag: Dag) -> list[Node]:
    """The results of a module compiled for ``architecture``, from its optimised HLO and all its PTX.

    Raises:
        NotEstablishedError: A kernel is missing, cannot be followed, or is for another architecture.
    """
    kernels = _kernels(ptx, architecture)

    def kernel(name: str, operands: list[Buffer], sizes: list[int]) -> list[Buffer]:
        match = kernels.get(re.sub(r"\W", "_", name))
        if match is None:
            raise NotEstablishedError(f"there is no PTX kernel for %{name} among {', '.join(kernels) or 'none'}")
        first = len(operands)
        done = _run(match, operands, first + len(sizes), dag, FLOATS)
        if any(done.loads.get(place, set()) - {thread} for place, thread in done.stores.items()):
            raise NotEstablishedError(f"a thread of the kernel of %{name} loads what another stores")
        places = [first + i for i in range(len(sizes))]
        # XLA may let a result replace an operand. With one such result there is no doubt which.
        used = {place for place, _ in done.stored}
        replaced, missing = {place for place in used if place < first}, set(places) - used
        if replaced and not len(replaced) == len(missing) == 1:
            raise NotEstablishedError(f"the kernel of %{name} stores to an operand")
        places = [replaced.pop() if replaced and place in missing else place for place in places]
        try:
            return [_buffer(done.stored, place, size, place in done.bytewise) for place, size in zip(places, sizes, strict=True)]
        except KeyError:
            raise NotEstablishedError(f"the kernel of %{name} does not store all its results") from None

    return evaluate_entry(hlo, dag, kernel)


def run_kernel(
    ptx: str, name: str, arguments: Sequence[Buffer | int], more: int, architecture: str, dag: Dag
) -> dict[tuple[int, int], Node]:
    """What a kernel stores, by buffer and bytes, where it may store to all of them and contract (see `torch_cuda`)."""
    match = _kernels(ptx, architecture).get(name)
    if match is None:
        raise NotEstablishedError(f"there is no PTX kernel {name}")
    return _run(match, arguments, len(arguments) + more, dag, {**FLOATS, **CONTRACTED}).stored


def _buffer(stored: dict[tuple[int, int], Node], number: int, size: int, bytewise: bool) -> Buffer:
    """What a kernel has stored in a buffer."""
    width = 1 if bytewise else 8 if is_wide_node(stored[number, 0]) else 4
    held = [stored[number, width * i] for i in range(size)]
    return Bytes(held) if bytewise else held


def _kernels(ptx: str, architecture: str) -> dict[str, re.Match[str]]:
    others = set(re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)) - {architecture, f"{architecture}a"}
    if others:
        raise NotEstablishedError(f"the PTX is for {', '.join(sorted(others))}, not for {architecture}")
    return {match[1]: match for match in ENTRY.finditer(ptx)}


def _run(match: re.Match[str], operands: Sequence[Buffer | int], parameters: int, dag: Dag, floats: dict[str, str]) -> _Done:
    """What all threads of a kernel do, one after the other."""
    name = match[1]
    given = re.findall(rf"{name}_param_(\d+)", match[2])
    if given != [str(i) for i in range(parameters)]:
        raise NotEstablishedError(f"the kernel of %{name} should have {parameters} parameters, and has {len(given)}")
    done = _Done({}, set(), {}, {})
    for thread in range(_threads(match)):
        _Thread(match[4], name, operands, done, dag, thread, floats).run()
    return done


def _threads(match: re.Match[str]) -> int:
    """How many threads run a kernel."""
    threads = re.search(r"\.reqntid (\d+)(?:, 1, 1)?$", match[3].strip())
    if threads is None:
        raise NotEstablishedError(f"how many threads run the kernel of %{match[1]} is not known: {match[3].strip()}")
    return int(threads[1])


class _Done(NamedTuple):
    """What the threads of a kernel have done, by buffer and bytes.

    Args:
        stored: What they have stored.
        bytewise: The buffers in which an element is a byte.
        stores: Which thread has stored there.
        loads: Which threads have loaded from there.
    """

    stored: dict[tuple[int, int], Node]
    bytewise: set[int]
    stores: dict[tuple[int, int], int]
    loads: dict[tuple[int, int], set[int]]


class _Thread:
    """One thread of a kernel. What it stores goes to ``done``."""

    def __init__(
        self,
        body: str,
        name: str,
        operands: Sequence[Buffer | int],
        done: _Done,
        dag: Dag,
        thread: int,
        floats: dict[str, str],
    ) -> None:
        # A block of its own, whose register nothing else names.
        body = re.sub(r"\{ \.reg \.b32 tmp; (mov\.b64 \{[^}]*\}, %\w+;) \}", lambda match: match[1].replace("tmp", "_"), body)
        text = re.sub(r"//[^\n]*|^\s*\.(?:loc|pragma)[^\n]*", "", body, flags=re.MULTILINE).replace("\t", " ")
        self._lines = [" ".join(part.split()) for part in re.split(r";|(?<=:) *\n", text) if part.strip()]
        self._labels = {line[:-1]: i for i, line in enumerate(self._lines) if re.fullmatch(r"\$?\w+:", line)}
        self._name = name
        self._operands = operands
        self._done = done
        self._stored = done.stored
        self._thread = thread
        self._here = dag.const(1)  # whether a path that is taken has come to this line
        self._waiting: dict[int, Node] = {}  # the label of a line further on -> whether a path has gone there
        self._dag = dag
        self._floats = floats
        self._registers: dict[str, Value] = {"%tid.x": dag.const(thread), "%ctaid.x": dag.const(0)}

    def run(self) -> None:
        place, steps = 0, 0
        while place < len(self._lines):
            steps += 1
            if steps > STEPS:
                raise NotEstablishedError(f"{self._name} does not come to an end")
            place = self._step(self._lines[place], place)

    def _step(self, line: str, place: int) -> int:
        """Executes a line; the place of the next."""
        if line.endswith(":"):
            return self._joined(place)
        if match := re.fullmatch(r"@(!?)(%p\d+) (.*)", line):
            condition = self._registers.get(match[2])
            if isinstance(condition, Node) and condition.op != "const" and match[3].startswith("bra "):
                taken = self._dag.op("i.xor", condition, self._dag.const(1), line=line) if match[1] else condition
                return self._branched(taken, match[3], place)
            if not isinstance(condition, Node) or condition.op != "const":
                raise NotEstablishedError(f"{self._name} branches on what it computes: {line}")
            return self._step(match[3], place) if bool(condition.value) != bool(match[1]) else place + 1
        if match := re.fullmatch(r"bra(?:\.uni)? (\S+)", line):
            if self._waiting:
                return self._branched(self._dag.const(1), line, place)
            if match[1] not in self._labels:
                raise NotEstablishedError(f"{self._name} branches in a way that cannot be read: {line}")
            return self._labels[match[1]]
        if line == "ret":
            return len(self._lines)
        mnemonic, _, rest = line.partition(" ")
        if line.startswith(("@", "call", "brx")):
            raise NotEstablishedError(f"{self._name} branches in a way that cannot be read: {line}")
        if not mnemonic.startswith(IGNORED):
            self._instruction(mnemonic, re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest), line)
        return place + 1

    def _branched(self, taken: Node, line: str, place: int) -> int:
        """A branch forward by what is computed: every line is executed, and counts for the paths that come to it."""
        label = self._labels.get(line.rsplit(maxsplit=1)[-1], place)
        if label <= place or taken.op == "opaque":
            raise NotEstablishedError(f"{self._name} branches in a way that cannot be read: {line}")
        zero = self._dag.const(0)
        there = self._dag.op("select", self._here, taken, zero)
        before = self._waiting.get(label)
        self._waiting[label] = there if before is None else self._dag.op("i.or", before, there)
        self._here = self._dag.op("select", self._here, self._dag.op("i.xor", taken, self._dag.const(1)), zero)
        return place + 1

    def _joined(self, label: int) -> int:
        """Paths that have gone to a label. When none waits for another, all have come to it."""
        if label in self._waiting:
            self._here = self._dag.op("i.or", self._here, self._waiting.pop(label))
            if not self._waiting:
                self._here = self._dag.const(1)
        return label + 1

    def _assign(self, register: str, value: Value, line: str) -> None:
        before = self._registers.get(register)
        if self._waiting and before is not None:
            wide = isinstance(value, Pair) or (isinstance(value, Node) and is_wide_node(value))
            if not isinstance(before, (Node, Pair)) or not isinstance(value, (Node, Pair)):
                raise NotEstablishedError(f"an address that depends on the path: {line}")
            self._registers["%new"] = value
            values = [(self._wide if wide else self._node)(each, line) for each in ("%new", register)]
            value = self._dag.op("select", self._here, *values, line=line)
        self._registers[register] = value

    def _store(self, mnemonic: str, arguments: list[str], line: str) -> None:
        buffer, offset = self._address(arguments[0], line)
        if self._waiting:
            raise NotEstablishedError(f"a store that depends on the path: {line}")
        if buffer < len(self._operands) and self._width(buffer) != _width(mnemonic):
            raise NotEstablishedError(f"a store of another width than the buffer's elements have: {line}")
        read = self._wide if mnemonic.endswith("b64") else self._node
        for i, text in enumerate(arguments[1].strip("{} ").split(",")):
            place = (buffer, offset + 4 * i)
            if place in self._stored:
                raise NotEstablishedError(f"a second store to one place: {line}")
            self._stored[place] = read(text.strip(), line)
            self._done.stores[place] = self._thread
        if _width(mnemonic) == 1:
            self._done.bytewise.add(buffer)

    def _instruction(self, mnemonic: str, arguments: list[str], line: str) -> None:
        if STORE.fullmatch(mnemonic):
            self._store(mnemonic, arguments, line)
        elif LOAD.fullmatch(mnemonic):
            buffer, offset = self._address(arguments[1], line)
            for i, register in enumerate(re.findall(r"%\w+", arguments[0])):
                loaded = self._loaded(buffer, offset + 4 * i, _width(mnemonic), line)
                if mnemonic.endswith(("s32", "u32")) and register.startswith("%rd"):  # of 64 bits
                    loaded = self._dag.op("w.sext" if mnemonic.endswith("s32") else "w.zext", loaded, line=line)
                self._assign(register, loaded, line)
        elif mnemonic == "mov.b64" and arguments[0].startswith("{"):
            pair = self._registers.get(arguments[1])
            if isinstance(pair, Node) and is_wide_node(pair):
                pair = Pair(*(self._dag.op(half, pair, line=line) for half in ("low", "high")))
            halves = pair if isinstance(pair, Pair) else [self._dag.opaque(line)] * 2
            for register, node in zip(re.findall(r"%\w+|_", arguments[0]), halves, strict=True):
                self._assign(register, node, line)
        elif mnemonic.startswith("st.") or not arguments or not arguments[0].startswith("%"):
            raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        else:
            self._assign(arguments[0], self._value(mnemonic, arguments[1:], line), line)

    def _width(self, buffer: int) -> int:
        """How many bytes an element of a buffer has."""
        held = self._operands[buffer] if buffer < len(self._operands) else ()
        return 1 if isinstance(held, Bytes) else 8 if isinstance(held, list) and any(map(is_wide_node, held)) else 4

    def _loaded(self, buffer: int, offset: int, width: int, line: str) -> Node:
        held = self._operands[buffer] if buffer < len(self._operands) else ()
        self._done.loads.setdefault((buffer, offset), set()).add(self._thread)
        if width != self._width(buffer) or isinstance(held, int) or offset % width:
            return self._dag.opaque(line)
        if (buffer, offset) in self._stored:
            return self._stored[buffer, offset]
        return held[offset // width] if offset // width < len(held) else self._dag.opaque(line)

    def _value(self, mnemonic: str, arguments: list[str], line: str) -> Value:
        op = self._dag.op
        if mnemonic.startswith("ld.param."):
            return self._parameter(mnemonic, arguments[0], line)
        if mnemonic.endswith(".f32x2") or (mnemonic == "mov.b64" and arguments[0].startswith("{")):
            return self._pair(mnemonic.removesuffix("x2"), arguments, line)
        held = self._registers.get(arguments[0])
        if isinstance(held, tuple) and not isinstance(held, Pair):
            return held if mnemonic in {"cvta.to.global.u64", "mov.b64"} else self._moved(mnemonic, held, arguments[1], line)
        base = self._registers.get(arguments[-1])
        if mnemonic in {"mad.wide.s32", "mad.wide.u32"} and isinstance(base, tuple) and not isinstance(base, Pair):
            product = op("i.mul", *(self._node(argument, line) for argument in arguments[:2]), line=line)
            return (base[0], base[1] + int(product.value)) if product.op == "const" else self._dag.opaque(line)
        if mnemonic.endswith(("64", ".wide.s32", ".wide.u32")) or "64." in mnemonic or mnemonic in EXTENDED:
            return self._of_64_bits(mnemonic, arguments, line)
        return self._computed(mnemonic, [self._node(argument, line) for argument in arguments], line)

    def _of_64_bits(self, mnemonic: str, arguments: list[str], line: str) -> Node:
        op = self._dag.op
        if mnemonic in EXTENDED:
            return op(EXTENDED[mnemonic], self._node(arguments[0], line), line=line)
        if match := re.fullmatch(r"(mul|mad)\.wide\.([su])32", mnemonic):
            factors = [op("w.sext" if match[2] == "s" else "w.zext", self._node(each, line), line=line) for each in arguments[:2]]
            product = op("w.mul", *factors, line=line)
            return op("w.add", product, self._wide(arguments[2], line), line=line) if match[1] == "mad" else product
        if mnemonic in {"selp.b64", "selp.f64"}:
            yes, no = (self._wide(each, line) for each in arguments[:2])
            return op("select", self._node(arguments[2], line), yes, no, line=line)
        if mnemonic in WIDE_SHIFTS:
            return op(WIDE_SHIFTS[mnemonic], self._wide(arguments[0], line), self._node(arguments[1], line), line=line)
        if match := re.fullmatch(r"bfe\.([su])64", mnemonic):
            x, start, length = self._wide(arguments[0], line), *(self._node(each, line) for each in arguments[1:])
            if not (start.op == length.op == "const" and int(start.value) + int(length.value) <= 64):
                return self._dag.opaque(line)
            top = op("w.shl", x, self._dag.const(64 - int(start.value) - int(length.value)), line=line)
            return op("w.sar" if match[1] == "s" else "w.shr", top, self._dag.const(64 - int(length.value)), line=line)
        wide = [self._wide(argument, line) for argument in arguments]
        if match := re.fullmatch(r"setp\.(\w+)\.([sub])64", mnemonic):
            return op(f"wide.{'u' if match[2] == 'u' else ''}{match[1]}", *wide, line=line)
        if mnemonic in {"mad.lo.s64", "mad.lo.u64"}:
            return op("w.add", op("w.mul", *wide[:2], line=line), wide[2], line=line)
        if mnemonic == "neg.s64":
            return op("w.sub", self._dag.wide(0), wide[0], line=line)
        if mnemonic in {"mov.b64", "mov.u64"}:
            return wide[0]
        if match := re.fullmatch(r"setp\.(\w+)\.f64", mnemonic):
            return op(f"double.{match[1]}", *wide, line=line)
        name = DOUBLES.get(mnemonic) if self._floats is not FLOATS else None
        name = name or WIDE.get(mnemonic)
        return op(name, *wide, line=line) if name else self._dag.opaque(line)

    def _computed(self, mnemonic: str, nodes: list[Node], line: str) -> Node:
        op = self._dag.op
        if mnemonic in {"mov.b32", "mov.f32", "mov.u32"}:
            return nodes[0]
        if mnemonic.endswith(".b16"):
            return self._halfword(mnemonic.removesuffix(".b16"), nodes, line)
        if mnemonic in {"selp.f32", "selp.b32"}:
            return op("select", nodes[2], *nodes[:2], line=line)
        if match := re.fullmatch(r"setp\.(\w+)\.(f32|s32|u32|b32)", mnemonic):
            prefix = {"f32": "cmp.", "u32": "i.u"}.get(match[2], "i.")
            return op(prefix + match[1].replace("nan", "uno").replace("num", "ord"), *nodes, line=line)
        if mnemonic == "not.pred":
            return op("i.xor", nodes[0], self._dag.const(1), line=line)
        if mnemonic in {"max.NaN.f32", "min.NaN.f32"} and len(nodes) == 3:
            return op(INTEGERS[mnemonic], op(INTEGERS[mnemonic], *nodes[:2], line=line), nodes[2], line=line)
        if mnemonic == "mad.lo.s32":
            return op("i.add", op("i.mul", *nodes[:2], line=line), nodes[2], line=line)
        if mnemonic == "bfe.u32" and nodes[2].op == "const":
            mask = self._dag.const((1 << int(nodes[2].value)) - 1)
            return op("i.and", op("i.shr", *nodes[:2], line=line), mask, line=line)
        if mnemonic == "shf.l.wrap.b32" and nodes[2].op == "const":
            by = int(nodes[2].value) % 32
            low = op("i.shr", nodes[0], self._dag.const(32 - by), line=line)
            return op("i.or", op("i.shl", nodes[1], self._dag.const(by), line=line), low, line=line) if by else nodes[1]
        if mnemonic == "neg.s32":
            return op("i.sub", self._dag.const(0), nodes[0], line=line)
        if mnemonic in self._floats or mnemonic in INTEGERS or mnemonic.endswith(".f32"):
            # Any other float operation stands under its own name.
            return op(self._floats.get(mnemonic) or INTEGERS.get(mnemonic) or mnemonic, *nodes, line=line)
        return self._dag.opaque(line)

    def _parameter(self, mnemonic: str, text: str, line: str) -> Value:
        match = re.search(r"_param_(\d+)\]$", text)
        if match and mnemonic == "ld.param.b64":
            return (int(match[1]), 0)
        value = self._operands[int(match[1])] if match and mnemonic in {"ld.param.b32", "ld.param.u32"} else None
        return self._dag.const(value) if isinstance(value, int) else self._dag.opaque(line)

    def _pair(self, mnemonic: str, arguments: list[str], line: str) -> Value:
        """Two words put into one register, or an operation on two at a time."""
        if mnemonic == "mov.b64":
            low, high = (self._node(text, line) for text in re.findall(r"[%\w]+", arguments[0]))
            return Pair(low, high)
        pairs = [self._registers.get(argument) for argument in arguments]
        if not all(isinstance(pair, Pair) for pair in pairs):
            return self._dag.opaque(line)
        low, high = (self._computed(mnemonic, [pair[i] for pair in pairs if isinstance(pair, Pair)], line) for i in range(2))
        return Pair(low, high)

    def _halfword(self, name: str, nodes: list[Node], line: str) -> Node:
        """Sixteen bits, of truths that are packed."""
        mask = self._dag.const(0xFFFF)
        x, y, *condition = [self._dag.op("i.and", node, mask) if name != "selp" or i < 2 else node for i, node in enumerate(nodes)]
        if name == "selp":
            return self._dag.op("select", *condition, x, y, line=line)
        if name in {"setp.eq", "setp.ne"}:
            return self._dag.op(f"i.{name[-2:]}", x, y, line=line)
        if name in {"and", "or", "xor", "shl"}:
            return self._dag.op("i.and", self._dag.op(f"i.{name}", x, y, line=line), mask, line=line)
        return self._dag.opaque(line)

    def _moved(self, mnemonic: str, held: tuple[int, int], by: str, line: str) -> Value:
        offset = self._wide(by, line)
        if mnemonic not in {"add.s64", "add.u64"} or offset.op != "wide":
            return self._dag.opaque(line)
        return (held[0], held[1] + int(offset.value))

    def _address(self, text: str, line: str) -> tuple[int, int]:
        match = re.fullmatch(r"\[ ?(%\w+)(?: ?\+ ?(\d+))? ?\]", text)
        value = self._registers.get(match[1]) if match else None
        if match is None or not isinstance(value, tuple) or isinstance(value, Pair):
            raise NotEstablishedError(f"an address that cannot be read: {line}")
        return (value[0], value[1] + int(match[2] or 0))

    def _wide(self, text: str, line: str) -> Node:
        """An operand of 64 bits."""
        if INTEGER.match(text):
            return self._dag.wide(int(text, 0))
        if match := DOUBLE.match(text):
            return self._dag.wide(int(match[1], 16))
        value = self._registers.get(text)
        if isinstance(value, Pair):
            return self._dag.op("w.pair", *value, line=line)
        return value if isinstance(value, Node) and is_wide_node(value) else self._dag.opaque(line)

    def _node(self, text: str, line: str) -> Node:
        if match := FLOAT.match(text):
            return self._dag.const(int(match[1], 16))
        if INTEGER.match(text):
            return self._dag.const(int(text, 0) & 0xFFFFFFFF)
        value = self._registers.get(text)
        return value if isinstance(value, Node) else self._dag.opaque(line)


def _width(mnemonic: str) -> int:
    """How many bytes a load or store moves for each register."""
    return {"b8": 1, "b64": 8}.get(mnemonic.rpartition(".")[2], 4)
