"""The kit where one framework is installed and the other is not, or is too old, and none of what only others need."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loss_balancers.parity.lanes import jax_modes, torch_modes
from loss_balancers.parity.lanes.absent import KNOWN_DEVICES
from loss_balancers.parity.lanes.known import MODES

ROOT = Path(__file__).parents[2]
MAIN = "from loss_balancers.parity.cli import main; main()"
#: The command line with a few of the vectors: a certificate is of all balancers, and of all vectors that there are.
WITH_FEW = f"""
import sys
sys.path.insert(0, {str(ROOT / "parity_tests" / "helpers")!r})
from certificates import few_vectors
import loss_balancers.parity.golden.vectors as vectors
vectors.installed_vectors = few_vectors
{MAIN}
"""
NOT_NEEDED = ("jsonschema", "jinja2", "hypothesis", "pytest")
TORCH, JAX = ("torch",), ("jax", "jaxlib", "flax", "optax", "ml_dtypes")
#: By the framework that is there: what is missing, a lane, and what is said of the other framework.
ALONE = {
    "torch": (
        JAX,
        "torch-cpu-eager",
        "absent: every lane of jax (`loss_balancers.jax` needs JAX and Flax, which is not",
    ),
    "jax": (TORCH, "jax-cpu-jit", "absent: every lane of torch (`loss_balancers.torch` needs PyTorch, which is not"),
}


@pytest.fixture
def run(tmp_path: Path):
    """Runs code where some packages cannot be imported, nor in the processes that it starts."""

    def run(
        code: str, *arguments: str, without: tuple[str, ...], not_needed: tuple[str, ...] = NOT_NEEDED
    ) -> subprocess.CompletedProcess[str]:
        for name in (*without, *not_needed):
            (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n", "utf-8")
        command = [sys.executable, "-c", code, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)

    return run


@pytest.mark.parametrize("framework", ALONE)
def test_parity_runs_and_names_what_is_missing(run, tmp_path: Path, framework: str) -> None:
    without, lane, words = ALONE[framework]
    files = tmp_path / "certificate.json", tmp_path / "matrix.json"
    written = run(WITH_FEW, "parity", "--lane", lane, "--certificate", str(files[0]), "--json", str(files[1]), without=without)
    assert written.returncode == 0, written.stderr
    assert words in written.stdout
    matrix = json.loads(files[1].read_text("utf-8"))
    assert matrix["identical"] == matrix["results"] > 0
    assert {cell["label"] for cell in matrix["cells"]} == set(matrix["labels"])  # bfloat16 among them
    (host,) = matrix["certificates"]
    assert {name for name, version in host["frameworks"].items() if version == "absent"} <= {*TORCH, *JAX}
    other = "torch." if framework == "jax" else "jax."
    assert {value for name, value in host["flags"].items() if name.startswith(other)} == {None}
    merged = subprocess.run([sys.executable, "-c", WITH_FEW, "merge", str(files[0])], capture_output=True, text=True, check=False)
    assert merged.returncode == 0, merged.stderr  # with the schema


@pytest.mark.parametrize("framework", ALONE)
def test_lanes_lists_those_of_the_other_with_the_reason(run, tmp_path: Path, framework: str) -> None:
    file = tmp_path / "lanes.json"
    result = run(MAIN, "lanes", "--json", str(file), without=ALONE[framework][0])
    assert result.returncode == 0, result.stderr
    lanes = json.loads(file.read_text("utf-8"))["lanes"]
    other = [lane for lane in lanes if lane["framework"] != framework]
    assert len(other) == len(KNOWN_DEVICES) * len(MODES[other[0]["framework"]])
    assert {lane["present"] for lane in other} == {False}
    assert all("which is not installed. Install loss-balancers with its extra `[" in lane["why_absent"] for lane in other)
    assert any(lane["present"] for lane in lanes)


@pytest.mark.parametrize("framework", ALONE)
def test_a_lane_of_the_other_that_is_asked_for_cannot_run(run, framework: str) -> None:
    (other,) = ALONE.keys() - {framework}
    result = run(MAIN, "parity", "--lane", ALONE[other][1], without=ALONE[framework][0])
    assert result.returncode == 2
    assert f"--lane: {ALONE[other][1]} cannot run on this machine: `loss_balancers.{other}` needs" in result.stderr


def test_a_framework_that_is_too_old_is_absent_too(run, tmp_path: Path) -> None:
    (tmp_path / "flax.py").write_text("__version__ = '0.9.0'\n", "utf-8")
    result = run(MAIN, "parity", "--lane", "jax-cpu-eager", without=())
    assert result.returncode == 2
    assert (
        "jax-cpu-eager cannot run on this machine: `loss_balancers.jax` needs flax 0.10.7 or newer. Found flax 0.9.0."
        in result.stderr
    )


@pytest.mark.parametrize(("framework", "error"), [("torch", "ValueError"), ("jax", "ImportError")])
def test_a_framework_that_cannot_be_imported_is_absent_too(run, tmp_path: Path, framework: str, error: str) -> None:
    """As PyTorch for CUDA without NVIDIA's libraries."""
    (other,) = ALONE.keys() - {framework}
    (tmp_path / f"{other}.py").write_text(f"raise {error}('libcudart.so.*[0-9] not found in the system path')\n", "utf-8")
    result = run(MAIN, "lanes", without=())
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert f"{other}-* absent: `loss_balancers.{other}` cannot be imported: {error}: libcudart.so.*[0-9] not found" in words
    assert f"{ALONE[framework][1]} present" in words


