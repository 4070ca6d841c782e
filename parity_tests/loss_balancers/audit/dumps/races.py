"""Races in what Inductor emits for CUDA: within one launch, and between launches.

The threads of a launch run in any order. So where one stores an element of a buffer, no other may load or store that element. A
thread is taken to be one element of the kernel's range; that blocks hold many of them only makes fewer orders possible.

Between launches, which run one after the other, the hazard is another: state is overwritten in place, and whatever is computed from
it afterwards, in this graph or in the backward that it was kept for, is computed from the wrong state. A graph says itself when it
wants the new state: then it takes what was written, and not its input.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loss_balancers.audit.dumps.launches import launched
from loss_balancers.audit.dumps.triton_source import AXES, REDUCED, Access, Kernel, Places, read_kernel
from loss_balancers.audit.expressions.comparison import OVERWRITTEN, RACE, Finding
from loss_balancers.audit.expressions.dag import NotEstablishedError

#: Calls that give a buffer of their own.
ALLOCATIONS = ("empty_strided_cuda(", "empty_strided_cpu(")
#: Operations of this library, which give a new tensor.
OPERATIONS = "torch.ops.loss_balancers."


class View(NamedTuple):
    """A buffer from some element on, and the name whose content it shows: a buffer that is used again gets another one."""

    buffer: int
    content: str
    offset: int = 0


def read_races(folder: Path) -> list[Finding]:
    """The races in what was left of a case: of every graph, its calls and its kernels.

    Raises:
        NotEstablishedError: Something cannot be read, or there is nothing.
    """
    findings: list[Finding] = []
    for number, plan in enumerate(json.loads((folder / "plan.json").read_text("utf-8"))):
        sources = {file.stem.partition("_")[2]: file.read_text("utf-8") for file in folder.glob(f"{number}_*.py")}
        findings += races(plan["code"], sources)
    return findings


def races(code: str, sources: Mapping[str, str]) -> list[Finding]:
    """The races of one graph.

    Args:
        code: The function that launches its kernels.
        sources: The source of each kernel.

    Raises:
        NotEstablishedError: Something cannot be read, or nothing is launched.
    """
    calls = _Calls({name: read_kernel(source) for name, source in sources.items()})
    calls.read(code)
    if not calls.launches:
        raise NotEstablishedError("nothing is launched")
    return calls.findings


class _Calls:
    """Goes through the calls of a graph."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self.findings: list[Finding] = []
        self.launches = 0
        self._kernels = kernels
        self._views: dict[str, View] = {}
        self._buffers = 0
        self._inputs: set[str] = set()
        self._streams: set[str] = set()
        #: The contents that are no longer there, and what has overwritten them.
        self._gone: dict[str, str] = {}

    def read(self, code: str) -> None:
        (function,) = ast.parse(textwrap.dedent(code)).body
        assert isinstance(function, ast.FunctionDef)
        self._body(function.body)

    def _body(self, statements: list[ast.stmt]) -> None:
        for statement, following in zip(statements, [*statements[1:], None], strict=True):
            text = ast.unparse(statement)
            if isinstance(statement, ast.With):
                self._body(statement.body)
            elif isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
                for each in statement.value.elts:
                    if ast.unparse(each) != "None":
                        self._check_there(self._view(each), f"return of {ast.unparse(each)}")
            elif isinstance(statement, ast.Assign) and text.endswith("= args"):
                for node in ast.walk(statement.targets[0]):
                    if isinstance(node, ast.Name):
                        self._views[node.id] = self._new(node.id)
                        self._inputs.add(node.id)
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self._assign(statement.targets[0].id, statement.value, following)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                self._call(statement.value, text)
            elif not isinstance(statement, ast.Delete):
                raise NotEstablishedError(f"a line of Inductor's that cannot be read: {text}")

    def _assign(self, name: str, value: ast.expr, following: ast.stmt | None) -> None:
        text = ast.unparse(value)
        if text.startswith("get_raw_stream("):
            self._streams.add(f"{name} = {text}")
        elif text.startswith(ALLOCATIONS):
            self._views[name] = self._new(name)
        elif isinstance(value, ast.Call) and text.startswith(OPERATIONS):
            for each in value.args:
                if isinstance(each, ast.Name):
                    self._check_there(self._view(each), text)
            self._views[name] = self._new(name)
        else:
            view = self._view(value)
            again = isinstance(value, ast.Name) and following is not None and ast.unparse(following) == f"del {value.id}"
            self._views[name] = view._replace(content=name) if again else view

    def _new(self, name: str) -> View:
        self._buffers += 1
        return View(self._buffers, name)

    def _view(self, expression: ast.expr) -> View:
        text = ast.unparse(expression)
        if isinstance(expression, ast.Name) and expression.id in self._views:
            return self._views[expression.id]
        if isinstance(expression, ast.Call) and text.startswith("reinterpret_tensor(") and len(expression.args) == 4:
            view = self._view(expression.args[0])
            return view._replace(offset=view.offset + int(ast.literal_eval(expression.args[3])))
        raise NotEstablishedError(f"a value of Inductor's that cannot be read: {text}")

    def _call(self, call: ast.Call, text: str) -> None:
        name = launched(call, self._kernels)
        if name is None:
            return
        streams = [f"{ast.unparse(each.value)} = get_raw_stream(0)" for each in call.keywords if each.arg == "stream"]
        if self._streams != set(streams):
            raise NotEstablishedError(f"launches on other than one stream: {sorted(self._streams)}, {text}")
        self.launches += 1
        given = self._given(self._kernels[name], call, name)
        accesses = self._kernels[name].accesses
        line = f"{name}.run({', '.join(ast.unparse(each) for each in call.args)})"
        for pointer in dict.fromkeys(each.pointer for each in accesses if not each.stores):
            self._check_there(given[pointer], line)
        for found, lines in conflicts(accesses, given):
            self.findings.append(Finding(RACE, "one thread for each element", f"{found} in {line}", lines))
        for pointer in dict.fromkeys(each.pointer for each in accesses if each.stores):
            self._overwrite(given[pointer], line)

    def _given(self, kernel: Kernel, call: ast.Call, name: str) -> dict[str, View]:
        """The view that each pointer of a kernel is given."""
        parameters = [each for each, kind in kernel.parameters.items() if kind != "constexpr"]
        kinds = list(kernel.parameters.values())
        # A call also gives the sizes that are constants in the kernel, after all pointers.
        sizes = kinds[kinds.index("constexpr") :] if "constexpr" in kinds else []
        if len(call.args) < len(parameters) or any(kind.startswith("*") for kind in sizes):
            raise NotEstablishedError(f"the kernel {name} takes other arguments than it is given: {kernel.parameters}")
        given = {}
        elements: dict[int, str] = {}
        for parameter, argument in zip(parameters, call.args, strict=False):
            kind = kernel.parameters[parameter]
            if not kind.startswith("*"):
                if not (isinstance(argument, ast.Constant) or ast.unparse(argument).endswith(".item()")):
                    raise NotEstablishedError(f"the kernel {name} takes a number and is given {ast.unparse(argument)}")
                continue
            given[parameter] = self._view(argument)
            if elements.setdefault(given[parameter].buffer, kind) != kind:
                raise NotEstablishedError(f"the kernel {name} takes {ast.unparse(argument)} as {kind}, and as another type")
        return given

    def _overwrite(self, view: View, line: str) -> None:
        """Of an input, the content that the graph was given is gone; of any buffer, what it was before it was used again."""
        for other in self._views.values():
            if other.buffer == view.buffer and (other.content != view.content or other.content in self._inputs):
                self._gone.setdefault(other.content, line)

    def _check_there(self, view: View, reader: str) -> None:
        if view.content in self._gone:
            found = f"{view.content}, read by {reader}, after it was overwritten"
            self.findings.append(Finding(OVERWRITTEN, "what it was", found, self._gone[view.content]))


