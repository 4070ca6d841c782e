"""The kit for a host with a GPU, on the CPU: it builds, stays within its minutes, and leaves valid files whenever it is killed.

`KILLS=12` kills it more often, `KIT_PYTHON=…` runs it with another environment, such as one that is made like the host's.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loss_balancers.parity.certificates.merge import merge
from loss_balancers.parity.certificates.reading import read_certificate
from loss_balancers.parity.golden.vectors import installed_vectors

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "2"))
#: What the kit must do without.
BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jsonschema", "beartype", "hatchling", "modelopt", "pytest"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit as `make gpu-kit` builds it."""
    folder = tmp_path_factory.mktemp("kit") / "gpu-kit"
    subprocess.run([sys.executable, str(ROOT / "gpu_kit" / "build.py"), str(folder)], check=True, capture_output=True)
    (folder.parent / "blocked").mkdir()
    (folder.parent / "blocked" / "sitecustomize.py").write_text(BLOCK)
    return folder


def start(kit: Path, out: Path, minutes: float, **environment: str) -> subprocess.Popen[str]:
    python = os.environ.get("KIT_PYTHON", sys.executable)
    variables = {"PYTHON": python, "DEVICE": "cpu", "PYTHONPATH": str(kit.parent / "blocked"), **environment}
    return subprocess.Popen(
        ["bash", str(kit / "run"), str(out), str(minutes)],
        env=os.environ | variables,
        cwd=ROOT,  # whose `gpu_kit` must not be the one that runs
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(kit: Path, out: Path, minutes: float, **environment: str) -> tuple[int, str]:
    process = start(kit, out, minutes, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def merged(out: Path) -> Any:
    """The matrix of the certificate; None if there is none yet. Every other file must be valid too."""
    for file in out.glob("*.json"):
        json.loads(file.read_text())
    file = out / "certificate.json"
    return merge([read_certificate(file)]) if file.exists() else None


def wait_for(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return bool(condition())


def test_it_is_small_and_says_how_to_run_it(kit: Path) -> None:
    files = [file for file in kit.rglob("*") if file.is_file()]
    assert 1_000_000 < sum(file.stat().st_size for file in files) < 20 * 2**20
    assert len((kit / "README.md").read_text().splitlines()) == 5
    assert not [file for file in files if file.name.startswith("test_") or file.suffix == ".pyc"]
    assert list((kit / "site").glob("loss_balancers-*.dist-info"))


def test_a_run_of_two_jobs(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, output = run(kit, out, 3, ONLY="host-torch torch-cpu-eager")
    assert status == 0, output + (out / "logs" / "torch-cpu-eager.txt").read_text()
    text = (out / "summary.txt").read_text()
    assert output.endswith(text)
    assert len(text.splitlines()) == 10
    assert "every bit identical, all jobs done: 2 of 2 jobs done; exit status 0" in text
    matrix = merged(out)
    assert matrix["identical"] == matrix["results"] > 1000
    assert not matrix["absent"]
    assert json.loads((out / "host.json").read_text())["torch"]["available"] is False
    assert {job["state"] for job in json.loads((out / "progress.json").read_text()).values()} == {"done"}


def test_costs_of_every_balancer(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, output = run(kit, out, 5, ONLY="costs-kernels costs-eager costs-graph")
    assert status == 0, output + (out / "logs" / "costs-eager.txt").read_text()
    costs = json.loads((out / "costs.json").read_text())
    assert costs.keys() == installed_vectors().keys()
    assert all(0.1 < found["eager"]["times as long"] < 100 for found in costs.values()), costs
    assert "eager        Static " in output


def test_each_job_compiles_into_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is killed leaves files half written, and Inductor loads what it finds."""
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit import __main__ as program

    begin, folders = subprocess.Popen, []

    def popen(command: list[str], *, env: dict[str, str], **keywords: Any) -> subprocess.Popen[bytes]:
        folders.append(Path(env["TORCHINDUCTOR_CACHE_DIR"]))
        folders[-1].mkdir(parents=True)
        return begin(["true"], env=env, **keywords)

    monkeypatch.setattr(program.subprocess, "Popen", popen)
    (tmp_path / "logs").mkdir()
    program.Kit(tmp_path, "cpu", 1, ["host-torch", "host-jax"]).run()
    assert len(set(folders)) == 2
    assert all(tmp_path in folder.parents and not folder.exists() for folder in folders)


def test_time_that_is_up_is_up(kit: Path, tmp_path: Path) -> None:
    """Nine seconds: the lane may take a third of it, in which no framework loads."""
    begin = time.monotonic()
    status, output = run(kit, tmp_path, 0.15, ONLY="torch-cpu-compiled.Static torch-cpu-vmap costs-compiled")
    assert status == 3, output
    assert time.monotonic() - begin < 9 + 6
    states = {job: entry["state"] for job, entry in json.loads((tmp_path / "progress.json").read_text()).items()}
    assert states.keys() == {"torch-cpu-compiled.Static", "torch-cpu-vmap", "costs-compiled"}
    assert all(state.startswith(("cut off after ", "not begun: ")) for state in states.values()), states
    assert any(state.startswith("cut off after ") for state in states.values()), states


def test_a_device_that_is_not_there_is_said(kit: Path, tmp_path: Path) -> None:
    status, output = run(kit, tmp_path, 1, DEVICE="cuda", ONLY="torch-cuda-eager", CUDA_VISIBLE_DEVICES="")
    assert status == 3, output
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["torch-cuda-eager"]["state"] == "absent"
    assert progress["torch-cuda-eager"]["why"] == "PyTorch reports no cuda device"
    assert merged(tmp_path) is None


@pytest.mark.parametrize(
    ("environment", "minutes", "words"),
    [
        ({"DEVICE": "tpu"}, 1, "DEVICE must be cuda or cpu. Received 'tpu'."),
        ({"ONLY": "torch-cpu-eagre"}, 1, "Received torch-cpu-eagre."),
        ({}, 0, "MINUTES must be above 0, and finite. Received 0.0."),
        ({}, float("nan"), "MINUTES must be above 0, and finite. Received nan."),
        ({}, float("inf"), "MINUTES must be above 0, and finite. Received inf."),
        ({"PYTHON": "no-such-python"}, 1, "PYTHON must be Python 3.11 or newer. Received no-such-python."),
        ({"PYTHON": "false"}, 1, "PYTHON must be Python 3.11 or newer. Received false."),
    ],
)
def test_wrong_usage(kit: Path, tmp_path: Path, environment: dict[str, str], minutes: float, words: str) -> None:
    status, output = run(kit, tmp_path, minutes, **environment)
    assert status == 2
    assert words in output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_has_files_is_left_alone(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("mine")
    status, output = run(kit, tmp_path, 1)
    assert status == 2
    assert f"OUT must be new or empty: {tmp_path} has files." in output
    assert (tmp_path / "host.json").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "out", "out/deep"], ids=["a file", "in a file", "deep in a file"])
def test_a_folder_that_takes_no_files_is_wrong_usage(kit: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    status, output = run(kit, tmp_path / "file" / below, 1)
    assert status == 2
    assert f"OUT must be a folder that takes files: {tmp_path / 'file' / below}: Not a directory." in output


def test_an_interpreter_without_what_it_needs_is_wrong_usage(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK.replace('"jsonschema"', '"numpy"'))
    status, output = run(kit, tmp_path / "out", 1, PYTHONPATH=str(tmp_path / "blocked"))
    assert status == 2
    assert "PYTHON must be an interpreter that has what README.md lists." in output
    assert "does not: No module named 'numpy'." in output
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_kit_says_nothing_about_results(kit: Path, tmp_path: Path) -> None:
    """A module of the host that stands before ours, say, must not end it with the status of a difference."""
    (tmp_path / "sitecustomize.py").write_text("import gpu_kit.machine\ngpu_kit.machine.basics = lambda device: 1 / 0\n")
    status, output = run(kit, tmp_path / "out", 1, ONLY="host-torch", PYTHONPATH=str(tmp_path))
    assert status == 70, output
    assert "ZeroDivisionError" in output


def test_a_reader_that_goes_away_ends_no_job(kit: Path, tmp_path: Path) -> None:
    process = start(kit, tmp_path, 8, ONLY="host-torch costs-kernels")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0
    assert {job["state"] for job in json.loads((tmp_path / "progress.json").read_text()).values()} == {"done"}
    assert "2 of 2 jobs done" in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize("name", ["with spaces, \u00fc", "a\nb", os.fsdecode(b"not \xff UTF-8")], ids=ascii)
def test_any_name_of_a_folder(kit: Path, tmp_path: Path, name: str) -> None:
    status, output = run(kit, tmp_path / name, 8, ONLY="host-torch", PYTHONIOENCODING="ascii")
    assert status == 0, output
    assert len((tmp_path / name / "summary.txt").read_text().splitlines()) == 10


@pytest.mark.parametrize("broken", ["record", "open"])
def test_a_file_that_cannot_be_written_ends_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit import __main__ as program

    begin, begun = subprocess.Popen, []

    def popen(command: list[str], **keywords: Any) -> subprocess.Popen[bytes]:
        begun.append(command[3])
        return begin(["true"], **keywords)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.subprocess, "Popen", popen)
    monkeypatch.setattr(program, broken, full, raising=False)
    (tmp_path / "logs").mkdir()
    only = ["host-torch", "costs-kernels", "costs-eager"]
    program.Kit(tmp_path, "cpu", 1, only).run()
    printed = capsys.readouterr()
    if broken == "record":
        assert begun == only
        assert f"{tmp_path} does not take a file: No space left on device" in printed.err
    else:
        assert all(f"{job}: failed: [Errno 28] No space left on device" in printed.out for job in only)


@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("asked", [["HUP"], ["TERM", "TERM"], ["INT", "HUP", "TERM"]], ids="-".join)
def test_who_asks_it_to_end_gets_the_summary(kit: Path, tmp_path: Path, asked: list[str]) -> None:
    process = start(kit, tmp_path, 8, ONLY="host-torch torch-cpu-vmap")
    assert wait_for((tmp_path / "progress.json").exists, 60)
    for name in asked:
        process.send_signal(getattr(signal, f"SIG{name}"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "Traceback" not in output
    assert len((tmp_path / "summary.txt").read_text().splitlines()) == 10


@pytest.mark.parametrize("said", ["No devices were found", "", "one, two"], ids=["message", "nothing", "fields"])
def test_a_driver_that_answers_otherwise_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit.machine import basics
    from gpu_kit.summary import summary

    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = basics("cuda")
    assert found["driver"] == said
    (tmp_path / "host.json").write_text(json.dumps({"device": "cuda", **found}))
    assert f"(driver: {said})" in summary(tmp_path, [])


def test_jobs_of_one_lane_fill_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit import jobs, lanes

    assert {f"{name}LossBalancer" for name in jobs.BALANCERS} == installed_vectors().keys()
    for count, name in enumerate(jobs.BALANCERS, 1):
        assert lanes.run(f"torch-cpu-eager.{name}", tmp_path) == 0
        (row,) = json.loads((tmp_path / "certificate.json").read_text())["lanes"]
        ran = {balancer for balancer, cells in row["balancers"].items() if all("absent" not in cell for cell in cells.values())}
        assert ran == {f"{name}LossBalancer" for name in jobs.BALANCERS[:count]}
        assert row["balancers"].keys() == installed_vectors().keys()
    matrix = merged(tmp_path)
    assert matrix["identical"] == matrix["results"] > 1000
    assert not matrix["absent"]


# --- killed at any moment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(KILLS))
def test_what_is_left_by_a_kill_merges(kit: Path, tmp_path: Path, number: int) -> None:
    """Every other kill comes once there is a certificate, which is then written again and again; a third is a polite one."""
    moment = random.Random(number)
    process = start(kit, tmp_path, 8, ONLY="host-torch torch-cpu-eager jax-cpu-jit quotients-torch quotients-jax")
    if number % 2 == 0:
        assert wait_for((tmp_path / "certificate.json").exists, 120)
    time.sleep(moment.uniform(0, 6))
    family = sorted(_family(process.pid))
    polite = number % 3 == 1
    if polite:
        process.terminate()
    else:
        process.kill()
    output, _ = process.communicate(timeout=60)
    # Who is asked to end before anything has begun just ends.
    assert process.returncode in ((3, -signal.SIGTERM) if polite else (-signal.SIGKILL,)), output
    assert wait_for(lambda: not [pid for pid in family if _alive(pid)], 20), family
    matrix = merged(tmp_path)
    assert matrix is not None or number % 2
    if matrix is not None:
        assert 0 < matrix["identical"] == matrix["results"]


def _family(pid: int) -> set[int]:
    """A process and all that it has started."""
    try:
        children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    except OSError:
        return {pid}
    return {pid}.union(*map(_family, children)) if children else {pid}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- the verdict ------------------------------------------------------------------------------------------------------

DONE = {"progress": {"a": {"state": "done"}}, "certificate": {}, "quotients": {}, "costs": {}, "host": {}}


def _certificate(identical: int) -> dict[str, Any]:
    cell = {"vectors": 2, "identical": identical}
    return {
        "lanes": [
            {"framework": "torch", "device": "cuda", "mode": "eager", "balancers": {"B": {"f32": cell, "f64": {"absent": "x"}}}}
        ]
    }


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({}, 0),
        ({"progress": {}}, 3),
        ({"progress": {"a": {"state": "cut off after 3 s"}}}, 3),
        ({"certificate": _certificate(2)}, 0),
        ({"certificate": _certificate(1)}, 1),
        ({"certificate": _certificate(1), "progress": {}}, 1),
        ({"quotients": {"lane": {"f32": {"drawn": 9, "differ": 0}}}}, 0),
        ({"quotients": {"lane": {"f32": {"drawn": 9, "differ": 1}}}}, 1),
        ({"costs": {"B": {"kernels": {"syncs": None}}}}, 0),
        ({"costs": {"B": {"kernels": {"syncs": "RuntimeError: a synchronizing CUDA operation"}}}}, 1),
        ({"costs": {"B": {"kernels": {"syncs": None, "a planted sync is found": True}}}}, 0),
        ({"costs": {"B": {"kernels": {"syncs": None, "a planted sync is found": False}}}}, 3),
        ({"costs": {"B": {"graph": {"replays": 6, "differ": 1}}}}, 1),
        ({"costs": {"B": {"compiled": {"default": {"differ": 0}, "reduce-overhead": {"differ": 1}}}}}, 1),
    ],
)
def test_any_difference_is_exit_status_1(found: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit.summary import verdict

    assert verdict(DONE | found, ["a"]) == status


def test_the_summary_of_a_gpu_has_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from gpu_kit.summary import summary

    side = {"forward": {"count": 3}, "backward": {"count": 2}}
    timed = {"by hand, us": 50.0, "ours, us": 80.0, "times as long": 1.6}
    measures = {
        "kernels": {
            "launched": {"ours": {**side, "step": {"count": 9}}, "by hand": side},
            "syncs": None,
            "a planted sync is found": True,
        },
        "eager": timed,
        "graph": {"replays": 6, "differ": 0, **timed},
        "compiled": {"default": {"steps": 6, "differ": 0, **timed}, "reduce-overhead": {"failed": "x"}},
    }
    files = {
        "host": {
            "device": "cuda",
            "driver": [{"name": "NVIDIA H100", "driver_version": "580.1", "memory.total": "81559 MiB"}],
            "torch": {"version": "2.11.0+cu130", "device": "NVIDIA H100"},
        },
        "certificate": _certificate(2),
        "quotients": {"torch-cuda-eager": {"f32": {"drawn": 1_000_000, "differ": 0}}},
        "costs": {"EMANormalizedLossBalancer": measures, "StaticLossBalancer": {"eager": {"failed": "RuntimeError: no"}}},
        "progress": {"a": {"state": "done"}},
    }
    for name, data in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    lines = summary(tmp_path, ["a", "b"]).splitlines()
    assert len(lines) == 10
    for words in (
        "NVIDIA H100, driver 580.1, 81559 MiB",
        "torch-cuda-eager 2/2 (and 1 columns not run)",
        "3+2+9 (3+2)",
        "syncs        none",
        "EMANormalized 1.60, Static FAILED",
        "0 of 6 replays differ, 1.60 times as long",
        "INCOMPLETE: 1 of 2 jobs done, b not begun; exit status 3",
    ):
        assert sum(words in line for line in lines) == 1, (words, lines)