def test_without_any_framework_nothing_is_compared(run) -> None:
    result = run(MAIN, "parity", without=TORCH + JAX)
    assert result.returncode == 2
    assert "no lane can run on this machine: every lane of torch (`loss_balancers.torch` needs PyTorch" in result.stderr


@pytest.mark.parametrize("framework", ALONE)
def test_tests_run_and_those_of_the_other_are_skipped_with_the_reason(run, framework: str) -> None:
    (other,) = ALONE.keys() - {framework}
    folders = [str(ROOT / folder) for folder in ("parity_tests/tests/each_framework", f"{framework}_impl/tests")]
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    asked = ("-q", "-rs", "-k", "test_default", "-c", str(ROOT / "pyproject.toml"))
    result = run(code, *asked, *folders, without=ALONE[framework][0], not_needed=())
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^1 passed, 1 skipped, \d+ deselected", result.stdout, re.MULTILINE), result.stdout
    assert f"`loss_balancers.{other}` needs {other}, which is not installed" in result.stdout


BITS = """
import torch
from loss_balancers.parity.bits import assert_same_bits
one, nan = torch.tensor([1.0, -0.0], dtype=torch.bfloat16), torch.tensor([0x7FC0, -1], dtype=torch.int16).view(torch.bfloat16)
assert_same_bits(one.requires_grad_(), one.detach().clone())
assert_same_bits(nan, nan.flip(0), nan="class")
for actual, expected, by in (
    (one, torch.tensor([1.0, 0.0], dtype=torch.bfloat16), "class"),
    (one, torch.tensor([1.0078125, -0.0], dtype=torch.bfloat16), "bits"),
    (one, one.float(), "bits"),
    (one, one.half(), "bits"),
    (nan, nan.flip(0), "bits"),
    (nan, one, "class"),
    (one, one[:1], "bits"),
):
    try:
        assert_same_bits(actual, expected, nan=by)
    except AssertionError as error:
        print(error)
    else:
        print("not found")
"""


def test_bits_are_compared_without_ml_dtypes(run) -> None:
    result = run(BITS, without=JAX)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [any(word in line for word in ("ulp", "NaN", "dtypes differ", "shapes differ")) for line in lines] == [True] * 7, lines
    assert "(bf16, 1 ulp)" in lines[1]


def test_the_modes_are_those_of_the_lanes() -> None:
    assert {"torch": tuple(torch_modes.MODES), "jax": tuple(jax_modes.MODES)} == MODES
