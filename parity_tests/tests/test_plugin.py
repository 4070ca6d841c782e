"""The pytest plugin, the example that uses it, and what the guide says of both."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from loss_balancers.parity.cli import app
from loss_balancers.parity.twins.lanes import read_lanes

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "your_twins"
WORKFLOW = EXAMPLE / ".github" / "workflows" / "parity.yml"
HEAVY = {"torch", "jax", "jaxlib", "flax", "numpy", "ml_dtypes", "hypothesis", "typer"}
INI = 'parity_lanes = ["torch-cpu-vmap", "jax-cpu-scan"]'

USES_IT = """
def test_twins(parity):
    parity.assert_twins(lambda loss: loss["a"] * 0.5, lambda loss: loss["a"] * 0.5, cases=[{"a": 3.0}])
    print("lanes", *parity.lanes)
"""


def _pytest(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, in a fresh process that knows nothing of the one that runs this."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**inherited, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# --- what it costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("test", "used"), [("def test(): pass", False), (USES_IT, True)], ids=["unused", "used"])
def test_pytest_loads_nothing_for_who_does_not_use_it(tmp_path: Path, test: str, used: bool) -> None:
    """And the probe sees what is loaded for who does."""
    (tmp_path / "conftest.py").write_text(
        "import json, sys\ndef pytest_unconfigure(): open('modules.json', 'w').write(json.dumps(sorted(sys.modules)))\n"
    )
    (tmp_path / "test_it.py").write_text(test)
    # Other plugins of this environment, which load what they like, stay out.
    run = _pytest(tmp_path, "-q", "-p", "loss_balancers_pytest", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert run.returncode == 0, run.stdout + run.stderr
    loaded = set(json.loads((tmp_path / "modules.json").read_text()))
    assert "loss_balancers_pytest" in loaded
    ours = {name for name in loaded if name.startswith("loss_balancers.")}
    if used:
        assert loaded >= {"torch", "jax", "numpy", "loss_balancers.parity.twins"}
    else:
        assert not loaded & HEAVY
        assert not ours


def test_the_package_loads_nothing_until_a_name_is_used() -> None:
    probe = (
        "import sys, loss_balancers.parity as p\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), 'assert_twins' in dir(p))\n"
        "framework = {'run_in_jax', 'run_in_torch'}  # the modes of one\n"
        "assert all(getattr(p, name) for name in p.__all__ if name not in framework) and framework < {*p.__all__}\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, p.__all__ == sorted(p.__all__))\n"
        "p.assert_twin"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["[] True", "False True True"]
    assert "AttributeError: module 'loss_balancers.parity' has no attribute 'assert_twin'" in run.stderr


# --- the fixture and the option -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ini", "arguments", "lanes"),
    [
        ("", [], "torch-cpu-eager jax-cpu-jit"),
        (INI, [], "torch-cpu-vmap jax-cpu-scan"),
        (INI, ["--parity-lanes", "torch-cpu-eager, jax-cpu-vmap"], "torch-cpu-eager jax-cpu-vmap"),
    ],
    ids=["default", "ini", "option-before-ini"],
)
def test_the_lanes_are_those_asked_for(tmp_path: Path, ini: str, arguments: list[str], lanes: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{ini}\n")
    (tmp_path / "test_it.py").write_text(USES_IT)
    run = _pytest(tmp_path, "-s", "-W", "error", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"lanes {lanes}\n" in run.stdout
    assert ("parity lanes: " in run.stdout) is bool(ini or arguments)


def test_a_lane_that_is_absent_fails_and_does_not_skip(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(USES_IT + "\ndef test_other(): pass\n")
    run = _pytest(tmp_path, "--parity-lanes", "torch-abacus-eager,jax-cpu-jit")
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "LaneAbsentError: The lane torch-abacus-eager cannot run on this machine: torch has no device 'abacus'" in run.stdout
    assert "1 failed, 1 passed" in run.stdout


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ("torch-cpu-eager,jax-cpu-jitt", "--parity-lanes: There is no lane 'jax-cpu-jitt' for twins"),
        ("torch-cpu-eager", "needs at least one lane of each"),
        ("", "There is no lane ''"),
    ],
)
def test_a_lane_that_does_not_exist_is_wrong_usage(tmp_path: Path, lanes: str, words: str) -> None:
    (tmp_path / "test_it.py").write_text("def test(): pass")
    run = _pytest(tmp_path, "--parity-lanes", lanes)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert words in run.stderr


def test_a_test_cannot_choose_other_lanes(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(USES_IT.replace("cases=", "lanes=['torch-cpu-vmap', 'jax-cpu-jit'], cases="))
    run = _pytest(tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "`lanes` are those of --parity-lanes" in run.stdout


# --- the example ----------------------------------------------------------------------------------------------------


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy, so that it is the repository of its own that it plays."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "your_twins", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_example_s_twins_pass(example: Path) -> None:
    run = _pytest(example, "-q", "-W", "error", "--parity-lanes", "torch-cpu-eager,jax-cpu-jit,jax-cpu-vmap")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout


def test_the_example_s_test_file_is_short() -> None:
    assert len((EXAMPLE / "tests" / "test_twins.py").read_text("utf-8").splitlines()) <= 15


def test_the_bug_is_found_and_the_guide_shows_what_is_printed(example: Path) -> None:
    guide = (ROOT / "docs" / "twins.md").read_text("utf-8")
    (command,) = re.findall(r"`pytest (bug [^`]*)` does not:\n", guide)
    (shown,) = re.findall(r"^```text\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    run = _pytest(example, *shlex.split(command))
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed" in run.stdout
    seconds = re.compile(r"in \d+\.\d+s")
    assert seconds.sub("in _s", run.stdout) == seconds.sub("in _s", shown)


def test_the_two_jax_balancers_differ_in_the_constant_alone() -> None:
    good, bad = (
        (EXAMPLE / "your_twins" / f"{name}.py").read_text("utf-8").splitlines() for name in ("jax_blend", "jax_blend_bf16")
    )
    code = [line for line in bad if not line.startswith(('"""', "import jax.numpy", "KD_WEIGHT ="))]
    assert [line for line in code if line] == [line for line in good if line and not line.startswith(('"""Our', "KD_WEIGHT ="))]
    assert "KD_WEIGHT = float(jnp.bfloat16(0.3))  # 0.30078125" in bad


