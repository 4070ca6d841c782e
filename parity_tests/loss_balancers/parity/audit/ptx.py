"""PTX: the kernels of a module, each a straight line of instructions on scalars."""

from __future__ import annotations

import re

from loss_balancers.parity.audit.dag import Dag, Node, NotEstablishedError
from loss_balancers.parity.audit.hlo import evaluate_entry

ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)^\{(.*?)^\}", re.DOTALL | re.MULTILINE)
CONSTANT = re.compile(r"0f([0-9A-Fa-f]{8})$")
#: Instructions that PTX defines as IEEE 754 operations, rounded to nearest. Without `.rn`, `mul` and `add` may be contracted.
EXACT = {"mul.rn.f32": "mul", "add.rn.f32": "add", "sub.rn.f32": "sub", "div.rn.f32": "div", "abs.f32": "abs", "neg.f32": "neg"}
IGNORED = ("griddepcontrol.", "ret")
CONTROL = ("bra", "call", "brx", "@")

Value = Node | tuple[str, int]


def read_module(hlo: str, ptx: str, architecture: str, dag: Dag) -> list[Node]:
    """The results of a module compiled for ``architecture``, from its optimised HLO and all its PTX.

    Raises:
        NotEstablishedError: A kernel is missing, is no straight line, or is for another architecture.
    """
    others = set(re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)) - {architecture, f"{architecture}a"}
    if others:
        raise NotEstablishedError(f"the PTX is for {', '.join(sorted(others))}, not for {architecture}")
    kernels = {match[1]: match for match in ENTRY.finditer(ptx)}

    def kernel(name: str, operands: list[Node], results: int) -> list[Node]:
        match = kernels.get(re.sub(r"\W", "_", name))
        if match is None:
            raise NotEstablishedError(f"there is no PTX kernel for %{name} among {', '.join(kernels) or 'none'}")
        parameters = re.findall(rf"{match[1]}_param_(\d+)", match[2])
        if parameters != [str(i) for i in range(len(operands) + results)]:
            raise NotEstablishedError(
                f"%{name} has {len(operands)} operands and {results} results, its kernel {len(parameters)} parameters"
            )
        if ".reqntid 1, 1, 1" not in match[3]:
            raise NotEstablishedError(f"the kernel of %{name} does not run in one thread: {match[3].strip()}")
        stored = _run(match[4], match[1], operands, dag)
        try:
            return [stored[len(operands) + i] for i in range(results)]
        except KeyError:
            raise NotEstablishedError(f"the kernel of %{name} does not store all its results") from None

    return evaluate_entry(hlo, dag, kernel)


def _run(body: str, name: str, operands: list[Node], dag: Dag) -> dict[int, Node]:
    """Executes a kernel on nodes: from the number of a parameter to what was stored there."""
    registers: dict[str, Value] = {}
    stored: dict[int, Node] = {}
    for raw in body.split(";"):
        line = re.sub(r"//[^\n]*", "", raw).strip()
        if not line or line.startswith("."):
            continue
        mnemonic, *rest = line.split(None, 1)
        if mnemonic.startswith(CONTROL) or ":" in mnemonic:
            raise NotEstablishedError(f"{name} is no straight line of instructions: {line}")
        if mnemonic.startswith(IGNORED):
            continue
        arguments = [argument.strip() for argument in (rest[0] if rest else "").split(",")]
        if mnemonic.startswith("st."):
            kind, number = _pointer(arguments[0], registers, line)
            if kind != "buffer" or mnemonic not in {"st.global.b32", "st.global.f32"} or number in stored:
                raise NotEstablishedError(f"a store that cannot be read: {line}")
            stored[number] = _node(arguments[1], registers, dag, line)
        elif not arguments[0].startswith("%"):
            raise NotEstablishedError(f"an instruction that cannot be read: {line}")
        else:
            registers[arguments[0]] = _value(mnemonic, arguments[1:], registers, stored, operands, dag, line)
    return stored


def _value(
    mnemonic: str,
    arguments: list[str],
    registers: dict[str, Value],
    stored: dict[int, Node],
    operands: list[Node],
    dag: Dag,
    line: str,
) -> Value:
    if mnemonic == "ld.param.b64" and (match := re.search(r"_param_(\d+)\]$", arguments[0])):
        return ("buffer", int(match[1]))
    if mnemonic in {"cvta.to.global.u64", "mov.b64"} and isinstance(registers.get(arguments[0]), tuple):
        return registers[arguments[0]]
    if re.fullmatch(r"ld\.global(\.nc)?\.[bf]32", mnemonic):
        _, number = _pointer(arguments[0], registers, line)
        return operands[number] if number < len(operands) else stored.get(number, dag.opaque(line))
    if mnemonic in {"mov.b32", "mov.f32"}:
        return _node(arguments[0], registers, dag, line)
    nodes = [_node(argument, registers, dag, line) for argument in arguments]
    if mnemonic in {"selp.f32", "selp.b32"}:
        yes, no, condition = nodes
        return dag.op("select", condition, yes, no, line=line)
    if match := re.fullmatch(r"setp\.(\w+)\.f32", mnemonic):
        return dag.op(f"cmp.{match[1]}", *nodes, line=line)
    if re.search(r"\.f32$", mnemonic):
        return dag.op(EXACT.get(mnemonic, mnemonic), *nodes, line=line)  # any other float operation stands under its own name
    return dag.opaque(line)


def _pointer(text: str, registers: dict[str, Value], line: str) -> tuple[str, int]:
    value = registers.get(text.strip("[]"))
    if not isinstance(value, tuple):
        raise NotEstablishedError(f"an address that cannot be read: {line}")
    return value


def _node(text: str, registers: dict[str, Value], dag: Dag, line: str) -> Node:
    if match := CONSTANT.match(text):
        return dag.const(int(match[1], 16))
    value = registers.get(text)
    return value if isinstance(value, Node) else dag.opaque(line)
