"""Lanes: which there are, that others can add some, that each of them finds a fault, and what is said of those that are absent."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from certificates import few_vectors
from planted import devices_seen, with_fault, without_guards
from typer.testing import CliRunner

import loss_balancers.parity.lanes.known as module
from loss_balancers.parity import run
from loss_balancers.parity.bits import from_bits
from loss_balancers.parity.cli import app
from loss_balancers.parity.golden.vectors import LABELS, case_name, columns
from loss_balancers.parity.lanes.absent import KNOWN_DEVICES, why_no_format
from loss_balancers.parity.lanes.in_jax import jax_lanes
from loss_balancers.parity.lanes.in_torch import torch_lanes
from loss_balancers.parity.lanes.jax_modes import run_in_jax
from loss_balancers.parity.lanes.jax_program import Packed
from loss_balancers.parity.lanes.known import find_lanes, known_lanes
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.own_process import in_own_process, one_process
from loss_balancers.parity.run import run_lane
from loss_balancers.spec import FORMATS, load_golden

GROUPS = load_golden()
EMA = load_golden("ema_normalized")
HERE = find_lanes()
HELPERS = str(Path(__file__).parents[1] / "helpers")


def _lane(name: str) -> Lane:
    return next(lane for lane in HERE if lane.name == name)


def _command(*arguments: str):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "140", "TERM": "dumb"})


def _words(text: str) -> str:
    return " ".join(text.split())


# Which there are


def test_names_are_unique_and_every_lane_here_is_known() -> None:
    names = [lane.name for lane in known_lanes()]
    assert len(set(names)) == len(names)
    assert {lane.name for lane in HERE} <= set(names)


def test_the_modes_that_are_promised_are_there_on_every_known_device() -> None:
    modes = {
        "torch": {"eager", "compiled", "vmap", "step"},
        "jax": {"eager", "jit", "vmap", "scan", "remat", "step", "sharded", "x64"},
    }
    known = {(lane.framework, lane.device, lane.mode) for lane in known_lanes()}
    assert known >= {(framework, device, mode) for framework in modes for device in KNOWN_DEVICES for mode in modes[framework]}


def test_at_least_twelve_lanes_are_present_on_a_cpu() -> None:
    assert sum(lane.device == "cpu" and lane.why_absent() is None for lane in HERE) >= 12


def test_a_lane_on_a_device_that_is_not_here_says_so_and_refuses_to_run() -> None:
    lane = next(lane for lane in known_lanes() if not lane.here)
    title = {"torch": "PyTorch", "jax": "JAX"}[lane.framework]
    reason = lane.why_absent()
    assert reason == f"{title} reports no {lane.device} device"
    with pytest.raises(RuntimeError, match=reason):
        lane.run(GROUPS[:1])


@pytest.mark.parametrize(
    ("reported", "hip", "name"),
    [("cuda", None, "cuda"), ("cuda", "7.0", "rocm"), ("mps", None, "mps"), ("xpu", None, "xpu")],
    ids=["cuda", "rocm", "mps", "xpu"],
)
def test_the_lanes_of_what_pytorch_reports_appear(monkeypatch: pytest.MonkeyPatch, reported: str, hip: str, name: str) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(reported))
    monkeypatch.setattr(torch.version, "hip", hip)
    here = {(lane.device, lane.mode) for lane in torch_lanes() if lane.here}
    assert here == {(device, mode) for device in ("cpu", name) for mode in ("eager", "compiled", "vmap", "step")}


@pytest.mark.parametrize(("count", "shards"), [(1, False), (4, True)], ids=["one", "four"])
def test_the_lanes_of_what_jax_reports_appear(monkeypatch: pytest.MonkeyPatch, count: int, shards: bool) -> None:
    monkeypatch.setattr(jax.extend.backend, "backends", lambda: {"cpu": object(), "tpu": object()})
    monkeypatch.setattr(jax, "local_device_count", lambda platform: count)
    tpu = {lane.mode: lane for lane in jax_lanes() if lane.here and lane.device == "tpu"}
    assert set(tpu) == {lane.mode for lane in jax_lanes()}
    assert tpu["jit"].why_absent() is None
    absent = None if shards else "JAX reports 1 tpu device; there is nothing to shard over"
    assert tpu["sharded"].why_absent() == absent


# Others can add some

ADDED = """
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity import run_in_torch


def run(device, groups):
    (Path(__file__).parent / "ran" / f"{device}-{os.getpid()}").touch()
    yield from run_in_torch("cpu", "eager", groups)


def lanes():
    return [Lane("torch", device, "mine", partial(run, device)) for device in ("cpu", "abacus")]