# --- the example's workflow -----------------------------------------------------------------------------------------


def _commands(workflow: dict[str, Any]) -> list[list[str]]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return [shlex.split(line) for step in steps for line in step["run"].splitlines()]


def _problems(workflow: dict[str, Any]) -> list[str]:
    """What a runner would stumble over: commands and options that there are not, lanes and extras without existence."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    own = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    found = []
    for words in _commands(workflow):
        if words[0] == "loss-balancers":
            options = {option for parameter in known[words[1]].params for option in parameter.opts} if words[1] in known else set()
            found += [word for word in words[1:2] if word not in known]
            found += [word for word in words[2:] if word.startswith("-") and word not in options]
        elif words[0] == "pytest":
            read_lanes(words[words.index("--parity-lanes") + 1].split(","))
        elif "pip" in words[0]:
            for name, extra in re.findall(r"([\w.-]+)\[([\w-]+)\]", " ".join(words)):
                found += [extra] if extra not in {".": own, "loss-balancers": extras}.get(name, {extra: ""}) else []
    return found


def test_the_workflow_runs_what_there_is() -> None:
    text = WORKFLOW.read_text("utf-8")
    assert _problems(yaml.safe_load(text)) == []
    for right, wrong in [
        ("--certificate cpu", "--cert cpu"),
        ("balancers merge", "balancers join"),
        ("--html", "--page"),
        ("[merge]", "[join]"),
    ]:
        assert right in text
        assert len(_problems(yaml.safe_load(text.replace(right, wrong)))) >= 1
    with pytest.raises(ValueError, match="There is no lane"):
        _problems(yaml.safe_load(text.replace("jax-tpu-jit", "jax-tpu-jitt")))


def test_the_workflow_certifies_each_host_and_merges() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    assert list(jobs) == ["cpu", "gpu", "tpu", "merge"]
    assert "if" not in jobs["cpu"]
    for name in ("gpu", "tpu"):
        assert f"vars.PARITY_{name.upper()} == 'true'" in jobs[name]["if"]
        assert jobs[name]["runs-on"] == ["self-hosted", "linux", name]
    for name in ("cpu", "gpu", "tpu"):
        lines = [words for words in _commands({"jobs": {name: jobs[name]}}) if words[0] in ("pytest", "loss-balancers")]
        assert [words[0] for words in lines] == ["pytest", "loss-balancers"]
        assert lines[1] == ["loss-balancers", "parity", "--certificate", f"{name}.json"]
        uploads = [step["with"] for step in jobs[name]["steps"] if step.get("uses", "").startswith("actions/upload-artifact")]
        assert uploads == [{"name": f"certificate-{name}", "path": f"{name}.json"}]
    assert jobs["merge"]["needs"] == ["cpu", "gpu", "tpu"]
    (download,) = [step["with"] for step in jobs["merge"]["steps"] if step.get("uses", "").startswith("actions/download-artifact")]
    assert download == {"pattern": "certificate-*", "path": "certificates", "merge-multiple": True}
    merges = [words for words in _commands(yaml.safe_load(WORKFLOW.read_text("utf-8"))) if words[:2] == ["loss-balancers", "merge"]]
    assert merges == [["loss-balancers", "merge", "certificates/*.json", "--html", "parity.html", "--markdown", "parity.md"]]
