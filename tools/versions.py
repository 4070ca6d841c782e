"""`make versions`: golden vectors and unit tests on other versions of Python, PyTorch, JAX and Flax.

Pairs of the oldest versions, the newest, and some between, each in an environment of its own. What came
out is kept with the kit, and `versions_page.py` makes the page of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from versions_page import FILE, page

from loss_balancers.parity.certificates import measured
from loss_balancers.parity.certificates.host import FRAMEWORKS
from loss_balancers.parity.certificates.measured import measurements
from loss_balancers.parity.files import write_json, write_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(measured.__file__).parent / measured.FILE
#: Environments of 5 to 7 GB each, made once, and beside each what came out there.
FOLDER = ROOT / ".venv-versions"
#: What the lanes and the unit tests need besides the frameworks.
PROJECT = ("-e", f"{ROOT}[test]", "beartype>=0.22", "orbax-checkpoint>=0.11", "pytest-xdist>=3.8")
TESTS = ("spec/tests", "torch_impl/tests", "jax_impl/tests", "parity_tests/tests/each_framework")
PARITY = ("-c", "from loss_balancers.parity.cli import main; main()", "parity", "--json")
#: The golden vectors as `make test` has them: all in eager PyTorch, and shared out among the other lanes of each framework.
SHARED_OUT = ("parity_tests/tests/test_golden.py",)


class Pair(NamedTuple):
    """Versions that run together: of Python, and what pip is asked for. ``tested`` is whether the unit tests run too."""

    name: str
    python: str
    packages: tuple[str, ...]
    tested: bool = False


PAIRS = (
    Pair("oldest", "3.11", ("torch==2.8.0", "jax==0.6.2", "flax==0.10.7", "numpy==1.26.*"), tested=True),
    Pair("torch2.9-jax0.8", "3.12", ("torch==2.9.1", "jax==0.8.3", "flax")),
    Pair("torch2.11-jax0.11", "3.12", ("torch==2.11.0", "jax==0.11.2", "flax"), tested=True),
    Pair("torch2.13-jax0.10", "3.11", ("torch==2.13.0", "jax==0.10.2", "flax")),
    Pair("newest", "3.13", ("torch", "jax", "flax"), tested=True),
)


def main() -> int:
    """The exit status: 0 if all that ran is bit-identical and passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", action="append", choices=[pair.name for pair in PAIRS], help="this pair only; may be given again")
    parser.add_argument(
        "--vectors-only",
        action="store_true",
        help="no unit tests, vectors as `make test` shares them out among the lanes, and nothing is written",
    )
    parser.add_argument("--install-only", action="store_true", help="make the environments, and measure nothing")
    parser.add_argument("--discard", action="store_true", help="remove each environment after use")
    given = parser.parse_args()
    chosen = [pair for pair in PAIRS if not given.pair or pair.name in given.pair]
    good = True
    for number, pair in enumerate(chosen, 1):
        begun = time.monotonic()
        say(f"[{number}/{len(chosen)}] {pair.name}: Python {pair.python}, {', '.join(pair.packages)}")
        if given.install_only:
            good &= (interpreter := find_python(pair.python)) is not None and environment(pair, interpreter) is not None
            continue
        found = measure(pair, given.vectors_only)
        # A Python that is not here is no fault, unless just this pair was asked for.
        good &= found["good"] and not (given.pair and found["why"])
        say(f"{pair.name}: {found['why'] or 'measured'} ({time.monotonic() - begun:.0f} s)")
        if not given.vectors_only:
            keep(found)
        if given.discard:
            shutil.rmtree(FOLDER / pair.name, ignore_errors=True)
    return 0 if good else 1


def say(text: str) -> None:
    """Progress, at once also where it goes to a file."""
    print(f"==> {text}", flush=True)


def keep(found: dict[str, Any]) -> None:
    """Writes what was found of a pair where the kit and the page have it. Where nothing was, what was measured earlier stays."""
    earlier = {pair["name"]: pair for pair in (measurements() if RESULTS.exists() else [])}
    before = earlier.get(found["name"], found)
    stays = before["results"] and not found["results"]
    earlier[found["name"]] = {**before, "why": found["why"]} if stays else found
    ordered = [earlier[pair.name] for pair in PAIRS if pair.name in earlier]
    write_json(RESULTS, ordered)
    write_text(FILE, page(ordered))


