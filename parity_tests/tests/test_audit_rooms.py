"""The rooms of the audit: each imports only what stands before it, and no module of it is in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import loss_balancers.audit
from loss_balancers.audit.expressions.dag import NotEstablishedError

PACKAGE = "loss_balancers.audit"
FOLDER = Path(loss_balancers.audit.__file__).parent
#: What each may import beside itself.
ALLOWED = {
    "expressions": set(),
    "prescribed": {"expressions"},
    "dumps": {"expressions"},
    "compilers": {"expressions", "prescribed", "dumps"},
    "run": {"expressions", "prescribed", "compilers"},
    "page": set(),
    "__main__": {"expressions", "prescribed", "compilers", "run", "page"},
    "__init__": {"expressions", "compilers", "run"},
}


def imported(file: Path) -> set[str]:
    """The modules of the audit that a file imports, in functions too, by their names after the package's."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and f"{node.module}.".startswith(f"{PACKAGE}."):
            inner = node.module.removeprefix(PACKAGE).removeprefix(".")
            whole = (FOLDER / inner.replace(".", "/")).is_dir()
            found |= {".".join(filter(None, (inner, alias.name))) for alias in node.names} if whole else {inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found


def modules() -> dict[str, set[str]]:
    """What each module imports."""
    files = [file for file in FOLDER.rglob("*.py") if "__pycache__" not in file.parts]
    return {".".join(file.relative_to(FOLDER).with_suffix("").parts): imported(file) for file in files}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_stands_before_it(room):
    inside = {name: found for name, found in modules().items() if name.partition(".")[0] == room}
    assert inside
    for name, found in inside.items():
        assert {each.partition(".")[0] for each in found} - {room} <= ALLOWED[room], name


def test_every_room_is_known():
    assert {name.partition(".")[0] for name in modules()} == ALLOWED.keys()


def test_no_module_of_the_audit_is_in_a_circle():
    order = list(TopologicalSorter(modules()).static_order())
    assert order.index("expressions.words") < order.index("expressions.dag") < order.index("dumps.ptx") < order.index("run")


def test_imports_are_found_in_each_form(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from loss_balancers.audit import run\n"
        "def f():\n    from loss_balancers.audit.dumps import cpu, ptx\n"
        "from loss_balancers.audit.expressions.dag import Dag\n"
        "import loss_balancers.audit.page\nimport loss_balancers.parity\n"
    )
    assert imported(file) == {"run", "dumps.cpu", "dumps.ptx", "expressions.dag", "page"}
    assert NotEstablishedError.__module__ == f"{PACKAGE}.expressions.dag"
