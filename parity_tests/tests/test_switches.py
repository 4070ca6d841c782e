"""A lane runs what its name says, or is absent with the reason, whatever is switched off; certificates say what was."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
import torch._inductor.config as inductor
from certificates import torch_certificate
from torch._dynamo import config, lookup_backend

from loss_balancers.parity import LaneAbsentError, assert_twins
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.parity.lanes.absent import NotCompiledError
from loss_balancers.parity.lanes.jax_compiled import compiled as compiled_by_jax
from loss_balancers.parity.lanes.known import find_lanes
from loss_balancers.parity.lanes.switches import concerns, flags, turned
from loss_balancers.parity.lanes.torch_compiled import compiled as compiled_by_torch
from loss_balancers.parity.report.tables import as_markdown
from loss_balancers.parity.run import run_lane
from loss_balancers.spec import load_golden

GROUPS = [group for group in load_golden() if group.id == "sequence-2-f32"]
LANES = {lane.name: lane for lane in find_lanes()}
JITTED = [f"jax-cpu-{mode}" for mode in ("jit", "vmap", "scan", "remat", "step", "x64")]
COMPILED = ["torch-cpu-compiled", "torch-cpu-step"]
SWITCHED_OFF = "not compiled: "

#: Every way in Python to keep `torch.compile` from compiling, though it raises nothing, and a word of the reason.
TORCH: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "force_eager": (lambda: torch.compiler.set_stance("force_eager"), 'set_stance("force_eager")'),
    "force_backend": (lambda: torch.compiler.set_stance("default", force_backend="eager"), "force_backend='eager'"),
    "disable": (lambda: config.patch(disable=True), "torch._dynamo.config.disable=True"),
    "override": (lambda: config.patch(debug_backend_override=">=0:eager"), "debug_backend_override='>=0:eager'"),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# --- the program itself is the proof --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JITTED)
def test_a_lane_of_jax_refuses_to_run_in_python(name: str) -> None:
    with jax.disable_jit(), pytest.raises(NotCompiledError, match="not compiled: Python runs the function: jax_disable_jit=True"):
        run_lane(LANES[name], GROUPS, ["f32"])
    (cell,) = run_lane(LANES[name], GROUPS, ["f32"])  # and with the switch back
    assert cell.identical == cell.vectors > 0


def test_the_sharded_lane_tells_of_the_process_that_it_ran_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = LANES["jax-cpu-sharded"]
    with jax.disable_jit():  # of this process, which that one does not know
        (cell,) = run_lane(lane, GROUPS, ["f32"])
    assert cell.identical == cell.vectors > 0
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    with pytest.raises(NotCompiledError, match="jax_disable_jit=True"):
        run_lane(lane, GROUPS, ["f32"])


@pytest.mark.parametrize("switch", TORCH)
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_lane_of_torch_refuses_to_run_in_python(name: str, switch: str) -> None:
    switched, words = TORCH[switch]
    with switched():
        reason = LANES[name].why_absent()
        with pytest.raises(NotCompiledError) as refused:
            run_lane(LANES[name], GROUPS, ["f32"])
    assert str(refused.value).startswith(SWITCHED_OFF)
    assert words in str(refused.value)
    assert reason is not None
    assert words in reason
    assert LANES[name].why_absent() is None


def test_a_program_that_is_compiled_once_and_then_run_by_python_is_found() -> None:
    program = compiled_by_torch(lambda x: x * 2)
    program(torch.ones(2))
    with (
        torch.compiler.set_stance("eager_on_recompile"),
        pytest.raises(NotCompiledError, match=r'Python runs the function: torch.compiler.set_stance\("eager_on_recompile"\)'),
    ):
        program(torch.ones(3))
    jitted = compiled_by_jax(lambda x: x * 2)
    jitted(jnp.ones(2))
    with jax.disable_jit(), pytest.raises(NotCompiledError):
        jitted(jnp.ones(2))


def test_what_is_compiled_is_compiled_by_inductor_whatever_the_default_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import loss_balancers.parity.lanes.torch_compiled as module

    asked: list[str] = []
    monkeypatch.setattr(module, "lookup_backend", lambda name: asked.append(name) or lookup_backend(name))
    torch.compiler.set_default_backend("eager")
    try:
        assert compiled_by_torch(lambda x: x * 2)(torch.ones(2)).tolist() == [2, 2]
    finally:
        torch.compiler.set_default_backend(None)
    assert asked == ["inductor"]


def test_a_function_without_an_operation_is_compiled_too() -> None:
    """Nothing to compile is no reason to be absent."""
    x = torch.ones(2)
    assert compiled_by_torch(lambda x: x)(x) is x
    assert compiled_by_torch(lambda x: {"x": x})(x) == {"x": x}
    assert compiled_by_jax(lambda x: x)(jnp.ones(2)).tolist() == [1, 1]


# --- twins of others ------------------------------------------------------------------------------------------------


def _half(loss):
    return loss["MSELoss_0"] * 0.5


@pytest.mark.parametrize("mode", ["jit", "vmap", "scan", "remat", "step"])
def test_twins_on_a_lane_of_jax_that_is_switched_off(mode: str) -> None:
    with jax.disable_jit(), pytest.raises(LaneAbsentError, match=f"The lane jax-cpu-{mode} cannot run .*jax_disable_jit=True"):
        assert_twins(_half, _half, cases=[{"MSELoss_0": 3.0}], lanes=["torch-cpu-eager", f"jax-cpu-{mode}"])


@pytest.mark.parametrize("switch", TORCH)
@pytest.mark.parametrize("mode", ["compiled", "step"])
def test_twins_on_a_lane_of_torch_that_is_switched_off(mode: str, switch: str) -> None:
    switched, _ = TORCH[switch]
    with switched(), pytest.raises(LaneAbsentError, match=f"The lane torch-cpu-{mode} cannot run on this machine: not compiled"):
        assert_twins(_half, _half, cases=[{"MSELoss_0": 3.0}], lanes=[f"torch-cpu-{mode}", "jax-cpu-eager"])


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_twins_that_are_switched_off_after_the_lane_was_looked_at(framework: str) -> None:
    """What runs proves it, not what was tried before: here the balancer itself turns the switch, in its first call."""
    with contextlib.ExitStack() as stack:

        def switching(loss):
            if framework == "torch":
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            else:
                stack.enter_context(jax.disable_jit())
            return _half(loss)

        balancers = [switching if name == framework else _half for name in ("torch", "jax")]
        lanes = ["torch-cpu-step", "jax-cpu-eager"] if framework == "torch" else ["torch-cpu-eager", "jax-cpu-jit"]
        with pytest.raises(LaneAbsentError, match=r"cannot run on this machine: not compiled: Python runs the function"):
            assert_twins(*balancers, cases=[{"MSELoss_0": 3.0}], lanes=lanes)


# --- the command line -----------------------------------------------------------------------------------------------


HELPERS = str(Path(__file__).parents[1] / "helpers")
#: The command line with a few of the vectors.
WITH_FEW = f"""
import sys
sys.path.insert(0, {HELPERS!r})
from certificates import few_vectors
import loss_balancers.parity.golden.vectors as vectors
from loss_balancers.parity.cli import main
vectors.installed_vectors = few_vectors
main()
"""


def _parity(
    *arguments: str, code: str = "from loss_balancers.parity.cli import main; main()", **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300", "TERM": "dumb", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("environment", "lane", "words"),
    [
        ({"JAX_DISABLE_JIT": "1"}, "jax-cpu-scan", "jax_disable_jit=True"),
        ({"TORCHDYNAMO_DISABLE": "1"}, "torch-cpu-step", "TORCHDYNAMO_DISABLE=1"),
        ({"TORCH_COMPILE_DISABLE": "1"}, "torch-cpu-compiled", "TORCH_COMPILE_DISABLE=1"),
        ({"TORCH_COMPILE_OVERRIDE_BACKENDS": ">=0:eager"}, "torch-cpu-compiled", "debug_backend_override='>=0:eager'"),
    ],
    ids=["jax", "dynamo", "compile", "override"],
)
def test_a_switch_of_the_environment_makes_lanes_absent(environment: dict[str, str], lane: str, words: str) -> None:
    asked = _parity("parity", "--lane", lane, **environment)
    assert asked.returncode == 2, asked.stdout + asked.stderr
    assert f"--lane: {lane} cannot run on this machine: not compiled: " in asked.stderr
    assert words in asked.stderr
    if lane == "jax-cpu-scan":  # the one lane of its mode: nothing is left
        all_of_them = _parity("parity", "--mode", "scan", **environment)
        assert all_of_them.returncode == 2
        assert f"no lane can run on this machine: {lane} (not compiled: " in all_of_them.stderr


SITE = """
import multiprocessing

