"""The rooms of the parity kit, and who imports whom: no files import one another in a circle, and no import runs back up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

import loss_balancers.parity

ROOT = Path(__file__).parents[2]
#: The folders of the project that have packages, and the packages.
PROJECT = ("spec", "torch_impl", "jax_impl", "keras_impl", "parity_tests", ".")
PACKAGES = ("loss_balancers", "loss_balancers_pytest", "gpu_kit")
KIT, AUDIT = "loss_balancers.parity", "loss_balancers.audit"
#: The rooms of the audit, and what each may import beside itself.
AUDIT_ROOMS: dict[str, set[str]] = {
    "expressions": set(),
    "prescribed": {"expressions"},
    "dumps": {"expressions"},
    "compilers": {"expressions", "prescribed", "dumps"},
    "run": {"expressions", "prescribed", "compilers"},
    "page": set(),
    "__main__": {"expressions", "prescribed", "compilers", "run", "page"},
    "": {"expressions", "compilers", "run"},  # the package's own file
}
#: These load what a user asks for when it is asked for, so that what they import late may be anything.
DOORS = (KIT, f"{KIT}.cli")
#: By file, the files that it imports; all by their names with dots.
Imports = Mapping[str, set[str]]


def _order(text: str) -> dict[str, int]:
    """The place of each room in the list that the docstring of the kit has: a line is one place."""
    (listed,) = re.findall(r"^Its rooms,.*?\n\n((?:- `.*\n)+)", text, re.MULTILINE)
    return {
        room: place for place, line in enumerate(listed.splitlines()) for room in re.findall(r"`(\w+)`", line.partition(": ")[0])
    }


ROOMS = _order(loss_balancers.parity.__doc__ or "")


def _sources() -> dict[str, str]:
    """The text of each file of the kit and of the audit."""
    folders = {name: Path(str(spec.origin)).parent for name in (KIT, AUDIT) if (spec := find_spec(name)) is not None}
    return {
        ".".join([name, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): file.read_text("utf-8")
        for name, folder in folders.items()
        for file in folder.rglob("*.py")
    }


def _project() -> dict[str, str]:
    """The text of each file of the library and of the GPU kit."""
    return {
        ".".join(file.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): file.read_text("utf-8")
        for folder in PROJECT
        for package in PACKAGES
        for file in (ROOT / folder / package).rglob("*.py")
    }


def _imports(sources: Mapping[str, str]) -> Imports:
    """Who imports whom, wherever the import stands: within a function too, and where a type checker alone reads it."""
    return {name: set(_imported(name, sources)) - {name} for name in sources}


def _imported(name: str, sources: Mapping[str, str]) -> Iterator[str]:
    tree = ast.parse(sources[name])
    for node in tree.body if name in DOORS else ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import, which this test does not read"
            # A name is a file of the package, or else it comes from the package's own file.
            wholes = [f"{node.module}.{one}" for one in names]
            names = [whole if whole in sources else str(node.module) for whole in wholes]
        yield from (one for one in names if one in sources)


def _circles(imports: Imports) -> list[list[str]]:
    """Files that import one another, straight or through others."""
    reached = {name: _reached(imports, name) for name in imports}
    circles = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in imports}
    return [list(circle) for circle in sorted(circles) if circle]


def _reached(imports: Imports, start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


def _back_up(imports: Imports) -> list[str]:
    """Imports from a room that stands later in the order."""
    return sorted(f"{name} imports {other}" for name, others in imports.items() for other in others if _place(other) > _place(name))


def _place(name: str) -> int:
    """The kit's own file stands above all. The audit is beside the other rooms: it builds on them, and only the doors open it."""
    if name.startswith(AUDIT):
        return ROOMS["cli"]
    return len(ROOMS) if name == KIT else ROOMS[name.removeprefix(f"{KIT}.").partition(".")[0]]


def test_no_files_import_one_another_in_a_circle() -> None:
    assert _circles(_imports(_sources())) == []


