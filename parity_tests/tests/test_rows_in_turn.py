"""The rows of a test that compiles much are run in turn (`conftest.py`, docs/decisions/0016)."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.in_turn(3)
@pytest.mark.parametrize("mode", ["eager", "jit", "scan", "step"])
@pytest.mark.parametrize("balancer", ["a", "b", "c", "d", "e"])
def test_both(balancer, mode): pass

@pytest.mark.in_turn(3)
@pytest.mark.parametrize("balancer", ["a", "b", "c", "d", "e"])
def test_one(balancer): pass

@pytest.mark.in_turn(3)
@pytest.mark.parametrize(("balancer", "mode"), list(zip("abcdefghi", 3 * ["eager", "jit", "scan"])))
def test_together(balancer, mode): pass

@pytest.mark.in_turn(2)
@pytest.mark.parametrize("format", ["f32"])
def test_alone(format): pass

@pytest.mark.in_turn(2)
def test_without_rows(): pass

@pytest.mark.parametrize("balancer", ["a", "b", "c", "d", "e"])
def test_unmarked(balancer): pass
"""


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[str]]:
    """The rows that pytest would run."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS)

    def rows(*options: str, file: str = "test_it.py") -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-c", "/dev/null", *options, file]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]

    return rows


def test_each_value_has_its_turn_and_unmarked_tests_have_all_rows(rows: Callable[..., list[str]]) -> None:
    run = rows()
    both = [row[len("test_both[") : -1].split("-") for row in run if row.startswith("test_both")]
    assert len(both) in (6, 7)  # of 20
    assert {value for row in both for value in row} == {*"abcde", "eager", "jit", "scan", "step"}
    assert len([row for row in run if row.startswith("test_one")]) in (1, 2)  # of 5
    together = [row[len("test_together[") : -1].split("-") for row in run if row.startswith("test_together")]
    assert {mode for _, mode in together} == {"eager", "jit", "scan"}  # though they vary with the balancer
    assert len(together) <= 5
    assert {"test_alone[f32]", "test_without_rows"} <= set(run)
    assert len([row for row in run if row.startswith("test_unmarked")]) == 5
    assert run == rows()


def test_every_row_is_run_on_demand(rows: Callable[..., list[str]]) -> None:
    every = rows("--every-row")
    assert len(every) == 41
    left_out = sorted(set(every) - set(rows()))[0]
    assert rows(file=f"test_it.py::{left_out}") == [left_out]
    assert len(rows("-k", "test_one")) == 5


def test_make_test_all_runs_every_row(tmp_path: Path) -> None:
    """With stand-ins for what it calls, which write down their arguments."""
    for name in ("python", "pyright", "ruff"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>"{tmp_path}/called"\n', "utf-8")
        program.chmod(0o755)
    (tmp_path / ".installed").touch()
    for target in ("test", "test-all"):
        (tmp_path / "called").unlink(missing_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = ["make", "--no-print-directory", target, f"VENV={tmp_path}"]
        subprocess.run(command, cwd=ROOT, env=own, check=True, capture_output=True, timeout=600)
        called = [line for line in (tmp_path / "called").read_text("utf-8").splitlines() if "pytest" in line]
        assert len(called) == (2 if target == "test-all" else 1)  # the tests of the tools are a command of their own
        assert all(("--every-row" in line.split()) == (target == "test-all") for line in called), called
