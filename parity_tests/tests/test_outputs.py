"""Every output option of the command line: a link is followed, and a device or a pipe is written into."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import few_vectors, torch_certificate
from typer.testing import CliRunner

from loss_balancers.audit import Verdict
from loss_balancers.audit import __main__ as audit
from loss_balancers.parity import run
from loss_balancers.parity.cli import app
from loss_balancers.parity.files import write_json
from loss_balancers.parity.golden import vectors
from loss_balancers.parity.lanes import survey
from loss_balancers.parity.lanes.known import find_lanes

COMMANDS = {
    "parity": ["parity", "--lane", "torch-cpu-eager"],
    "merge": ["merge", "certificate.json"],
    "lanes": ["lanes"],
    "audit": ["audit", "--target", "cpu"],
}
#: Each output, and how the text begins that it gets.
OUTPUTS = {
    ("parity", "--certificate"): "{",
    ("parity", "--json"): "{",
    ("merge", "--json"): "{",
    ("merge", "--markdown"): "# Parity",
    ("merge", "--html"): "<!doctype html>",
    ("lanes", "--json"): "{",
    ("audit", "--json"): "{",
    ("audit", "--markdown"): "#",
}
#: Options with a path to read from.
INPUTS = {"audit_file"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The commands without the work, in a folder with a certificate."""
    verdict = Verdict("as specified", 3)
    eager = next(lane for lane in find_lanes() if lane.name == "torch-cpu-eager")
    monkeypatch.setattr(vectors, "installed_vectors", few_vectors)
    # In this process: a fresh one takes seconds to begin.
    monkeypatch.setattr(run, "run_lanes", lambda chosen, groups, done: run.Ran({eager.name: run.run_lane(eager, groups)}, {}, {}))
    monkeypatch.setattr(survey, "survey", lambda known, groups: {"lanes": []})
    monkeypatch.setattr(survey, "print_survey", lambda found, console: None)
    monkeypatch.setattr(audit, "audit", lambda target, cases: ({case.name: verdict for case in cases}, {"jax": "1", "device": "a"}))
    monkeypatch.chdir(tmp_path)
    write_json(Path("certificate.json"), torch_certificate())
    yield
    assert not [name for name in os.listdir() if name.endswith(".partial")]


@pytest.fixture
def _never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is renamed, so that no device of this machine can be lost."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(os, "replace", refuse)


def invoke(command: str, *options: str) -> None:
    result = CliRunner().invoke(app, [*COMMANDS[command], *options], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, (result.output, result.exception)


def test_these_are_all_outputs() -> None:
    found = {
        (command.callback.__name__, option)
        for command in app.registered_commands
        if command.callback is not None
        for option in _outputs(command.callback)
    }
    assert found == set(OUTPUTS)


def _outputs(command: Callable[..., object]) -> list[str]:
    """The options of a command that take a path to write to. `merge --audit` reads one."""
    annotations = {name: annotation for name, annotation in command.__annotations__.items() if name not in INPUTS}
    return [f"--{name.removesuffix('_file')}" for name, annotation in annotations.items() if "Annotated[Path | None" in annotation]


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_a_link_is_followed_and_the_mode_kept(command: str, option: str) -> None:
    Path("target").touch(0o600)
    Path("link").symlink_to("target")
    invoke(command, option, "link")
    assert Path("link").is_symlink()
    assert stat.S_IMODE(Path("target").stat().st_mode) == 0o600
    assert Path("target").read_text("utf-8").startswith(OUTPUTS[command, option])


@pytest.mark.usefixtures("_never_replaced")
@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_a_device_stays_one(command: str, option: str) -> None:
    invoke(command, option, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.usefixtures("_never_replaced")
@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_standard_output_is_written_to(command: str, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    invoke(command, option, "/dev/stdout")
    assert OUTPUTS[command, option] in capfd.readouterr().out  # of the descriptor: what is printed goes to the runner


@pytest.mark.usefixtures("_never_replaced")
@pytest.mark.parametrize("command", ["parity", "merge", "audit"])
def test_two_outputs_may_go_to_one_device(command: str) -> None:
    invoke(command, *(word for of, option in OUTPUTS if of == command for word in (option, "/dev/null")))


def test_a_link_that_leads_nowhere_is_found_before_the_work() -> None:
    Path("link").symlink_to("absent/x")
    Path("loop").symlink_to("loop")
    for name, words in (("link", "absent does not exist. Create it first."), ("loop", "loop cannot be written: Too many levels")):
        result = CliRunner().invoke(app, ["merge", "certificate.json", "--json", name], env={"COLUMNS": "400", "TERM": "dumb"})
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
        assert "bit-identical" not in result.output


def test_a_file_that_the_audit_cannot_write_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert audit.main(["--target", "cpu", "--json", "folder"]) == audit.USAGE_ERROR
    assert "loss-balancers: a file cannot be written: [Errno 21] Is a directory: 'folder'." in capsys.readouterr().err
