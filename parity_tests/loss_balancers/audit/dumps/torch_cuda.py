"""PyTorch on CUDA: the calls in the Python that Inductor writes, the PTX of the kernels, and their machine code.

Triton's PTX leaves `mul` and `add` free to be contracted, so it proves nothing about fused multiply-adds: the machine code must
hold none, and exactly the products and sums of the PTX where nothing is divided.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from loss_balancers.audit.dumps import ptx
from loss_balancers.audit.dumps.launches import launched
from loss_balancers.audit.expressions.comparison import FUSED_MULTIPLY_ADD, Finding
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d+\s+)?(([A-Z0-9]+)[\w.]*)(.*?);", re.MULTILINE)
#: Operations of the machine code: on one float, and on two at a time.
PRODUCTS, SUMS, FUSED = ("FMUL", "FMUL2"), ("FADD", "FADD2"), ("FFMA", "FFMA2", "FMA2")
#: What Triton's kernels have beyond their arguments: addresses of scratch memory.
SCRATCH = 2


class View(NamedTuple):
    """``size`` elements of a buffer, from some element on."""

    number: int
    size: int
    offset: int = 0


def read_case(
    folder: Path, losses: int, state: dict[str, list[int]], architecture: str, dag: Dag
) -> tuple[list[Node], list[Finding]]:
    """The results of a case: of the forward, or the gradients to its losses.

    Args:
        folder: Where its kernels and its plan are.
        losses: How many losses it takes: the inputs from 0 on.
        state: By the names of buffers: the inputs that their elements are. Other buffers have the values that they held.
        architecture: What it is compiled for.
        dag: The builder of nodes.

    Raises:
        NotEstablishedError: Something in the calls, the PTX or the machine code cannot be read.
    """
    plans = json.loads((folder / "plan.json").read_text("utf-8"))
    buffers = plans[0].get("buffers", {})
    named = {name: [dag.input(i)] for i, name in enumerate(name for name in plans[0]["inputs"] if name not in buffers)}
    if len(named) != losses:
        raise NotEstablishedError(f"the graph takes {len(named)} inputs, not {losses}")
    for name, (buffer, held) in buffers.items():
        named[name] = list(map(dag.input, state[buffer])) if buffer in state else list(map(dag.const, held))
    findings: list[Finding] = []
    results: list[list[Node]] = []
    for number, plan in enumerate(plans):
        kernels = {file.stem.partition("_")[2]: file for file in folder.glob(f"{number}_*.ptx")}
        tangents = [name for name in plan["inputs"] if name not in named]
        if len(tangents) != number:
            raise NotEstablishedError(f"the graph of the backward has inputs that the forward does not give: {tangents}")
        named |= {name: [dag.input(losses)] for name in tangents}
        wrapper = _Wrapper(kernels, architecture, dag)
        results = wrapper.run(plan["code"], [named[name] for name in plan["inputs"]])
        named |= {name: result for name, result in zip(plan["results"], results, strict=True) if name is not None}
        for file in kernels.values():
            findings += _machine_code(file)
    wanted = len(results) if len(plans) > 1 else 1
    return [node for result in results[:wanted] for node in result], findings


class _Wrapper:
    """Executes the calls of a graph's kernels."""

    def __init__(self, kernels: dict[str, Path], architecture: str, dag: Dag) -> None:
        self._kernels = kernels
        self._architecture = architecture
        self._dag = dag
        self._views: dict[str, View] = {}
        self._buffers: list[dict[int, Node]] = []
        self._given: list[list[Node]] = []
        self._results: list[list[Node]] = []

    def run(self, code: str, given: list[list[Node]]) -> list[list[Node]]:
        self._given = given
        (function,) = ast.parse(textwrap.dedent(code)).body
        assert isinstance(function, ast.FunctionDef)
        self._body(function.body)
        return self._results

    def _body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            text = ast.unparse(statement)
            if isinstance(statement, ast.With):
                self._body(statement.body)
            elif isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
                # Of what needs no gradient, a buffer, a backward returns None.
                nothing = [isinstance(each, ast.Constant) and each.value is None for each in statement.value.elts]
                pairs = zip(statement.value.elts, nothing, strict=True)
                self._results = [[] if none else self._elements(self._view(each)) for each, none in pairs]
            elif isinstance(statement, ast.Assign) and text.endswith("= args"):
                (targets,) = statement.targets
                names = [each.id for each in getattr(targets, "elts", [targets]) if isinstance(each, ast.Name)]
                for name, nodes in zip(names, self._given, strict=True):
                    self._views[name] = self._new(len(nodes), dict(enumerate(nodes)))
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                if not text.startswith("raw_stream"):
                    self._views[statement.targets[0].id] = self._view(statement.value)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                self._call(statement.value)
            elif not isinstance(statement, ast.Delete):
                raise NotEstablishedError(f"a line of Inductor's that cannot be read: {text}")

    def _call(self, call: ast.Call) -> None:
        name = launched(call, self._kernels)
        if name is None:
            return
        signature = json.loads(self._kernels[name].with_suffix(".json").read_text("utf-8"))["signature"]
        kinds = [kind for kind in signature.values() if kind != "constexpr"]
        given = [ast.literal_eval(each) if isinstance(each, ast.Constant) else self._view(each) for each in call.args][: len(kinds)]
        if [kind.startswith("*") for kind in kinds] != [isinstance(each, View) for each in given]:
            raise NotEstablishedError(f"the kernel {name} takes other arguments than it is given: {signature}")
        # A truth is a byte; nothing else that is read has another width than a word.
        widths = [1 if kind == "*i1" else 4 for kind in kinds]
        operands = [
            each if isinstance(each, int) else ptx.Bytes(self._elements(each)) if width == 1 else self._elements(each)
            for each, width in zip(given, widths, strict=True)
        ]
        stored = ptx.run_kernel(self._kernels[name].read_text("utf-8"), name, operands, SCRATCH, self._architecture, self._dag)
        for (place, offset), node in stored.items():
            view = given[place]
            assert isinstance(view, View)  # what is no address cannot be stored to
            self._buffers[view.number][view.offset + offset // widths[place]] = node

    def _new(self, size: int, content: dict[int, Node]) -> View:
        self._buffers.append(content)
        return View(len(self._buffers) - 1, size)

    def _view(self, expression: ast.expr) -> View:
        text = ast.unparse(expression)
        if isinstance(expression, ast.Name) and expression.id in self._views:
            return self._views[expression.id]
        if isinstance(expression, ast.Call) and text.startswith("empty_strided_cuda("):
            return self._new(_elements_of(expression.args[0]), {})
        if isinstance(expression, ast.Call) and text.startswith("reinterpret_tensor("):
            view, offset = self._view(expression.args[0]), ast.literal_eval(expression.args[3])
            return View(view.number, _elements_of(expression.args[1]), view.offset + offset)
        raise NotEstablishedError(f"a value of Inductor's that cannot be read: {text}")

    def _elements(self, view: View) -> list[Node]:
        unknown = self._dag.opaque(f"an element of buffer {view.number} that nothing has stored")
        return [self._buffers[view.number].get(view.offset + i, unknown) for i in range(view.size)]


def _elements_of(shape: ast.expr) -> int:
    sizes: Any = ast.literal_eval(shape)
    count = 1
    for size in sizes:
        count *= size
    return count


def _machine_code(file: Path) -> list[Finding]:
    """What in a kernel's machine code is fused; it must round as often as the PTX."""
    kinds = re.findall(r"^\s+(mul|add|sub|div|rcp)(?:\.\w+)*\.f32(x2)?\s", file.read_text("utf-8"), re.MULTILINE)
    emitted = Counter("".join(kind) for kind in kinds)
    lines = _instructions(file)
    # A sum with zero only moves a magnitude.
    found = Counter(operation for _, operation, rest in lines if not (operation in SUMS and re.search(r", -?RZ\b", rest)))
    odd = [full for full, operation, _ in lines if operation in PRODUCTS + SUMS and re.search(r"\.R[MPZ]|\.SAT", full)]
    if odd:
        raise NotEstablishedError(f"machine code that does not round to nearest: {odd[0]}")
    fused = _fused(lines)
    for kind in ("", "x2"):
        wanted = (emitted[f"mul{kind}"], emitted[f"add{kind}"] + emitted[f"sub{kind}"])
        held = tuple(found[operations[bool(kind)]] for operations in (PRODUCTS, SUMS))
        if held != wanted and not (fused or emitted["div"] or emitted["rcp"]):
            raise NotEstablishedError(f"the PTX has {wanted} products and sums ({kind or 'single'}), the machine code {held}")
    _same_doubles(file.read_text("utf-8"), found)
    return _findings(fused)


def _same_doubles(emitted: str, found: Counter[str]) -> None:
    """In float64 as many operations of each kind as the PTX has: none is fused. A root or a quotient becomes many."""
    kinds = Counter(re.findall(r"^\s+(fma|mul|add|sub|sqrt|div)(?:\.\w+)*\.f64\s", emitted, re.MULTILINE))
    wanted = (kinds["fma"], kinds["mul"], kinds["add"] + kinds["sub"])
    held = tuple(found[operation] for operation in ("DFMA", "DMUL", "DADD"))
    if held != wanted and not (kinds["sqrt"] or kinds["div"]):
        raise NotEstablishedError(f"the PTX has {wanted} fused operations, products and sums of float64, the machine code {held}")


def fused(folder: Path) -> list[Finding]:
    """What is fused in the machine code of the kernels of a case whose arithmetic is not read.

    Raises:
        NotEstablishedError: The machine code of a kernel is missing.
    """
    return [finding for file in sorted(folder.glob("*.py")) for finding in _findings(_fused(_instructions(file)))]


def _instructions(file: Path) -> list[tuple[str, str, str]]:
    """The lines of the machine code of a kernel: each with its mnemonic, the operation in that, and the rest."""
    code = file.with_suffix(".sass")
    lines = INSTRUCTION.findall(code.read_text("utf-8")) if code.exists() else []
    if not lines:
        raise NotEstablishedError("the disassembly shows no instructions")
    return lines


def _fused(lines: list[tuple[str, str, str]]) -> list[str]:
    return [f"{full}{rest}".strip() for full, operation, rest in lines if operation in FUSED]


def _findings(lines: list[str]) -> list[Finding]:
    return [Finding(FUSED_MULTIPLY_ADD, "no such instruction", "machine code", line) for line in lines]