if multiprocessing.parent_process() is not None:
    import torch

    torch.{switch}


def lanes():
    return []
"""


def _plugin(folder: Path, switch: str) -> None:
    info = folder / "abacus-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1.0\n", "ascii")
    (info / "entry_points.txt").write_text("[loss_balancers.lanes]\nabacus = abacus_lanes:lanes\n", "ascii")
    (folder / "abacus_lanes.py").write_text(SITE.format(switch=switch), "ascii")


def test_a_worker_that_was_switched_off_in_python_says_so(tmp_path: Path) -> None:
    """The process that was started knows nothing of it."""
    _plugin(tmp_path, 'compiler.set_stance("force_eager")')
    result = _parity("parity", "--lane", "torch-cpu-compiled", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "torch-cpu-compiled cannot run on this machine: not compiled: Python runs the function: torch.compiler" in result.stderr


def test_a_certificate_has_the_switches_of_the_process_that_ran_the_lane(tmp_path: Path) -> None:
    _plugin(tmp_path, 'set_float32_matmul_precision("medium")')
    file = tmp_path / "a.json"
    words = ["parity", "--lane", "torch-cpu-eager", "--certificate", str(file)]
    result = _parity(*words, code=WITH_FEW, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(file.read_text())
    assert written["flags"]["torch.float32_matmul_precision"] == "highest"
    assert written["lanes"][0]["flags"] == {"torch.float32_matmul_precision": "medium"}
    line = "switch that may change bits: torch.float32_matmul_precision = medium: torch-cpu-eager"
    assert line in result.stdout
    merged = _parity("merge", str(file), "--markdown", str(tmp_path / "a.md"), code=WITH_FEW)
    assert line in merged.stdout
    assert line in (tmp_path / "a.md").read_text()


def test_parity_prints_the_flags_of_xla_and_finds_what_they_change() -> None:
    on = "--xla_cpu_enable_fast_math=true"
    result = _parity("parity", "--lane", "jax-cpu-jit", "--balancer", "StaticLossBalancer", XLA_FLAGS=on)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"switch that may change bits: env.XLA_FLAGS = {on}: jax-cpu-jit" in result.stdout


# --- what counts as turned ------------------------------------------------------------------------------------------


def test_nothing_is_turned_here_and_each_switch_shows() -> None:
    assert turned(flags()) == {}
    assert "none was turned" in as_markdown(_matrix(torch_certificate()))
    switches: list[tuple[str, Any]] = [
        ("torch.compile_stance", torch.compiler.set_stance("force_eager")),
        ("torch.dynamo_disable", config.patch(disable=True)),
        ("torch.dynamo_suppress_errors", config.patch(suppress_errors=True)),
        ("inductor.emulate_precision_casts", inductor.patch(emulate_precision_casts=True)),
        ("inductor.use_fast_math", inductor.patch(use_fast_math=True)),
        ("jax.jax_disable_jit", jax.disable_jit()),
        ("jax.jax_default_matmul_precision", jax.default_matmul_precision("float32")),
        ("jax.jax_numpy_dtype_promotion", jax.numpy_dtype_promotion("strict")),
        ("jax.jax_enable_x64", enable_x64(True)),
    ]
    for name, switch in switches:
        with switch:
            assert list(turned(flags())) == [name]
    assert turned(flags()) == {}


def test_what_the_kit_sets_itself_is_not_turned() -> None:
    ours = "--xla_force_host_platform_device_count=8"
    assert turned({"env.XLA_FLAGS": ours}) == {}
    assert turned({"env.XLA_FLAGS": f"--xla_x=1 {ours}"}) == {"env.XLA_FLAGS": "--xla_x=1"}
    assert turned({"env.TORCH_COMPILE_DISABLE": "1"}) == {"env.TORCH_COMPILE_DISABLE": "1"}
    assert not concerns("env.XLA_FLAGS", "torch")
    assert not concerns("inductor.use_fast_math", "jax")


def _matrix(data: dict[str, Any]) -> dict[str, Any]:
    from certificates import few_vectors

    from loss_balancers.parity.certificates.merge import merge
    from loss_balancers.parity.certificates.reading import check

    return merge([check(data, "a.json", few_vectors())])


def test_a_certificate_of_before_has_no_flags_of_lanes_and_fewer_of_its_own() -> None:
    """They are read all the same."""
    data = torch_certificate()
    for lane in data["lanes"]:
        del lane["flags"]
    for name in ("env.TORCHDYNAMO_DISABLE", "jax.jax_disable_jit", "torch.compile_stance", "inductor.fallback_by_default"):
        del data["flags"][name]
    assert _matrix(data)["lanes"][0]["flags"] == {}


def test_a_switch_that_a_version_does_not_have_is_not_turned() -> None:
    """Inductor of PyTorch 2.8 has no `fallback_by_default`."""
    assert turned({"inductor.fallback_by_default": None}) == {}
    assert turned({"inductor.fallback_by_default": True}) == {"inductor.fallback_by_default": True}