"""


def test_another_package_adds_lanes_by_an_entry_point(tmp_path: Path) -> None:
    """Really, in processes of their own: one on the CPU in a worker, one on a device of its own in the process that was started."""
    info = tmp_path / "abacus-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1.0\n", "ascii")
    (info / "entry_points.txt").write_text("[loss_balancers.lanes]\nabacus = abacus_lanes:lanes\n", "ascii")
    (tmp_path / "abacus_lanes.py").write_text(ADDED, "ascii")
    (tmp_path / "ran").mkdir()
    start = (
        f"import os, sys; print(f'pid {{os.getpid()}}', flush=True); sys.path.insert(0, {HELPERS!r})\n"
        "from certificates import few_vectors\n"
        "import loss_balancers.parity.golden.vectors as vectors\n"
        "from loss_balancers.parity.cli import main\n"
        "vectors.installed_vectors = few_vectors\n"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", start, "parity", "--lane", "torch-cpu-mine", "--lane", "torch-abacus-mine"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    total = 2 * sum(len(group.vectors) for vectors in few_vectors().values() for group in vectors.groups)
    assert f"2 lanes, {total}/{total} bit-identical" in result.stdout
    pid = int(result.stdout.split()[1])
    ran = [file.name.split("-") for file in (tmp_path / "ran").iterdir()]
    assert {int(number) for device, number in ran if device == "abacus"} == {pid}
    workers = {int(number) for device, number in ran if device == "cpu"}
    assert workers
    assert pid not in workers


def _entry_point(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="abacus", value=value, group=module.ENTRY_POINTS)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == module.ENTRY_POINTS else [])


def test_two_lanes_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _entry_point(monkeypatch, "loss_balancers.parity.lanes.in_torch:torch_lanes")
    with pytest.raises(ValueError, match=r"distinct names. Received torch-cpu-eager, .* more than once. Rename a mode"):
        known_lanes()


def test_an_entry_point_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _entry_point(monkeypatch, "no_such_module_at_all:lanes")
    with pytest.raises(ModuleNotFoundError) as error:
        known_lanes()
    assert error.value.__notes__ == [
        "The lanes of the entry point abacus = 'no_such_module_at_all:lanes' cannot be loaded. Repair or uninstall it."
    ]


# Each of them finds a fault


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("lane", [lane for lane in HERE if lane.device == "cpu"], ids=lambda lane: lane.name)
def test_a_planted_fault_of_an_ulp_is_found(lane: Lane) -> None:
    """Every normal, finite aggregate is off, by an ulp or two. (`test_golden.py` holds each lane without the fault to all bits.)"""
    if reason := lane.why_absent():
        pytest.skip(reason)
    groups = [group for group in GROUPS if group.id in ("number-1-alone-f32", "sequence-2-f32")]
    (cell,) = run_lane(with_fault(lane), groups, ["f32"])
    found = {d.case: d for d in cell.differences if d.what == "the aggregate"}
    normal = {
        case_name(group, index)
        for group in groups
        for index, vector in enumerate(group.vectors)
        if FORMATS["f32"].tiny <= abs(vector.aggregate) < math.inf
    }
    assert len(normal) >= 20
    assert normal <= set(found)
    assert {found[name].ulp for name in normal} <= {1, 2}
    assert all(math.isfinite(from_bits(found[name].expected, "f32")) for name in normal)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("lane", [lane for lane in HERE if lane.device == "cpu"], ids=lambda lane: lane.name)
def test_a_planted_fault_of_an_ulp_in_weights_and_in_state_is_found(lane: Lane) -> None:
    """Of the first step, where the one does not follow from the other yet."""
    if reason := lane.why_absent():
        pytest.skip(reason)
    group = next(group for group in EMA if group.label == "f32")
    (cell,) = run_lane(with_fault(lane), [group._replace(sequences=tuple(s[:2] for s in group.sequences[:1]))], ["f32"])
    found = {d.what: d.ulp for d in cell.differences if d.case == case_name(group, 0)}
    names = group.sequences[0][0].weights
    # The weight of the first loss begins at zero, which is off by nothing.
    assert set(found) == {f"the weight of {name}" for name in names if name != "MSELoss_0"} | {
        f"the state's total[{i}]" for i in range(len(names))
    }
    assert set(found.values()) <= {1, 2}


@pytest.fixture(scope="module")
def _one_process() -> Iterator[None]:
    """One process for all lanes without guards: each would import both frameworks."""
    with one_process():
        yield


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("name", "label", "found"),
    [
        ("torch-cpu-eager", "bf16", False),
        ("torch-cpu-compiled", "bf16", False),
        ("torch-cpu-step", "bf16", True),
        ("jax-cpu-jit", "f32", True),
        ("jax-cpu-step", "f32", True),
    ],
)
def test_what_compilers_do_to_a_balancer_without_guards_is_found(name: str, label: str, found: bool) -> None:
    """The whole step in one graph is a lane of its own because it shows what a compiled balancer by itself does not."""
    lane = _lane(name)
    if reason := lane.why_absent():
        pytest.skip(reason)
    groups = [group for group in GROUPS if group.id == f"sequence-2-{label}"]
    (cell,) = run_lane(without_guards(lane), groups, [label])
    assert (cell.identical < cell.vectors) == found


def test_the_sharded_lanes_have_eight_devices_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    lane = next(lane for lane in jax_lanes() if lane.name == "jax-cpu-sharded")
    assert isinstance(lane.run, partial)
    environment, _ = lane.run.args
    assert environment["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=8"
    ((pid, backend, count),) = in_own_process(environment, devices_seen, GROUPS[:1])
    assert (backend, count) == ("cpu", 8)
    assert pid != os.getpid()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
    if jax.local_device_count("cpu") == 1:
        with pytest.raises(RuntimeError, match=r"at least two devices. Received 1\."):
            list(run_in_jax("cpu", "sharded", GROUPS[:1]))


def test_what_is_packed_is_unpacked_with_its_names_dtypes_shapes_and_bits() -> None:
    def tree(x: jax.Array) -> dict[str, Any]:
        return {"b": x.astype("bfloat16"), "a": [x, jnp.stack([x, -x])], "steps": jnp.int32(7), "none": {}}

    def facts(given: Any) -> Any:
        return jax.tree.map(lambda x: (np.asarray(x).dtype.name, np.shape(x), np.asarray(x).tobytes()), given)

    xs = jnp.asarray([1.5, -0.0, 2.0**-149])
    together = jax.device_get(jax.jit(jax.vmap(lambda x: Packed.of(tree(x))))(xs))
    for i, x in enumerate(xs):
        row = jax.tree.map(lambda vector, i=i: vector[i], together)
        assert facts(row.unpacked()) == facts(tree(x))


# What is said of those that are absent


def test_a_format_is_there_if_it_has_all_digits_and_all_exponents() -> None:
    def single(value: float) -> float:
        return torch.tensor(value, dtype=torch.float32).item()

    def fails(a: float, b: float) -> float:
        raise TypeError("no such dtype\nsecond line")

    f64 = FORMATS["f64"]
    assert why_no_format("tpu", f64, lambda a, b: a + b) is None
    digits = why_no_format("tpu", f64, lambda a, b: single(a + b))
    assert digits == "float64 on tpu is an emulation: 0x1.0000000000000p+0 + 0x1.0000000000000p-52 is 0x1.0000000000000p+0"
    exponents = why_no_format("tpu", f64, lambda a, b: a + b if a == 1 else math.inf)
    assert exponents is not None
    assert exponents.endswith("is inf")
    assert why_no_format("mps", f64, fails) == "mps has no float64: no such dtype"


def test_every_device_here_was_asked_for_every_format() -> None:
    assert {(lane.name, fmt): lane.why_no_format(fmt) for lane in HERE if lane.device == "cpu" for fmt in FORMATS} == {
        (lane.name, fmt): None for lane in HERE if lane.device == "cpu" for fmt in FORMATS
    }


def _without(lane: Lane, absent: str) -> Lane:
    return lane._replace(why_no_format=lambda fmt: f"the abacus has no {fmt}" if fmt == absent else None)


@pytest.mark.parametrize("fmt", ["f64", "f16"])
def test_a_column_that_needs_a_format_that_is_not_there_is_absent_with_the_reason(fmt: str) -> None:
    """Columns that it would have run with are there all the same."""
    cells = run_lane(_without(_lane("torch-cpu-eager"), fmt), GROUPS)
    assert {cell.label: cell.absent for cell in cells} == dict.fromkeys(LABELS) | dict.fromkeys(
        (fmt, "mixed"), f"the abacus has no {fmt}"
    )
    assert all((cell.vectors > 0) == (cell.absent is None) for cell in cells)
    assert all(cell.identical == cell.vectors for cell in cells)


def test_the_command_lists_every_lane_with_the_reason_for_each_that_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    eager, vmap = _lane("torch-cpu-eager"), _without(_lane("torch-cpu-vmap"), "f64")
    compiled = _lane("torch-cpu-compiled")._replace(why_absent=lambda: "no C++ [compiler]")
    tpu = next(lane for lane in known_lanes() if not lane.here)
    monkeypatch.setattr(module, "known_lanes", lambda: [eager, vmap, compiled, tpu])
    file = tmp_path / "lanes.json"
    result = _command("lanes", "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: _words(line).partition(" ")[2] for line in result.output.splitlines() if "-" in line}
    assert rows[eager.name] == "present"
    assert rows[vmap.name] == "present; without f64, mixed: the abacus has no f64"
    assert rows[compiled.name] == "absent: no C++ [compiler]"
    assert rows[tpu.name] == f"absent: {tpu.why_absent()}"
    assert "2 of 4 lanes present" in result.output
    written = {entry["name"]: entry for entry in json.loads(file.read_text())["lanes"]}
    assert [entry["present"] for entry in written.values()] == [True, True, False, False]
    assert written[vmap.name]["absent_columns"] == dict.fromkeys(("f64", "mixed"), "the abacus has no f64")
    assert written[compiled.name]["why_absent"] == "no C++ [compiler]"


def test_the_command_says_what_is_known_of_this_machine() -> None:
    result = _command("lanes")
    assert result.exit_code == 0, result.output
    assert all(lane.name in result.output for lane in known_lanes() if lane.here)
    assert {f"{lane.framework}-{lane.device}-*" in result.output for lane in known_lanes() if not lane.here} == {True}


def test_lanes_that_are_absent_for_one_reason_are_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_lanes()
    in_torch = [lane for lane in known if lane.framework == "torch"]
    missing = [lane._replace(why_absent=lambda: "no JAX") for lane in known if lane.framework == "jax"]
    monkeypatch.setattr(module, "known_lanes", lambda: [*in_torch[:2], *missing, *in_torch[2:]])
    result = _command("lanes")
    rows = {line.split()[0]: _words(line).partition(" ")[2] for line in result.output.splitlines() if "-" in line}
    assert {name for name in rows if name.startswith("jax-")} == {"jax-*"}
    assert rows["jax-*"] == "absent: no JAX"
    assert {lane.name for lane in in_torch if lane.here} <= rows.keys()
    assert f"of {len(known)} lanes present" in result.output


def test_a_lane_asked_for_on_a_device_that_is_not_here_is_wrong_usage() -> None:
    lane = next(lane for lane in known_lanes() if not lane.here)
    result = _command("parity", "--lane", lane.name)
    assert result.exit_code == 2
    assert f"--lane: {lane.name} cannot run on this machine: {lane.why_absent()}" in _words(result.output)


def test_a_lane_that_is_absent_is_no_row_and_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = _lane("torch-cpu-eager")._replace(device="abacus", why_absent=lambda: "its beads are lost")
    monkeypatch.setattr(run, "_lanes_here", lambda: {lane.name: lane})
    monkeypatch.setattr(run, "_lane_here", {lane.name: lane}.__getitem__)
    done: list[Any] = []
    assert run.run_lanes([lane.name], GROUPS, done.append) == ({}, {lane.name: "its beads are lost"}, {})
    assert done == []


@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "batch-by-batch"])
def test_a_job_of_an_absent_lane_runs_nothing(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    lane = _lane("torch-cpu-eager")._replace(why_absent=lambda: "its beads are lost", at_once=at_once)
    monkeypatch.setattr(run, "_lane_here", {lane.name: lane}.__getitem__)
    lots = run._lots(columns(GROUPS, ["f32"]))
    for job in run._jobs(lane, lots):
        assert run._run_cells(lane.name, job) == ([], {lane.name: "its beads are lost"}, {})


def test_a_worker_finds_out_that_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rows, absent, flags = run.run_lanes(["torch-cpu-compiled", "torch-cpu-eager"], GROUPS[:1], lambda cell: None)
    assert list(rows) == ["torch-cpu-eager"]
    assert list(flags) == ["torch-cpu-eager"]
    assert list(absent) == ["torch-cpu-compiled"]
    assert absent["torch-cpu-compiled"].startswith("torch.compile fails on cpu:")


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "torch")])
def test_a_worker_loads_the_framework_of_its_lane_alone(framework: str, other: str) -> None:
    """Each takes seconds of each process."""
    code = (
        "import sys; from loss_balancers.parity import run\n"
        f"assert run._lane_here('{framework}-cpu-eager').framework == '{framework}'\n"
        f"assert '{framework}' in sys.modules and '{other}' not in sys.modules\n"
        "run._lanes_here(); "
        f"assert '{other}' in sys.modules  # which loads both\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
