"""PTX: the kernels of a module, executed on nodes, one thread after the other."""

from __future__ import annotations

import re

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError
from loss_balancers.parity.audit.hlo import Buffer, evaluate_entry

ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)^\{(.*?)^\}", re.DOTALL | re.MULTILINE)
FLOAT = re.compile(r"0f([0-9A-Fa-f]{8})$")
INTEGER = re.compile(r"-?\d+$")
#: Instructions that PTX defines as IEEE 754 operations, rounded to nearest. Without `.rn`, `mul` and `add` may be contracted.
FLOATS = {"mul.rn.f32": "mul", "add.rn.f32": "add", "sub.rn.f32": "sub", "div.rn.f32": "div", "abs.f32": "abs", "neg.f32": "neg"}
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
}
IGNORED = ("griddepcontrol.", "ret", ".")
#: Runs on its own where it is not told apart by thread: no more steps than this.
STEPS = 20_000

#: A node, or an address: which buffer, and how many bytes on.
Value = Node | tuple[int, int]


def read_module(hlo: str, ptx: str, architecture: str, dag: Dag) -> list[Node]:
    """The results of a module compiled for ``architecture``, from its optimised HLO and all its PTX.

    Raises:
        NotEstablishedError: A kernel is missing, cannot be followed, or is for another architecture.
    """
    others = set(re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)) - {architecture, f"{architecture}a"}
    if others:
        raise NotEstablishedError(f"the PTX is for {', '.join(sorted(others))}, not for {architecture}")
    kernels = {match[1]: match for match in ENTRY.finditer(ptx)}

    def kernel(name: str, operands: list[Buffer], sizes: list[int]) -> list[Buffer]:
        match = kernels.get(re.sub(r"\W", "_", name))
        if match is None:
            raise NotEstablishedError(f"there is no PTX kernel for %{name} among {', '.join(kernels) or 'none'}")
        given = re.findall(rf"{match[1]}_param_(\d+)", match[2])
        if given != [str(i) for i in range(len(operands) + len(sizes))]:
            raise NotEstablishedError(
                f"%{name} has {len(operands)} operands and {len(sizes)} results, its kernel {len(given)} parameters"
            )
        threads = re.search(r"\.reqntid (\d+), 1, 1$", match[3].strip())
        if threads is None:
            raise NotEstablishedError(f"how many threads run the kernel of %{name} is not known: {match[3].strip()}")
        stored: dict[tuple[int, int], Node] = {}
        for thread in range(int(threads[1])):
            _Thread(match[4], match[1], operands, stored, dag, thread).run()
        try:
            return [[stored[len(operands) + i, 4 * k] for k in range(size)] for i, size in enumerate(sizes)]
        except KeyError:
            raise NotEstablishedError(f"the kernel of %{name} does not store all its results") from None

    return evaluate_entry(hlo, dag, kernel)