def measure(pair: Pair, quickly: bool) -> dict[str, Any]:
    """Runs a pair: all vectors and, if it is one of those that are tested, the unit tests; or, quickly, vectors shared out.

    Returns:
        ``versions`` by package; ``identical`` of ``results``, in all and in ``lanes`` by lane; ``absent``, the lanes that did not
        run, each with the reason; ``tests``, how the unit tests ended; ``why`` nothing was measured, if nothing was; whether all
        is ``good``.
    """
    found: dict[str, Any] = {"name": pair.name, "asked": [f"python {pair.python}", *pair.packages], "versions": {}, "good": True}
    found |= {"identical": 0, "results": 0, "lanes": {}, "absent": {}, "tests": None, "why": None}
    if (interpreter := find_python(pair.python)) is None:
        return {**found, "why": f"there is no Python {pair.python} on PATH"}
    if (python := environment(pair, interpreter)) is None:
        return {**found, "why": "pip cannot install it", "good": False}
    if quickly:
        found["tests"], found["good"] = run_tests(python, SHARED_OUT)
        return found
    file = FOLDER / f"{pair.name}.json"
    file.unlink(missing_ok=True)
    status = subprocess.run([python, *PARITY, str(file)], cwd=ROOT, check=False).returncode
    if not file.exists():
        return {**found, "why": f"`loss-balancers parity` ended with {status}", "good": False}
    found |= of_matrix(json.loads(file.read_text("utf-8"))) | {"good": status == 0}
    if pair.tested:
        found["tests"], passed = run_tests(python, TESTS)
        found["good"] &= passed
    return found


def of_matrix(matrix: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a matrix."""
    (made,) = matrix["certificates"]
    lanes: dict[str, tuple[int, int]] = {}
    for cell in matrix["cells"]:
        identical, results = lanes.get(lane := cell["lane"].partition(":")[2], (0, 0))
        lanes[lane] = identical + cell["identical"], results + cell["vectors"]
    return {
        "versions": {"python": made["host"]["python"], **{name: made["frameworks"][name] for name in FRAMEWORKS}},
        "system": f"{made['host']['system']} {made['host']['machine']}",
        "processor": made["host"]["processor"],
        "created": made["created"],
        **{key: matrix[key] for key in ("identical", "results")},
        "lanes": lanes,
        "absent": {column["lane"].partition(":")[2]: column["reason"] for column in matrix["absent"]},
    }


def find_python(version: str) -> str | None:
    """An interpreter of this version: this one, or the one on PATH, if it starts."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == version:
        return sys.executable
    found = shutil.which(f"python{version}")
    started = found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
    return found if started else None


def environment(pair: Pair, interpreter: str) -> str | None:
    """The pair's environment, made if it is missing or older than the packages that the project asks for; None if pip cannot."""
    folder = FOLDER / pair.name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    asked = [*pair.packages, *PROJECT]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = [asked, project["build-system"], project["project"], project["tool"]["hatch"]]
    state = hashlib.sha256(json.dumps(needed).encode()).hexdigest()
    if stamp.exists() and stamp.read_text("utf-8") == state:
        return str(python)
    say("installing; PyTorch for CUDA, where no build for the CPU is at hand, has 3 GB")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    # No cache: the environment is one.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", *asked]
    if subprocess.run(pip, check=False).returncode != 0:
        return None
    stamp.write_text(state, "utf-8")
    return str(python)


def run_tests(python: str, tests: Sequence[str]) -> tuple[str, bool]:
    """How tests end, such as "812 passed, 3 skipped", and whether none failed."""
    # Warnings of other versions are other ones; that ours raise none, `make test` holds.
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-o", "filterwarnings=", *tests]
    # A version is measured with what it compiles itself, not with what it finds compiled (`conftest.py`).
    environment = {**os.environ, "PYTHONPATH": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout or ():  # a line at a time, since it takes minutes
            print(line, end="", flush=True)
            last = line
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed)", last)
    return ", ".join(counts) or "did not run", run.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