def test_no_files_of_the_project_import_one_another_in_a_circle() -> None:
    sources = _project()
    assert _circles(_imports(sources)) == []
    assert sum(map(len, _imports(sources).values())) > 500
    sources["gpu_kit.jobs"] += "\nfrom gpu_kit.lanes import run\n"  # which imports what `jobs` has
    (circle,) = _circles(_imports(sources))
    assert circle == ["gpu_kit.jobs", "gpu_kit.lanes"]


def test_no_import_runs_back_up_the_order_of_the_rooms() -> None:
    assert _back_up(_imports(_sources())) == []


def test_every_room_of_the_list_is_there_and_is_read() -> None:
    imports = _imports(_sources())
    there = {name.removeprefix(f"{KIT}.").partition(".")[0] for name in imports if name.startswith(f"{KIT}.")}
    assert there == set(ROOMS)
    assert {"lanes.in_torch", "lanes.in_jax"} <= {one.removeprefix(f"{KIT}.") for one in imports[f"{KIT}.lanes.known"]}
    assert sum(map(len, imports.values())) > 100


def _outside_their_rooms(imports: Imports) -> list[str]:
    """Imports within the audit that its rooms may not have."""
    return sorted(
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in others
        if name.startswith(AUDIT) and other.startswith(AUDIT)
        if _audit_room(other) not in {_audit_room(name), *AUDIT_ROOMS[_audit_room(name)]}
    )


def _audit_room(name: str) -> str:
    return name.removeprefix(AUDIT).removeprefix(".").partition(".")[0]


def test_the_rooms_of_the_audit_import_only_what_stands_before_them() -> None:
    imports = _imports(_sources())
    assert {_audit_room(name) for name in imports if name.startswith(AUDIT)} == AUDIT_ROOMS.keys()
    assert _outside_their_rooms(imports) == []


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("expressions.dag", f"from {AUDIT}.dumps import ptx"),
        ("dumps.ptx", f"def f():\n    from {AUDIT}.run import audit_target"),
        ("compilers.worker", f"import {AUDIT}.page"),
        ("prescribed.cases", f"from {AUDIT}.compilers.targets import Target"),
    ],
)
def test_a_planted_import_from_a_later_room_of_the_audit_is_found(file: str, planted: str) -> None:
    sources = _sources()
    sources[f"{AUDIT}.{file}"] += f"\n{planted}\n"
    (found,) = _outside_their_rooms(_imports(sources))
    assert found.startswith(f"{AUDIT}.{file} imports {AUDIT}.")


@pytest.mark.parametrize(
    "planted",
    [
        f"from {KIT}.lanes.known import known_lanes",
        f"from {KIT}.lanes import known",
        f"import {KIT}.lanes.known",
        f"def f():\n    from {KIT}.lanes.known import known_lanes",
        f"if TYPE_CHECKING:\n    from {KIT}.lanes.known import known_lanes",
    ],
    ids=["a name", "a file", "whole", "in a function", "for types"],
)
def test_a_planted_circle_is_found(planted: str) -> None:
    sources = _sources()
    sources[f"{KIT}.lanes.lane"] += f"\n{planted}\n"
    (circle,) = _circles(_imports(sources))
    assert {f"{KIT}.lanes.lane", f"{KIT}.lanes.known", f"{KIT}.lanes.in_torch"} <= set(circle)
    assert _back_up(_imports(sources)) == []  # it stays within a room


@pytest.mark.parametrize(
    ("room", "planted"),
    [
        ("golden.vectors", f"from {KIT}.lanes.lane import Lane"),
        ("report.tables", f"def f():\n    from {KIT}.twins.run import run_twin"),
        ("bits", f"from {KIT}.golden.result import Bits"),
        ("run", f"from {KIT}.cli import app"),
        ("files", f"from {KIT} import assert_same_bits"),
    ],
)
def test_a_planted_import_that_runs_back_up_is_found(room: str, planted: str) -> None:
    sources = _sources()
    sources[f"{KIT}.{room}"] += f"\n{planted}\n"
    (found,) = _back_up(_imports(sources))
    assert found.startswith(f"{KIT}.{room} imports {KIT}")
