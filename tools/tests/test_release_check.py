"""The release check finds what must not be released. `make release-check` runs it for real."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import release_check
import yaml
from release_check import RESOLVED, ROOT, changes, faults_of_run, faults_of_runs, version_faults
from release_probes import NO_JAX, PROBES, SPEC, Probe, faults_of_probes

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
OLD = "## [0.1.0] - 2026-12-01\n\n- Something.\n"
NEW = "## [0.2.0] - 2026-12-24\n\n- More.\n"


def changelog(*sections: str, unreleased: str = "") -> str:
    return "\n".join(["# Changelog\n", f"## [Unreleased]\n\n{unreleased}", *sections])


@pytest.fixture
def here() -> Any:
    """This project's environment in place of an empty one."""

    def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    return SimpleNamespace(run=run)


# --- version, changelog, tag ----------------------------------------------------------------------------------------


def test_this_project_s_version_and_changelog_agree() -> None:
    assert version_faults(PROJECT["version"], (ROOT / "CHANGELOG.md").read_text("utf-8"), "") == []


@pytest.mark.parametrize(
    ("version", "text", "tag"),
    [
        ("0.1.0", changelog(unreleased="- Something.\n"), ""),
        ("0.1.0", changelog(OLD), "v0.1.0"),
        ("0.2.0", changelog(OLD, unreleased="- More.\n"), ""),
        ("0.2.0", changelog(NEW, OLD), "v0.2.0"),
    ],
    ids=["before the first release", "the first release", "between", "a release"],
)
def test_what_agrees(version: str, text: str, tag: str) -> None:
    assert version_faults(version, text, tag) == []


@pytest.mark.parametrize(
    ("version", "text", "tag", "words"),
    [
        ("0.1.0", f"# Changelog\n\n{OLD}", "", "first section"),
        ("0.1.0", changelog("## [0.1.0]\n"), "", "Received `## [0.1.0]`"),
        ("0.1.0", changelog("## [0.1.0] - 2026-02-30\n"), "", "2026-02-30"),
        ("0.2.0", changelog(OLD, NEW), "", "newest first"),
        ("0.1.0", changelog(NEW, OLD), "", "has 0.2.0, which is newer"),
        ("0.2.0", changelog(NEW, OLD, unreleased="- Later.\n"), "", "Raise the version"),
        ("0.2.0", changelog(NEW, OLD, unreleased="- Later.\n"), "v0.2.0", "Raise the version"),
        ("0.2.0", changelog(NEW, OLD), "v0.2", "The tag must be v0.2.0"),
        ("0.2.0", changelog(NEW, OLD), "0.2.0", "The tag must be v0.2.0"),
        ("0.2.0", changelog(OLD, unreleased="- More.\n"), "v0.2.0", "must have a section `## [0.2.0]"),
        ("0.1.0", changelog(unreleased="- Something.\n"), "v0.1.0", "must have a section `## [0.1.0]"),
    ],
)
def test_what_disagrees(version: str, text: str, tag: str, words: str) -> None:
    assert words in "\n".join(version_faults(version, text, tag))


# --- the other steps ------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_committed_is_found(tmp_path: Path) -> None:
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, env=os.environ | alone, check=True)
    assert changes(tmp_path) == []
    (tmp_path / "new.py").touch()
    assert changes(tmp_path) == ["?? new.py"]


def test_probes_find_what_works_though_it_must_not_and_the_reverse(here: Any, tmp_path: Path) -> None:
    assert faults_of_probes(here, tmp_path, [SPEC]) == []
    (found, *_) = faults_of_probes(here, tmp_path, [NO_JAX])  # JAX is here
    assert "expected exit status 1" in found
    (found, *_) = faults_of_probes(here, tmp_path, [Probe(["loss-balancers", "merge", "nowhere.json"], 0)])
    assert "expected exit status 0" in found
    (found, *_) = faults_of_probes(here, tmp_path, [SPEC._replace(said="a word that it does not say")])
    assert "a word that it does not say" in found


def test_every_extra_is_installed_or_resolved() -> None:
    assert {*PROBES, *",".join(RESOLVED).split(",")} == {"", *PROJECT["optional-dependencies"]}


def test_a_command_that_fails_is_a_fault_with_its_output(here: Any, tmp_path: Path) -> None:
    fails = ["python", "-c", "raise SystemExit('words')"]
    assert faults_of_runs(here, tmp_path, ["python", "-c", ""]) == []
    assert faults_of_runs(here, tmp_path, ["python", "-c", ""], fails)[-1] == "words"
    assert faults_of_run([sys.executable, *fails[1:]]) == ["words"]
    warns = "import sys; print('WARNING: loss-balancers 0.1.0 does not provide the extra', file=sys.stderr)"
    assert faults_of_runs(here, tmp_path, ["python", "-c", warns])[-1].startswith("WARNING")


def test_it_ends_at_the_first_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAG", "v0.0.0")
    monkeypatch.setattr(release_check, "changes", lambda checkout: [])
    monkeypatch.setattr(release_check, "build", lambda version: pytest.fail("it went on"))
    assert release_check.main() == 1
    assert "Received v0.0.0." in capsys.readouterr().out


# --- where the version is, and the workflow -------------------------------------------------------------------------


def test_no_other_file_states_the_version() -> None:
    """Certificates and pages of evidence say which version they are of; nothing else does."""
    parts = [ROOT / part / "loss_balancers" for part in ("spec", "torch_impl", "jax_impl", "keras_impl", "parity_tests")]
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", WORKFLOW, *ROOT.glob("docs/*.md")]
    files += [file for part in parts for file in part.rglob("*.py")]
    stated = f'"{PROJECT["version"]}"', f"v{PROJECT['version']}", f"loss-balancers {PROJECT['version']}", "__version__ ="
    assert [file.name for file in files if any(words in file.read_text("utf-8") for words in stated)] == []


def test_the_workflow_uploads_what_was_checked_and_holds_no_secret() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    check, publish = workflow["jobs"]["check"], workflow["jobs"]["publish"]
    rows, run = (step for step in check["steps"] if "run" in step)
    assert rows["run"] == "make test-all"
    assert (run["run"], run["env"]) == ("make release-check", {"TAG": "${{ github.ref_name }}"})
    assert "permissions" not in check
    assert publish["needs"] == "check"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    uses = [step.get("uses", "").partition("@")[0] for step in publish["steps"]]
    assert uses == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]  # no checkout: nothing is built again
    assert "secrets." not in WORKFLOW.read_text("utf-8")
