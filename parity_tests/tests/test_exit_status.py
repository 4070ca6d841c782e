"""Exit statuses 1 and 2 mean what the documents say, and nothing else: each command as a process, and what may happen to one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import doctored, jax_certificate, torch_certificate

from loss_balancers.parity.files import write_json

#: The command line with a few of the vectors, with few lanes if the environment says so, and with an audit that compiles nothing.
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
from certificates import few_vectors
import loss_balancers.parity.golden.vectors as vectors
from loss_balancers.parity.cli import main
vectors.installed_vectors = few_vectors
if "FEW_LANES" in os.environ:
    import loss_balancers.parity.lanes.known as known
    eager = [lane._replace(at_once=True) for lane in known.lanes_of("torch") if lane.mode == "eager"]  # for one worker
    known.known_lanes = lambda: eager
if sys.argv[1] == "audit":
    import loss_balancers.audit.__main__ as audit
    audit._audited = lambda names, cases: ({{name: {{}} for name in names}}, {{name: {{"device": name}} for name in names}})
if sys.argv[1] == "fail":
    def fail(): raise RuntimeError("planted")
    vectors.installed_vectors = fail
    sys.argv[1] = "merge"
main()
"""
#: Those of eager PyTorch alone: to look at all lanes takes both frameworks and each compiler.
FEW_LANES = {"FEW_LANES": "1"}
COMMANDS = ["merge", "merge-differs", "parity", "lanes", "audit", "help"]
#: The status of each where nothing happens to its output.
VERDICT = {"merge-differs": 1}


def _words(command: str, folder: Path) -> list[str]:
    file = str(folder / "matrix.json")
    if command == "help":
        return ["--help"]
    if command.startswith("merge"):
        other = doctored(jax_certificate()) if command == "merge-differs" else jax_certificate()
        for name, data in (("a", torch_certificate()), ("b", other)):
            write_json(folder / f"{name}.json", data)
        files = [word for kind in ("markdown", "html") for word in (f"--{kind}", str(folder / f"m.{kind}"))]
        return ["merge", str(folder / "a.json"), str(folder / "b.json"), "--json", file, *files]
    if command == "parity":
        return ["parity", "--lane", "torch-cpu-eager", "--json", file, "--certificate", str(folder / "c.json")]
    return [command, *(["--target", "cpu", "--markdown", str(folder / "m.markdown")] if command == "audit" else []), "--json", file]


def _written(command: str) -> set[str]:
    if command.startswith("merge"):
        return {"a.json", "b.json", "matrix.json", "m.markdown", "m.html"}
    return {"help": set(), "lanes": {"matrix.json"}, "parity": {"matrix.json", "c.json"}, "audit": {"matrix.json", "m.markdown"}}[
        command
    ]


@contextmanager
def _nobody_reads() -> Iterator[int]:
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextmanager
def _full() -> Iterator[int]:
    with open("/dev/full", "w") as stream:
        yield stream.fileno()


def _run(words: list[str], stdout: int = subprocess.DEVNULL, closed: str = "", **environment: str) -> Any:
    command = [sys.executable, "-c", PROGRAM, *words]
    if closed:  # as the shell closes a stream
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", **environment}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_goes_away_changes_no_status_and_no_file(command: str, tmp_path: Path) -> None:
    """As `| head -1` does."""
    with _nobody_reads() as pipe:
        result = _run(_words(command, tmp_path), pipe, **FEW_LANES)
    assert result.returncode == VERDICT.get(command, 0), result.stderr
    assert "Error" not in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == _written(command)
    assert all(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_closed_changes_no_status_and_no_file(command: str, tmp_path: Path) -> None:
    """With all lanes: a compiler that is tried must not take the number of the stream either."""
    result = _run(_words(command, tmp_path), closed=">&-")
    assert result.returncode == VERDICT.get(command, 0), result.stderr
    assert {file.name for file in tmp_path.iterdir()} == _written(command)
    for file in tmp_path.glob("*.json"):
        json.loads(file.read_text())  # nothing that was printed went into a file that got the number of the stream


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_behind_the_output_is_said_and_the_files_are_written(command: str, tmp_path: Path) -> None:
    with _full() as full:
        result = _run(_words(command, tmp_path), full, **FEW_LANES)
    assert result.returncode == VERDICT.get(command, 74), result.stderr
    if command not in VERDICT:
        assert "what was printed could not be written: No space left on device." in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == _written(command)


@pytest.mark.parametrize(
    ("streams", "command"),
    [("2>&-", "merge"), (">&- 2>&-", "merge-differs"), ("<&- >&- 2>&-", "merge"), ("2>/dev/full", "merge-differs")],
)
def test_where_errors_go_changes_no_status_either(command: str, streams: str, tmp_path: Path) -> None:
    assert _run(_words(command, tmp_path), closed=streams).returncode == VERDICT.get(command, 0)
    assert _run(["merge", str(tmp_path / "missing.json")], closed=streams).returncode == 2
    assert _run(["merge", "--what"], closed=streams).returncode == 2


def test_a_terminal_without_box_drawing_gets_the_matrix(tmp_path: Path) -> None:
    result = _run(_words("merge", tmp_path), subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "180/180 bit-identical" in result.stdout


def test_what_nobody_expected_is_70_and_a_traceback() -> None:
    result = _run(["fail", "a.json"])
    assert result.returncode == 70
    assert "RuntimeError: planted" in result.stderr
    assert "It says nothing about lanes (exit status 70)." in result.stderr
    with _nobody_reads() as pipe:
        assert _run(["fail", "a.json"], pipe).returncode == 70


def test_nothing_that_was_compared_is_neither_agreement_nor_difference(tmp_path: Path) -> None:
    data = torch_certificate()
    for columns in data["lanes"][0]["balancers"].values():
        for label in columns:
            columns[label] = {"absent": "no such format"}
    write_json(tmp_path / "a.json", data)
    result = _run(["merge", str(tmp_path / "a.json")])
    assert result.returncode == 2
    assert "nothing was compared: every column of every lane is absent" in result.stderr


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers by Linux's /proc")
@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("whole_group", [True, False], ids=["as-the-terminal-does", "the-command-alone"])
def test_ctrl_c_is_130_at_once_and_leaves_nobody_behind(whole_group: bool, tmp_path: Path) -> None:
    """Workers, and the process that a worker starts for the sharded lane, end too."""
    words = ["parity", "--lane", "jax-cpu-sharded", "--lane", "jax-cpu-jit", "--json", str(tmp_path / "m.json")]
    process = subprocess.Popen(
        [sys.executable, "-c", "from loss_balancers.parity.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def grandchildren() -> list[int]:
        return [grandchild for child in _children(process.pid) for grandchild in _children(child)]

    try:
        # Both workers and the grandchild have loaded JAX, so that none is just starting and finds its parent gone.
        assert _wait_for(lambda: len(_with_jax(_children(process.pid))) == 2 and _with_jax(grandchildren()), 120)
        family = [*_children(process.pid), *grandchildren()]
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - start < 20
        assert process.returncode == 130, errors
        # A process that is just starting, and gets the signal too, says so.
        assert whole_group or "Traceback" not in errors
        assert _wait_for(lambda: not [pid for pid in family if Path(f"/proc/{pid}/cmdline").exists() and _alive(pid)], 10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # which closes the pipes: else a later test is blamed for them
    assert list(tmp_path.iterdir()) == []


def _with_jax(pids: list[int]) -> list[int]:
    """Those of these processes that have loaded JAX."""
    return [pid for pid in pids if "/jaxlib/" in _read(Path(f"/proc/{pid}/maps"))]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
