"""Empty environments; and such without a network, whose pip finds what is installed here, packed into wheels again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

OURS = "loss-balancers"
#: What is of an installation and not of a wheel.
_OF_AN_INSTALLATION = {"INSTALLER", "RECORD", "REQUESTED", "WHEEL", "direct_url.json"}


class Environment:
    """An empty environment."""

    def __init__(self, folder: Path, wheels: Path | None = None) -> None:
        """Makes the environment in ``folder``. With ``wheels`` its pip finds nothing but the wheels of that folder."""
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        # Neither the paths of whoever makes it nor, where nothing else is to be found, the indexes and constraints.
        dropped = ("PYTHON", "VIRTUAL_ENV", *(["PIP_"] if wheels else []))
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        if wheels:
            alone = {"CONFIG_FILE": os.devnull, "FIND_LINKS": wheels.as_uri(), "NO_COMPILE": "1", "NO_INDEX": "1"}
            self.variables |= {f"PIP_{name}": value for name, value in alone.items()}

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment."""
        command = [str(self.bin / words[0]), *words[1:]]
        return subprocess.run(command, cwd=cwd, env=self.variables, capture_output=True, text=True, timeout=1200, check=False)

    def resolved(self, *requirements: str, cwd: Path) -> list[str]:
        """The names of all that ``pip install`` would install."""
        words = ["--dry-run", "--quiet", "--report", "-", *requirements]
        done = self.run("pip", "install", *words, cwd=cwd)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return [found["metadata"]["name"] for found in json.loads(done.stdout)["install"]]


def wheels_of_what_is_here(folder: Path) -> None:
    """Writes a wheel for each installed distribution, of its metadata alone: enough to resolve, and PyTorch has a gigabyte.

    What only a host with a GPU or TPU has is taken to exist in the version that is asked for.
    """
    found = {_slug(here.name): here for here in distributions()}
    here = {slug: one for slug, one in found.items() if slug != _slug(OURS)}
    for one in here.values():
        pack(one, folder, whole=False)
    for text in [*_requirements(distribution(OURS)), *_requirements(here["jax"])]:
        wanted = Requirement(text)
        slug = _slug(wanted.name)
        if slug not in found:
            version = next(iter(re.findall(r"\d[\d.]*\d|\d", str(wanted.specifier))), "1")
            lines = f"Metadata-Version: 2.1\nName: {wanted.name}\nVersion: {version}\n"
            _write(folder, slug, version, {"METADATA": lines.encode()})


def pack(one: Distribution, folder: Path, *, whole: bool) -> None:
    """Writes the wheel of an installed distribution, over one of the same version."""
    files = {}
    for path in one.files or ():
        in_metadata = path.parts[0].endswith(".dist-info")
        if path.parts[0] == ".." or path.suffix == ".pyc" or (in_metadata and path.name in _OF_AN_INSTALLATION):
            continue
        if in_metadata:
            files["/".join(path.parts[1:])] = path.read_binary()
        elif whole:
            files[f"../{path.as_posix()}"] = path.read_binary()
    _write(folder, _slug(one.name), one.version, files)


def _write(folder: Path, slug: str, version: str, files: dict[str, bytes]) -> None:
    """Writes a wheel; names are relative to its metadata. It fits this interpreter, whatever its tag says: it came from here."""
    info = f"{slug}-{version}.dist-info"
    tag = "py3-none-any"
    entries = {os.path.normpath(f"{info}/{name}"): data for name, data in files.items()}
    entries[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    entries[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*entries, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / f"{slug}-{version}-{tag}.whl", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _requirements(one: Distribution) -> Iterable[str]:
    return one.requires or ()


def _slug(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
