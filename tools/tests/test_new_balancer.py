"""A trial balancer, from the skeleton, in a copy of this project: what it takes, that it works, and that what it lacks is said."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import check_balancer
import new_balancer
import pytest
import typer

from loss_balancers.parity import find_lanes
from loss_balancers.spec.registry import SETTINGS, stem

ROOT = Path(new_balancer.__file__).parents[1]
COPIED = ("spec", "torch_impl", "jax_impl", "parity_tests", "tools", "docs", "README.md")
BALANCER = "TrialLossBalancer"
#: What the skeleton cannot write: a plot, words about the method, and tests of what is wrong with its arguments.
WORDS = [
    f"a plot of its weights, by `make gallery BALANCER={BALANCER}`, and a link to it in docs/balancers.md",
    "clauses in docs/spec",
    "a mention in README.md",
    "tests of its errors in parity_tests/tests/test_errors.py",
    "tests of its settings in spec/tests",
    "an audit of what its compiled code overwrites",
]
#: Says what balancers lack, each time that it reads a line. The frameworks are imported once; the project, of which a part may be
#: missing by then, by a fork, as in a process of its own.
LACKS = """
import json, os, sys, traceback
import flax.nnx, jax, optax, torch
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            from completeness import everything
            print(json.dumps(everything()), flush=True)
        except BaseException:
            print(json.dumps(traceback.format_exc()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a new balancer in it."""
    root = tmp_path_factory.mktemp("trial")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "audit_tests", "evidence"))
        else:
            shutil.copy(source, root / name)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    run(root, ["tools/new_balancer.py", "trial"])
    run(root, ["-m", "loss_balancers.spec.golden"])
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    written = sorted(path.relative_to(root).as_posix() for path in after.keys() - before.keys())
    changed = sorted(path.relative_to(root).as_posix() for path in before if after[path] != before[path])
    (root / "written.json").write_text(json.dumps([written, changed]))
    return root


def in_copy(root: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The command of Python and where it runs, for `subprocess`."""
    parts = [root / name for name in ("spec", "torch_impl", "jax_impl", "parity_tests", "parity_tests/helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, parts))}
    return {"args": [sys.executable, "-W", "ignore", *arguments], "cwd": root, "env": environment, "text": True}


def run(root: Path, arguments: Sequence[str]) -> str:
    done = subprocess.run(**in_copy(root, arguments), capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lacking(trial: Path) -> Iterator[Callable[[], list[str]]]:
    """What the trial balancer lacks now."""
    with subprocess.Popen(**in_copy(trial, ["-c", LACKS]), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        asks, answers = process.stdin, process.stdout
        assert asks is not None
        assert answers is not None

        def lacking() -> list[str]:
            print(file=asks, flush=True)
            found = json.loads(answers.readline())
            assert isinstance(found, dict), found
            assert found.keys() <= {BALANCER}
            return found.get(BALANCER, [])

        yield lacking
        asks.close()


def test_it_takes_five_files_and_a_line_wherever_balancers_are_listed(trial: Path) -> None:
    written, changed = json.loads((trial / "written.json").read_text())
    spec = "spec/loss_balancers/spec"
    assert written == [
        "jax_impl/loss_balancers/jax/trial.py",
        f"{spec}/golden/trial.json",
        f"{spec}/golden/trial.py",
        f"{spec}/trial.py",
        "torch_impl/loss_balancers/torch/trial.py",
    ]
    exports = [f"{spec}/__init__.py", *(f"{part}_impl/loss_balancers/{part}/__init__.py" for part in ("jax", "torch"))]
    assert changed == sorted(["docs/balancers.md", f"{spec}/registry.py", *exports])
    for path in changed:
        before, after = ((root / path).read_text().splitlines() for root in (ROOT, trial))
        more = [line for line in after if line not in before]
        assert [line for line in after if line not in more] == before
        assert len(more) == (1 if path.startswith("docs") else 2), more  # an import, and the line


def test_it_has_the_bits_of_its_reference_on_every_lane(trial: Path) -> None:
    file = trial / "matrix.json"
    program = "from loss_balancers.parity.cli import main; main()"
    run(trial, ["-c", program, "parity", "--balancer", BALANCER, "--label", "f32", "--json", str(file)])
    matrix = json.loads(file.read_text())
    here = [lane for lane in find_lanes() if lane.why_absent() is None and lane.device == "cpu"]
    assert {lane.name for lane in here} <= {f"{lane['framework']}-{lane['device']}-{lane['mode']}" for lane in matrix["lanes"]}
    assert matrix["results"] == matrix["identical"] == 32 * len(matrix["lanes"])


def test_what_it_lacks_is_said_and_nothing_else(lacking: Callable[[], list[str]]) -> None:
    assert lacking() == WORDS


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("torch_impl/loss_balancers/torch/trial.py", ["a class in loss_balancers.torch"]),
        ("jax_impl/loss_balancers/jax/trial.py", ["a class in loss_balancers.jax"]),
        ("spec/loss_balancers/spec/golden/trial.py", ["spec/golden/trial.py, which draws its vectors"]),
        ("spec/loss_balancers/spec/golden/trial.json", ["spec/golden/trial.json, which `make golden` writes"]),
        ("docs/balancers.md", ["a row in docs/balancers.md"]),
    ],
    ids=["torch", "jax", "draws", "vectors", "row"],
)
def test_a_part_that_is_taken_away_is_missed(trial: Path, lacking: Callable[[], list[str]], taken: str, words: list[str]) -> None:
    path = trial / taken
    init = path.with_name("__init__.py")
    kept = {path: path.read_text()} | ({init: init.read_text()} if init.exists() else {})
    try:
        if path.suffix == ".md":
            path.write_text("".join(line for line in kept[path].splitlines(keepends=True) if BALANCER not in line))
        else:
            path.unlink()
        if init.exists():
            init.write_text("".join(line for line in kept[init].splitlines(keepends=True) if BALANCER not in line))
        assert sorted(lacking()) == sorted([*words, *WORDS])
    finally:
        for file, text in kept.items():
            file.write_text(text)


@pytest.mark.parametrize(
    ("name", "balancer", "files"),
    [
        ("dwa", "DwaLossBalancer", "dwa"),
        ("DWA", "DWALossBalancer", "dwa"),
        ("soft_adapt", "SoftAdaptLossBalancer", "soft_adapt"),
        ("SoftAdaptLossBalancer", "SoftAdaptLossBalancer", "soft_adapt"),
    ],
)
def test_a_name_gives_class_and_files(name: str, balancer: str, files: str) -> None:
    assert new_balancer.class_name(name) == balancer
    assert stem(balancer) == files


@pytest.mark.parametrize("name", ["", "1st", "a-b", "no such", "ema_normalized", "../x"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="NAME"):
        new_balancer.written(name, ROOT)


@pytest.mark.parametrize("balancer", SETTINGS)
def test_a_check_finds_its_balancer_by_each_name(balancer: str) -> None:
    for name in (balancer, balancer.removesuffix("LossBalancer"), stem(balancer)):
        assert check_balancer.balancer_of(name) == balancer
    assert check_balancer.is_current(balancer)


def test_a_check_of_no_balancer_says_which_there_are() -> None:
    with pytest.raises(
        typer.BadParameter,
        match=r"'not_there' is not a balancer of spec/registry\.py, which has static, scheduled, .*make new NAME=not_there",
    ):
        check_balancer.balancer_of("not_there")


def test_a_check_runs_the_rows_of_its_balancer_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('kind', ['ema', 'ema-lagged', 'schema', 'scheduled'])\n"
        "def test_example(kind): assert kind in ('ema', 'ema-lagged')\n"
        "@pytest.mark.parametrize('name', ['EMANormalizedLossBalancer', 'StaticLossBalancer'])\n"
        "def test_class(name): assert name.startswith('EMA')\n"
        "def test_none(): raise AssertionError\n"
    )
    (tmp_path / "test_compiled.py").write_text("raise AssertionError('is left to the lanes')\n")
    program = (
        "import sys, pytest, check_balancer\n"
        "plugin = check_balancer.OfBalancer('EMANormalizedLossBalancer')\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null', sys.argv[1]], plugins=[plugin]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 4 deselected" in done.stdout
