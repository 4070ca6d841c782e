"""What a kernel that Inductor wrote in Triton loads and stores: which elements of which argument, and in what order.

Kernels are read as text. Sizes are numbers there, so every index is computed for every element of the kernel's range, and no
algebra is needed. A statement that is not known raises; an index that is not known has no places.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loss_balancers.audit.expressions.dag import NotEstablishedError

Places = np.ndarray[Any, np.dtype[np.int64]]
#: The axes of a kernel in the order of their dimensions: those of the grid, then those that are reduced.
GRID, REDUCED = ("z", "y", "x"), ("r0_", "r1_")
AXES = (*GRID, *REDUCED)
MOST_ELEMENTS = 1 << 20

INDEX = re.compile(r"^([xyz]|r\d_)index$")
OFFSET = re.compile(r"^(tl\.program_id\(\d\)|pid_offset) \* [XYZ]BLOCK$")
RANGE = re.compile(r"^(?:[xyz]offset \+ )?tl\.arange\(0, (?:[XYZ]|R\d_)BLOCK\)(?:\[[^\]]*\])?$")
#: What computes each element from the same elements of its operands. All else may take values from other threads.
ELEMENTWISE = re.compile(
    r"^(tl_math\.\w+|libdevice\.\w+|tl\.(where|full|broadcast_to|load|program_id|arange|cdiv)|triton_helpers\.(minimum|maximum))$"
)
METHODS = ("to", "broadcast_to")
OPERATORS = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.remainder,
}


@dataclass(frozen=True)
class Access:
    """One load or store.

    Args:
        stores: Whether it is a store.
        pointer: The parameter.
        line: The source.
        branch: Which branch of the kernel it is in.
        shape: How many elements the branch has along each axis.
        places: Which element of the argument each of them accesses, of a shape that broadcasts to ``shape``; None if unknown.
        once: Whether a reduced axis has been summed up: one access for all of its elements.
        exchanges: Of a store: the exchanges between threads that its value depends on. Of a load: those that it goes into.
    """

    stores: bool
    pointer: str
    line: str
    branch: int
    shape: tuple[int, ...]
    places: Places | None
    once: bool
    exchanges: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Kernel:
    """A kernel: its parameters that a call gives, in order, with their types, and its accesses in program order."""

    parameters: dict[str, str]
    accesses: list[Access]


def read_kernel(source: str) -> Kernel:
    """Reads the source of a kernel.

    Raises:
        NotEstablishedError: A statement cannot be read, or a pointer is used otherwise than in a plain load or store.
    """
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    if len(functions) != 1:
        raise NotEstablishedError(f"the source of a kernel has {len(functions)} functions, not one")
    (function,) = functions
    signature, overlaps = _meta(function)
    if overlaps:
        raise NotEstablishedError(f"the kernel {function.name} may start before the one before it has ended (launch_pdl)")
    arguments = [each.arg for each in function.args.args]
    if not set(signature) <= set(arguments):
        raise NotEstablishedError(f"the signature of {function.name} names other parameters than the function: {signature}")
    reader = _Reader({name for name, kind in signature.items() if kind.startswith("*")})
    reader.block(function.body, _Scope())
    return Kernel({name: signature[name] for name in arguments if name in signature}, reader.accesses)


def _meta(function: ast.FunctionDef) -> tuple[dict[str, str], bool]:
    """From the decorators: the type of each parameter, and whether launches may overlap."""
    for decorator in function.decorator_list:
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
            if keyword.arg == "triton_meta" and isinstance(keyword.value, ast.Dict):
                keys = [each and ast.literal_eval(each) for each in keyword.value.keys]
                meta = dict(zip(keys, keyword.value.values, strict=True))
                if "signature" in meta:
                    overlap = meta.get("launch_pdl")
                    return ast.literal_eval(meta["signature"]), overlap is not None and ast.literal_eval(overlap) is not False
    raise NotEstablishedError(f"the kernel {function.name} has no signature")


@dataclass
class _Scope:
    """What is known in a branch: integers and index arrays by name, and what each name was computed from."""

    branch: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    values: dict[str, Places] = field(default_factory=dict)
    masks: dict[str, bool] = field(default_factory=dict)  #: whether all threads of the block are within the range
    loads: dict[str, set[int]] = field(default_factory=dict)
    exchanges: dict[str, set[int]] = field(default_factory=dict)

    def inner(self, branch: int) -> _Scope:
        """A branch begins with what is known before it."""
        return _Scope(branch, {**self.sizes}, {**self.values}, {**self.masks}, {**self.loads}, {**self.exchanges})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.get(axis, 1) for axis in AXES)


class _Reader:
    """Goes through a kernel's statements."""

    def __init__(self, pointers: set[str]) -> None:
        self.accesses: list[Access] = []
        self._pointers = pointers
        self._branches = 0
        self._exchanges = 0

    def block(self, statements: Iterable[ast.stmt], scope: _Scope) -> None:
        for statement in statements:
            if isinstance(statement, ast.If):
                self._pointers_only_in(statement.test, [])
                # Whatever the test: two branches are taken as two threads, which is the worst.
                for body in (statement.body, statement.orelse):
                    self._branches += 1
                    self.block(body, scope.inner(self._branches))
            elif isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
                self._assign(statement.targets[0].id, statement.value, scope)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
                self._assign(statement.target.id, statement.value, scope)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                self._call(statement.value, scope)
            elif not isinstance(statement, ast.Pass):
                raise NotEstablishedError(f"a statement of a kernel that cannot be read: {_line(statement)}")

    def _assign(self, name: str, value: ast.expr, scope: _Scope) -> None:
        text = ast.unparse(value)
        axis = name.removesuffix("index")
        if INDEX.match(name):
            numel = scope.values.get(f"{axis}numel")
            if axis not in AXES or not RANGE.match(text) or numel is None or numel.ndim:
                raise NotEstablishedError(f"a range of a kernel that cannot be read: {name} = {text}")
            scope.sizes[axis] = int(numel)
            if np.prod(scope.shape) > MOST_ELEMENTS:
                raise NotEstablishedError(f"a kernel of more than {MOST_ELEMENTS} elements: {name} = {text}")
            scope.values[name] = np.arange(int(numel)).reshape([-1 if each == axis else 1 for each in AXES])
        elif re.match(r"^[xyz]offset$", name):
            if not OFFSET.match(text):
                raise NotEstablishedError(f"an offset of a kernel that cannot be read: {name} = {text}")
        elif re.match(r"^([xyz]|r\d_)mask$", name):
            axis = name.removesuffix("mask")
            if text != f"{axis}index < {axis}numel" and not re.match(r"^tl\.full\(\[[\w, ]*\], True, tl\.int1\)(\[.*\])?$", text):
                raise NotEstablishedError(f"a mask of a kernel that cannot be read: {name} = {text}")
            scope.masks[name] = text.startswith("tl.full")
        else:
            scope.values.pop(name, None)
            if (known := _value(value, scope)) is not None:
                scope.values[name] = known
        loads, exchanges = self._loaded(value, scope), self._of(value, scope.exchanges)
        loads |= self._of(value, scope.loads)
        if not _elementwise(value):
            self._exchanges += 1
            exchanges = exchanges | {self._exchanges}
            for load in loads:
                self.accesses[load].exchanges.add(self._exchanges)
        scope.loads[name], scope.exchanges[name] = loads, exchanges

    def _loaded(self, value: ast.expr, scope: _Scope) -> set[int]:
        """Records the loads in an expression."""
        calls = [node for node in ast.walk(value) if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load"]
        self._pointers_only_in(value, calls)
        numbers = set()
        for call in calls:
            pointer, index = self._address(call)
            numbers.add(len(self.accesses))
            self.accesses.append(Access(False, pointer, _line(call), scope.branch, scope.shape, _value(index, scope), once=False))
        return numbers

    def _call(self, call: ast.Call, scope: _Scope) -> None:
        """A store, or an assertion, which accesses nothing."""
        name = ast.unparse(call.func)
        if name == "tl.device_assert":
            self._pointers_only_in(call, [])
            return
        if name != "tl.store" or len(call.args) not in (2, 3) or not _elementwise(call.args[1]) or not scope.sizes:
            raise NotEstablishedError(f"a call of a kernel that cannot be read: {_line(call)}")
        self._pointers_only_in(call, [call])
        pointer, index = self._address(call)
        mask = call.args[2] if len(call.args) == 3 else next((each.value for each in call.keywords if each.arg == "mask"), None)
        names = {node.id for node in ast.walk(index) if isinstance(node, ast.Name)}
        reduced = any(axis in scope.sizes for axis in REDUCED)
        once = reduced and not any(re.match(r"^(r\d|R\d)", each) for each in names)
        needed = {axis for axis in scope.sizes if not (once and axis in REDUCED)}
        for axis in needed:
            if f"{axis}mask" not in scope.masks or not (scope.masks[f"{axis}mask"] or f"{axis}mask" in _conjuncts(mask)):
                raise NotEstablishedError(f"a store by threads beyond the range {axis}: {_line(call)}")
        exchanges = self._of(call.args[1], scope.exchanges) | (set() if mask is None else self._of(mask, scope.exchanges))
        self.accesses.append(Access(True, pointer, _line(call), scope.branch, scope.shape, _value(index, scope), once, exchanges))

    def _address(self, call: ast.Call) -> tuple[str, ast.expr]:
        address = call.args[0] if call.args else None
        if (
            isinstance(address, ast.BinOp)
            and isinstance(address.op, ast.Add)
            and isinstance(address.left, ast.Name)
            and address.left.id in self._pointers
        ):
            return address.left.id, address.right
        raise NotEstablishedError(f"an address that cannot be read: {_line(call)}")

    def _pointers_only_in(self, expression: ast.expr, calls: list[ast.Call]) -> None:
        """Raises if a pointer is used but for an address of the calls."""
        addresses = [ast.unparse(call.args[0]) for call in calls if call.args]
        used = sum(isinstance(node, ast.Name) and node.id in self._pointers for node in ast.walk(expression))
        if used != len(addresses):
            raise NotEstablishedError(f"a use of a pointer that cannot be read: {_line(expression)}")

    def _of(self, expression: ast.expr, known: dict[str, set[int]]) -> set[int]:
        names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
        return set().union(*(known.get(name, set()) for name in names))


def _value(expression: ast.expr, scope: _Scope) -> Places | None:
    """An integer, or an integer for each element; None if it is not known."""
    if isinstance(expression, ast.Constant):
        return np.asarray(expression.value, np.int64) if type(expression.value) is int else None
    if isinstance(expression, ast.Name):
        return scope.values.get(expression.id)
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        inner = _value(expression.operand, scope)
        return None if inner is None else -inner
    if isinstance(expression, ast.BinOp) and type(expression.op) in OPERATORS:
        left, right = _value(expression.left, scope), _value(expression.right, scope)
        if left is None or right is None:
            return None
        # Triton rounds a quotient to zero, Python down: the same for what is not negative.
        if isinstance(expression.op, (ast.FloorDiv, ast.Mod)) and (np.any(left < 0) or np.any(right <= 0)):
            return None
        return OPERATORS[type(expression.op)](left, right)
    if isinstance(expression, ast.Call):
        text = ast.unparse(expression.func)
        if text == "tl.full":
            return _value(expression.args[1], scope)
        if text == "tl.broadcast_to":
            return _value(expression.args[0], scope)
        if isinstance(expression.func, ast.Attribute) and (
            expression.func.attr == "broadcast_to"
            or (expression.func.attr == "to" and [ast.unparse(each) for each in expression.args] in (["tl.int32"], ["tl.int64"]))
        ):
            return _value(expression.func.value, scope)
    return None


def _elementwise(expression: ast.expr) -> bool:
    """Whether nothing in it can take a value from another thread."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Subscript) and not ast.unparse(node).startswith("tl."):
            return False  # a new axis for a value may move it to other threads; for a range that is made here, it moves nothing
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
            if not (method or ELEMENTWISE.match(ast.unparse(node.func))):
                return False
    return True


def _conjuncts(mask: ast.expr | None) -> Iterator[str]:
    """The names that a mask is the conjunction of, among others."""
    if isinstance(mask, ast.BinOp) and isinstance(mask.op, ast.BitAnd):
        yield from _conjuncts(mask.left)
        yield from _conjuncts(mask.right)
    elif isinstance(mask, ast.Name):
        yield mask.id


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
