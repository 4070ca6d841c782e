"""`make release-check`: all that a release takes, except for the upload. It ends at the first step that finds a fault.

The variable ``TAG`` names the tag that is released, such as v1.2.3. Without it, this is a rehearsal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

from environments import Environment
from packaging.version import Version
from release_probes import PROBES, faults_of_probes

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
#: The extras that are resolved and not installed: they add tools to those of `PROBES`, or what a device's compiler needs.
#: By what they are called, with the file of their versions: Tunix has an older transformers than the other training loops.
RESOLVED = {
    "audit-tpu,audit-cuda,audit-torch,test,browser,dev,hosts,keras,modelopt,transformers": "constraints.txt",
    "tunix": "constraints-tunix.txt",
}

#: Returns what is wrong, in words; nothing if all is well.
Step = Callable[[], list[str]]


def main() -> int:
    """The exit status: 0 if the files in ``dist`` are fit to be uploaded."""
    tag = os.environ.get("TAG", "")  # not an argument: a shell would read what the name of a tag may hold
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    steps: dict[str, Step] = {
        "the checkout has no changes": lambda: changes(ROOT),
        f"version {version}, changelog and tag agree": lambda: version_faults(version, changelog, tag),
        "sdist and wheel are built": lambda: build(version),
        "an index takes their metadata": metadata_faults,
        "they hold what they should": contents_faults,
        **{f"the wheel works with {f'[{extra}]' if extra else 'no extra'}": install_step(extra) for extra in PROBES},
        **{f"the wheel resolves with [{extras}]": resolution_step(extras) for extras in RESOLVED},
    }
    begun = time.monotonic()
    for what, step in steps.items():
        print(f"==> {what}: ", end="", flush=True)
        started = time.monotonic()
        faults = step()
        print(f"{'NO' if faults else 'yes'} ({time.monotonic() - started:.0f} s)", *faults, sep="\n    ", flush=True)
        if faults:
            return 1
    print(f"All of it in {time.monotonic() - begun:.0f} s. In dist: {', '.join(file.name for file in built())}")
    return 0


# --- before the build -----------------------------------------------------------------------------------------------


def changes(checkout: Path) -> list[str]:
    """The files that are not as committed: the build would take them."""
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.splitlines()


def version_faults(version: str, changelog: str, tag: str) -> list[str]:
    """How the changelog, and the tag if there is one, contradict the version of `pyproject.toml`."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    if not sections or not sections[0].startswith("[Unreleased]\n"):
        return ["The first section of the changelog must be `## [Unreleased]`."]
    unreleased = sections[0].partition("\n")[2].strip()
    heads = [section.partition("\n")[0] for section in sections[1:]]
    faults = []
    released = []
    for head in heads:
        found = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", head)
        try:
            released.append((Version(found[1]), date.fromisoformat(found[2])) if found else None)
        except ValueError:
            released.append(None)
        if released[-1] is None:
            faults.append(f"A section of the changelog must begin as `## [1.2.3] - 2026-12-31`. Received `## {head}`.")
    if faults:
        return faults
    if any(not (above[0] > below[0] and above[1] >= below[1]) for above, below in pairwise(released)):
        faults.append(f"The sections of the changelog must be in order, the newest first. Received {', '.join(heads)}.")
    newest = released[0][0] if released else None
    if newest and newest > Version(version):
        faults.append(f"The version of pyproject.toml is {version}; the changelog has {newest}, which is newer.")
    if newest == Version(version) and unreleased:
        faults.append(f"The changelog has {version} and entries under [Unreleased]. Raise the version of pyproject.toml.")
    if tag and tag != f"v{version}":
        faults.append(f"The tag must be v{version}, with the version of pyproject.toml. Received {tag}.")
    if tag and newest != Version(version):
        faults.append(f"The changelog must have a section `## [{version}] - YYYY-MM-DD`. Its newest is {newest}.")
    return faults


# --- what is built --------------------------------------------------------------------------------------------------


def build(version: str) -> list[str]:
    """Builds into an empty ``dist``: the sdist from the checkout, and the wheel from the sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    found = faults_of_run([sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)])
    names = {file.name for file in built()}
    wanted = {f"loss_balancers-{version}.tar.gz", f"loss_balancers-{version}-py3-none-any.whl"}
    return found or ([] if names == wanted else [f"dist must hold {sorted(wanted)}. It has {sorted(names)}."])


def built() -> list[Path]:
    """What lies in ``dist``."""
    return sorted(DIST.glob("*"))


def metadata_faults() -> list[str]:
    """What twine says of the metadata. It has an environment of its own, so that it never chooses versions for ours."""

    def check(environment: Environment, folder: Path) -> list[str]:
        return faults_of_runs(
            environment,
            folder,
            ["pip", "install", "--quiet", "twine>=6.1"],
            ["twine", "check", "--strict", *map(str, built())],
        )

    return in_empty_environment(check)


def contents_faults() -> list[str]:
    """What the tests of packaging say of the built files, in place of files that they build."""
    command = [sys.executable, "-m", "pytest", "-q", "tools/tests/test_packaging.py"]
    return faults_of_run(command, LOSS_BALANCERS_DIST=str(DIST))


def install_step(extra: str) -> Step:
    """The step that installs the wheel with an extra, and probes it."""

    def check(environment: Environment, folder: Path) -> list[str]:
        return faults_of_runs(environment, folder, install(extra), ["pip", "check"]) or faults_of_probes(
            environment, folder, PROBES[extra]
        )

    return lambda: in_empty_environment(check)


def resolution_step(extras: str) -> Step:
    """Says why extras that are not installed here could not be."""

    def faults(environment: Environment, folder: Path) -> list[str]:
        return faults_of_runs(environment, folder, [*install(extras, RESOLVED[extras]), "--dry-run"])

    return lambda: in_empty_environment(faults)


def install(extras: str, constraints: str = "constraints.txt") -> list[str]:
    """The command that installs the wheel with extras, and with the versions that the tests run on."""
    (wheel,) = DIST.glob("*.whl")
    what = f"{wheel}[{extras}]" if extras else str(wheel)
    return ["pip", "install", "--quiet", "--constraint", str(ROOT / constraints), what]


# --- running --------------------------------------------------------------------------------------------------------


def in_empty_environment(check: Callable[[Environment, Path], list[str]]) -> list[str]:
    """What ``check`` finds in an environment that is gone afterwards, and in an empty folder beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        return check(Environment(Path(name) / "environment"), folder)


def faults_of_runs(environment: Environment, folder: Path, *commands: Sequence[str]) -> list[str]:
    """The output of the first command that fails. pip only warns of an extra that does not exist; here that is a fault."""
    for command in commands:
        done = environment.run(*command, cwd=folder)
        if done.returncode != 0 or re.search("loss-balancers .* does not provide the extra", done.stderr):
            return [" ".join(command), *(done.stdout + done.stderr).strip().splitlines()]
    return []


def faults_of_run(command: Sequence[str], **variables: str) -> list[str]:
    """The output of a command of this project's environment, if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines() if done.returncode != 0 else []


if __name__ == "__main__":
    sys.exit(main())
