"""The audit's command line: what it prints and writes, its exit status, and what it says where a compiler is missing."""

import json
import re
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest

from loss_balancers.audit import TARGETS, UnavailableError, Verdict
from loss_balancers.audit import __main__ as command
from loss_balancers.audit.expressions import comparison as kinds
from loss_balancers.audit.page import page
from loss_balancers.spec.errors import with_extra


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict("as specified", 3), 0),
        (Verdict("findings", 3, 0, (kinds.Finding("other operation", "a", "b", "[bold]line[/bold]"),)), 1),
        (Verdict("not established", reason="a loop"), 1),
        (Verdict("missed"), 1),
    ],
    ids=lambda value: getattr(value, "status", value),
)
def test_the_exit_status_and_the_report(verdict, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        command, "audit", lambda target, cases: ({case.name: verdict for case in cases}, {"jax": "1", "device": "a"})
    )
    file, markdown = tmp_path / "audit.json", tmp_path / "audit.md"
    assert command.main(["--target", "cpu", "--target", "cuda:sm_90", "--json", str(file), "--markdown", str(markdown)]) == status
    written = json.loads(file.read_text())
    assert markdown.read_text() == page(written)
    assert (f"**{verdict.status}**" in page(written)) == bool(status)
    assert list(written["matrix"]) == ["cpu", "cuda:sm_90"]
    assert {case["status"] for row in written["matrix"].values() for case in row.values()} == {verdict.status}
    printed = capsys.readouterr().out
    assert verdict.reason in printed
    assert all(finding.line in printed for finding in verdict.findings)
    assert "…" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--target is needed. The targets are tpu:v4, "),
        (["--target", "cuda:sm_1"], "there is no target 'cuda:sm_1'. The targets are tpu:v4, "),
        (["--target", "cpu", "--json", "/nowhere/at/all.json"], "--json: the folder /nowhere/at does not exist"),
        (["--target", "cpu", "--markdown", "/nowhere/at/all.md"], "--markdown: the folder /nowhere/at does not exist"),
    ],
)
def test_wrong_usage_is_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "package", "extra"), [("tpu:v6e", "libtpu", "audit-tpu"), ("cuda:sm_90", "jax-cuda13-plugin", "audit-cuda")]
)
def test_a_missing_compiler_names_its_extra(target, package, extra, monkeypatch, capsys):
    def missing(name):
        if name == package:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("loss_balancers.audit.compilers.targets.version", missing)
    assert command.main(["--target", target]) == 2
    expected = f"{target} needs {package}, which is not installed. {with_extra(extra)} Use an environment of its own."
    assert expected in capsys.readouterr().err


def test_a_compiling_process_that_fails_is_an_error_with_its_last_line(monkeypatch, tmp_path):
    def fails(*args, **options):
        raise subprocess.CalledProcessError(1, "worker", stderr="Traceback\nINTERNAL: libdevice not found")

    monkeypatch.setattr("loss_balancers.audit.compilers.targets.version", lambda name: "1")
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(UnavailableError, match=re.escape(f"libdevice not found. {with_extra('audit-cuda')}")):
        TARGETS["cuda:sm_90"].compile([], tmp_path)


def test_the_flags_that_the_user_has_set_reach_the_compiler_and_the_report(monkeypatch, tmp_path):
    given = {}

    def compiles(*args, env, **options):
        given.update(env)
        return subprocess.CompletedProcess(args, 0, '{"device": "cpu"}\n')

    monkeypatch.setattr(subprocess, "run", compiles)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    assert TARGETS["cpu"].compile([], tmp_path)["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"
    assert given["XLA_FLAGS"] == f"--xla_cpu_max_isa=AVX2 --xla_dump_to={tmp_path / 'dump'}"
    monkeypatch.delenv("XLA_FLAGS")
    assert "XLA_FLAGS" not in TARGETS["cpu"].compile([], tmp_path)
    assert given["XLA_FLAGS"] == f"--xla_dump_to={tmp_path / 'dump'}"