class _Thread:
    """One thread of a kernel. What it stores goes to ``stored``, by buffer and bytes."""

    def __init__(
        self, body: str, name: str, operands: list[Buffer], stored: dict[tuple[int, int], Node], dag: Dag, thread: int
    ) -> None:
        text = re.sub(r"//[^\n]*", "", body).replace("\t", " ")
        self._lines = [" ".join(part.split()) for part in re.split(r";|(?<=:)\n", text) if part.strip()]
        self._labels = {line[:-1]: i for i, line in enumerate(self._lines) if re.fullmatch(r"\$?\w+:", line)}
        self._name = name
        self._operands = operands
        self._stored = stored
        self._dag = dag
        self._registers: dict[str, Value] = {"%tid.x": dag.const(thread)}

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
            return place + 1
        if match := re.fullmatch(r"@(!?)(%p\d+) bra(?:\.uni)? (\S+)", line):
            condition = self._registers.get(match[2])
            if not isinstance(condition, Node) or condition.op != "const":
                raise NotEstablishedError(f"{self._name} branches on what it computes: {line}")
            return self._labels[match[3]] if bool(condition.value) != bool(match[1]) else place + 1
        if match := re.fullmatch(r"bra(?:\.uni)? (\S+)", line):
            return self._labels[match[1]]
        if line == "ret":
            return len(self._lines)
        mnemonic, _, rest = line.partition(" ")
        if line.startswith(("@", "call", "brx")):
            raise NotEstablishedError(f"{self._name} branches in a way that cannot be read: {line}")
        if not mnemonic.startswith(IGNORED):
            self._instruction(mnemonic, re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest), line)
        return place + 1

    def _instruction(self, mnemonic: str, arguments: list[str], line: str) -> None:
        if mnemonic in {"st.global.b32", "st.global.f32"}:
            place = self._address(arguments[0], line)
            if place[0] < len(self._operands) or place in self._stored:
                raise NotEstablishedError(f"a store that cannot be read: {line}")
            self._stored[place] = self._node(arguments[1], line)
        elif re.fullmatch(r"ld\.global(\.nc)?(\.v[24])?\.[bf]32", mnemonic):
            buffer, offset = self._address(arguments[1], line)
            for i, register in enumerate(re.findall(r"%\w+", arguments[0])):
                self._registers[register] = self._loaded(buffer, offset + 4 * i, line)
        elif mnemonic.startswith("st.") or not arguments or not arguments[0].startswith("%"):
            raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        else:
            self._registers[arguments[0]] = self._value(mnemonic, arguments[1:], line)

    def _loaded(self, buffer: int, offset: int, line: str) -> Node:
        if buffer < len(self._operands) and offset % 4 == 0 and offset // 4 < len(self._operands[buffer]):
            return self._operands[buffer][offset // 4]
        return self._stored.get((buffer, offset), self._dag.opaque(line))

    def _value(self, mnemonic: str, arguments: list[str], line: str) -> Value:
        op = self._dag.op
        if mnemonic == "ld.param.b64" and (match := re.search(r"_param_(\d+)\]$", arguments[0])):
            return (int(match[1]), 0)
        held = self._registers.get(arguments[0])
        if isinstance(held, tuple):
            return held if mnemonic in {"cvta.to.global.u64", "mov.b64"} else self._moved(mnemonic, held, arguments[1], line)
        nodes = [self._node(argument, line) for argument in arguments]
        if mnemonic in {"mov.b32", "mov.f32", "mov.u32"}:
            return nodes[0]
        if mnemonic == "mul.wide.u32":
            return op("i.mul", *nodes, line=line)  # an offset: read as an address only if it is a constant
        if mnemonic in {"selp.f32", "selp.b32"}:
            return op("select", nodes[2], *nodes[:2], line=line)
        if match := re.fullmatch(r"setp\.(\w+)\.(f32|s32|u32|b32)", mnemonic):
            prefix = {"f32": "cmp.", "u32": "i.u"}.get(match[2], "i.")
            return op(prefix + match[1].replace("nan", "uno").replace("num", "ord"), *nodes, line=line)
        if mnemonic == "mad.lo.s32":
            return op("i.add", op("i.mul", *nodes[:2], line=line), nodes[2], line=line)
        if mnemonic == "bfe.u32" and nodes[2].op == "const":
            mask = self._dag.const((1 << int(nodes[2].value)) - 1)
            return op("i.and", op("i.shr", *nodes[:2], line=line), mask, line=line)
        if mnemonic in {"not.pred", "neg.s32"}:
            return op("i.xor", nodes[0], self._dag.const(1), line=line) if mnemonic == "not.pred" else self._minus(nodes[0], line)
        if mnemonic in FLOATS or mnemonic in INTEGERS or mnemonic.endswith(".f32"):
            # Any other float operation stands under its own name.
            return op(FLOATS.get(mnemonic) or INTEGERS.get(mnemonic) or mnemonic, *nodes, line=line)
        return self._dag.opaque(line)

    def _minus(self, node: Node, line: str) -> Node:
        return self._dag.op("i.sub", self._dag.const(0), node, line=line)

    def _moved(self, mnemonic: str, held: tuple[int, int], by: str, line: str) -> Value:
        offset = self._node(by, line)
        if mnemonic not in {"add.s64", "add.u64"} or offset.op != "const":
            return self._dag.opaque(line)
        return (held[0], held[1] + int(offset.value))

    def _address(self, text: str, line: str) -> tuple[int, int]:
        match = re.fullmatch(r"\[(%\w+)(?:\+(\d+))?\]", text)
        value = self._registers.get(match[1]) if match else None
        if match is None or not isinstance(value, tuple):
            raise NotEstablishedError(f"an address that cannot be read: {line}")
        return (value[0], value[1] + int(match[2] or 0))

    def _node(self, text: str, line: str) -> Node:
        if match := FLOAT.match(text):
            return self._dag.const(int(match[1], 16))
        if INTEGER.match(text):
            return self._dag.const(int(text) & 0xFFFFFFFF)
        value = self._registers.get(text)
        return value if isinstance(value, Node) else self._dag.opaque(line)