def conflicts(accesses: list[Access], given: Mapping[str, View]) -> Iterator[tuple[str, str]]:
    """What two threads do to one element, or one thread in an order that proves nothing, and the lines that show it.

    Raises:
        NotEstablishedError: An index is not known, or what one thread loads may reach another after it was overwritten.
    """
    for number, store in enumerate(accesses):
        others = [each for each in accesses if given[each.pointer].buffer == given[store.pointer].buffer and each is not store]
        if not store.stores:
            continue
        written = _places(store, given)
        if len(np.unique(written)) < len(written):
            yield "several threads store one element", store.line
        for other in others:
            before = accesses.index(other) < number
            accessed = _places(other, given)
            if not np.isin(accessed, written).any():
                continue
            if other.stores:
                if before:
                    yield "two stores of one element", f"{other.line}, {store.line}"
            elif not _by_the_same_threads(store, written, other, accessed):
                if store.once and _within_programs(store, other, given):
                    raise NotEstablishedError(f"a load and a store around a reduction: {other.line}, {store.line}")
                yield "a thread loads what another stores", f"{other.line}, {store.line}"
            elif not before:
                yield "a load after the store", f"{store.line}, {other.line}"
            elif not other.exchanges <= store.exchanges:
                lines = f"{other.line}, {store.line}"
                raise NotEstablishedError(f"a value that threads exchange may be loaded after the store: {lines}")


def _places(access: Access, given: Mapping[str, View]) -> Places:
    """The element of the buffer that each thread accesses, in the order of the threads."""
    if access.places is None:
        raise NotEstablishedError(f"an index that cannot be read, of a buffer that is stored to: {access.line}")
    grid = tuple(1 if access.once and axis in REDUCED else size for axis, size in zip(AXES, access.shape, strict=True))
    return np.broadcast_to(access.places, grid).ravel() + given[access.pointer].offset


def _by_the_same_threads(store: Access, written: Places, load: Access, loaded: Places) -> bool:
    """Whether each element that is stored is loaded by the thread that stores it, and by no other."""
    if (store.branch, store.shape, store.once) != (load.branch, load.shape, load.once):
        return False  # other branches are other threads; what is stored after a reduction many threads have loaded
    # Each thread stores one element, and loads one. So it must be the same wherever it is one that any thread stores.
    touched = np.isin(loaded, written)
    return bool((loaded[touched] == written[touched]).all())


def _within_programs(store: Access, load: Access, given: Mapping[str, View]) -> bool:
    """Whether what is stored after a reduction is loaded by those threads alone that reduced for it: they are of one program."""
    by_all = replace(store, once=False)
    return _by_the_same_threads(by_all, _places(by_all, given), load, _places(load, given))
