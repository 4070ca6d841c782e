"""Object code of x86-64 and AArch64, as `objdump` prints it, GNU's or LLVM's: how often each block rounds, and what comes next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from loss_balancers.audit.dumps.roundings import Block, Blocks
from loss_balancers.audit.expressions.dag import NotEstablishedError

#: Mnemonics of both processors by what they do. `fnmul` and `fabd` round once, then set the sign. Packed ones count as any other.
MACHINE = {
    "mul": re.compile(r"^v?mul[sp]s$|^fn?mul$"),
    "add": re.compile(r"^v?add[sp]s$|^fadd$"),
    "sub": re.compile(r"^v?sub[sp]s$|^fsub$|^fabd$"),
    "div": re.compile(r"^v?div[sp]s$|^fdiv$"),
    "sqrt": re.compile(r"^v?sqrt[sp]s$|^fsqrt$"),
    "fma": re.compile(r"^v4?fn?m(add|sub)\w*$|^fn?m(add|sub|la|ls|ad|sb)\w*$|^fcmla$"),
    "rcp": re.compile(r"^v?(rcp|rsqrt)\w*$|^fr(ecp|sqrt)[esx]$"),
}
FORBIDDEN = ("fma", "rcp")
#: What else may be done to vector registers: moves, bits, comparisons, choices, conversions from and to integers, and integers.
X86_64 = re.compile(
    r"^v?(p\w+|mov\w+|(and|andn|or|xor)p[sd]|(max|min)[sp]s|u?comiss|cmp\w*[sp]s|blend\w+|shuf\w+|unpck\w+|perm\w+|align\w+|"
    r"broadcast\w+|extract\w+|insert\w+|maskmov\w+|cvt(u?si2ss|t?ss2u?si|u?dq2ps|t?ps2u?dq)\w*)$"
)
AARCH64 = re.compile(r"^((?!b?f)[a-z]\w*|f(mov|abs|neg|csel|c?cmpe?|cm(eq|g[et]|l[et])|ac[gl][et]|(max|min)(nm)?|cvtz[su]))$")

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
#: The bytes, where they are shown: two digits each on x86-64, eight in one on AArch64.
BYTES = r"(?:(?:[0-9a-f]{2}\s+)+|[0-9a-f]{8}\s+)?"
#: Address, mnemonic, operands. A line of bytes alone goes on with those of the line before.
INSTRUCTION = re.compile(rf"^\s*([0-9a-f]+):\s+{BYTES}(?:(?:bnd|notrack|repz?) )?(?![0-9a-f]{{2}}(?: |$))([a-z][\w.]*)\s*(.*)$")
THREE_REGISTERS = re.compile(r"^(%[xyz]mm\d+|[sd]\d+), ?(%[xyz]mm\d+|[sd]\d+), ?(%[xyz]mm\d+|[sd]\d+)$")
#: What rounds as another does, before it sets the sign.
UNSIGNED = {"fnmul": "fmul", "fabd": "fsub"}
#: Instructions that write vector registers which they do not name.
CLOBBERS = re.compile(r"^(call\w*|blr?\w*|syscall|svc|vzero\w*|v?pcmp[ei]str\w*|f?xrstor\w*)$")
RELOCATION = re.compile(r"^\s*[0-9a-f]+:\s+R_\w+")
RETURNS = re.compile(r"^(ret\w*|ud2|hlt|int3|brk|udf)$")
JUMPS = re.compile(r"^(j\w+|loop\w*|b|bc?\.\w+|cb(?!tw$)\w+|tbn?z|br\w*)$")
ALWAYS = re.compile(r"^(jmp\w*|b|br\w*)$")
#: The label of what a function leaves to when it jumps to another: nothing of its own comes after.
ANOTHER = "another function"


class Instruction(NamedTuple):
    """``outside``: it names what is in another section, so the address that is printed is none."""

    address: int
    mnemonic: str
    operands: str
    outside: bool
    line: str


def read(disassembly: str) -> tuple[dict[str, Blocks], list[tuple[str, str]]]:
    """The blocks of each function by its name, and the lines that fuse or approximate, each with its kind.

    Raises:
        NotEstablishedError: There are no instructions, two functions of one name, or an instruction that may round unnoticed.
    """
    functions = _functions(disassembly)
    if not any(functions.values()):
        raise NotEstablishedError("the disassembly shows no instructions")
    every = [each for instructions in functions.values() for each in instructions]
    lines = [(kind, each.line) for each in every if (kind := _kind(each.mnemonic)) in FORBIDDEN]
    unknown = next((each for each in every if not _is_known(each)), None)
    if unknown is not None and not lines:
        raise NotEstablishedError(f"an instruction that cannot be read: {unknown.line}")
    return {name: _blocks(instructions) for name, instructions in functions.items()}, lines


def _functions(disassembly: str) -> dict[str, list[Instruction]]:
    current: list[Instruction] = []
    functions = {"": current}  # what is before the first name
    for line in disassembly.splitlines():
        if match := FUNCTION.match(line):
            if match[1] in functions:
                raise NotEstablishedError(f"the object code has two functions {match[1]}")
            current = functions[match[1]] = []
        elif match := INSTRUCTION.match(line):
            shown = re.sub(r"\s+", " ", line.strip())
            current.append(Instruction(int(match[1], 16), match[2], match[3], False, shown))
        elif RELOCATION.match(line) and current:
            current[-1] = current[-1]._replace(outside=True)
    return functions


def _blocks(instructions: list[Instruction]) -> Blocks:
    addresses = range(instructions[0].address, instructions[-1].address + 1) if instructions else range(0)
    following = {each.address: after.address for each, after in pairwise(instructions)}
    ends = {each.address: _successors(each, following.get(each.address), addresses) for each in instructions if _leaves(each)}
    starts = {label for labels in ends.values() for label in labels} | {_label(following.get(address)) for address in ends}
    lines: dict[str, list[Instruction]] = {}
    successors: dict[str, list[str]] = {}
    label = ""
    for i, each in enumerate(instructions):
        if i == 0 or _label(each.address) in starts:
            if i and instructions[i - 1].address not in ends:
                successors[label] = [_label(each.address)]
            label = _label(each.address)
            lines[label], successors[label] = [], []
        lines[label].append(each)
        successors[label] += ends.get(each.address, [])
    blocks = {label: Block(_rounds(line), Counter(), successors[label]) for label, line in lines.items()}
    return blocks | {ANOTHER: Block(Counter(), Counter(), [])}


def _rounds(line: Sequence[Instruction]) -> Counter[str]:
    """How often a block rounds. What it computes again, from the same registers with the same content, counts once.

    AArch64 computes a product twice where it needs it with either sign.
    """
    rounds: Counter[str] = Counter()
    held: set[tuple[str, ...]] = set()  # the operations whose sources nothing has named since, but as sources
    for each in line:
        kind, written, operation = _kind(each.mnemonic), _registers(each.operands), None
        if kind and (match := THREE_REGISTERS.match(each.operands)):
            first, second, third = match.groups()
            result, sources = (third, (first, second)) if third.startswith("%") else (first, (second, third))
            written, operation = _registers(result), (UNSIGNED.get(each.mnemonic, each.mnemonic), *sources)
        if kind and operation not in held:
            rounds[kind] += 1
        if operation:
            held.add(operation)
        held = {other for other in held if not written & _registers(" ".join(other[1:]))}
        if CLOBBERS.match(each.mnemonic):
            held.clear()
    return rounds


def _registers(operands: str) -> set[str]:
    """The numbers of the vector registers, whatever part of them is named."""
    return set(re.findall(r"(?:%[xyz]mm|\b[bhsdqvz])(\d+)", operands))


def _leaves(each: Instruction) -> bool:
    return bool(RETURNS.match(each.mnemonic) or JUMPS.match(each.mnemonic))


def _successors(each: Instruction, following: int | None, addresses: range) -> list[str]:
    """Where an instruction goes that returns or jumps. A jump to another function is a call and a return."""
    if RETURNS.match(each.mnemonic):
        return []
    target = re.search(r"\b(?:0x)?([0-9a-f]+) <", each.operands)
    if target is None:
        there = [each.line]  # to an address that is computed: no label of a block
    else:
        address = int(target[1], 16)
        there = [ANOTHER if each.outside or address not in addresses else _label(address)]
    return there if ALWAYS.match(each.mnemonic) else [*there, _label(following)]


def _is_known(each: Instruction) -> bool:
    """Whether it rounds as its kind says or not at all. Only what names vector registers can, and the x87's, that begin with f."""
    if _leaves(each) or not (_registers(each.operands) or each.mnemonic.startswith("f")) or _kind(each.mnemonic):
        return True
    return bool((X86_64 if "%" in each.operands else AARCH64).match(each.mnemonic))


def _label(address: int | None) -> str:
    return "the end" if address is None else f"{address:x}"


def _kind(mnemonic: str) -> str | None:
    return next((kind for kind, pattern in MACHINE.items() if pattern.match(mnemonic)), None)
