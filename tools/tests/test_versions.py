"""Ranges of versions: what pip makes of them, that nothing is pinned from above, and that the page says what was measured."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import versions
from versions_page import FILE, page

from loss_balancers.parity.certificates.measured import measurements, said_of, versions_of
from loss_balancers.parity.lanes.known import MODES
from loss_balancers.spec.versions import OLDEST

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# --- the ranges -----------------------------------------------------------------------------------------------------


def requirements(extra: str) -> dict[str, str]:
    """What an extra asks for itself: from package to range."""
    return ranges(EXTRAS[extra])


def ranges(asked: list[str]) -> dict[str, str]:
    """From package to range."""
    return {re.split(r"[^\w-]", one)[0]: re.sub(r"^[\w-]+(\[.*\])?", "", one) for one in asked}


def test_the_floors_are_those_that_the_import_checks() -> None:
    asked = requirements("torch") | requirements("jax") | ranges(PROJECT["dependencies"])
    assert {name: asked[name] for name in OLDEST} == {name: f">={version}" for name, version in OLDEST.items()}


def test_nothing_that_a_user_trains_with_is_pinned_from_above() -> None:
    asked = [PROJECT["requires-python"], *PROJECT["dependencies"], *requirements("torch").values(), *requirements("jax").values()]
    assert not [one for one in asked if re.search(r"<|==|~=|!=|,", one)]


@pytest.mark.parametrize(
    ("extra", "compiler", "framework"),
    [
        ("audit-tpu", "libtpu", "jax"),
        ("audit-cuda", "jax-cuda13-plugin", "jax"),
        ("audit-torch", "triton", "torch"),
    ],
)
def test_the_audit_pins_a_compiler_with_its_framework(extra: str, compiler: str, framework: str) -> None:
    asked = requirements(extra)
    assert all(re.search(r"<|==", asked[name]) for name in (compiler, framework))


# --- pip ------------------------------------------------------------------------------------------------------------

#: A registry in a folder: the newest of everything that could move, and all that the extras ask for.
REGISTRY = {
    **{"torch": "99.0.0", "jax": "99.0.0", "jaxlib": "99.0.0", "numpy": "99.0.0"},
    **{"optax": "99.0.0", "jaxtyping": "99.0.0", "safetensors": "99.0.0"},
}
#: From a version of Flax to the JAX that it asks for.
FLAX = {"0.10.7": "0.6.0", "0.12.6": "0.8.1", "99.0.0": "99"}
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "numpy"}


def metadata(name: str, version: str, *lines: str) -> str:
    return "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])


def wheel(folder: Path, name: str, version: str, *lines: str) -> Path:
    """A wheel with nothing in it."""
    file, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata(name.replace("_", "-"), version, *lines))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def moved(tmp_path: Path):
    """What `pip install --dry-run 'loss-balancers[EXTRA]'` would install beside packages that are there, as pip itself says."""

    def moved(extra: str, installed: dict[str, str], *asked_too: str) -> dict[str, str]:
        registry, environment = tmp_path / "registry", tmp_path / "environment"
        registry.mkdir()
        for name, version in REGISTRY.items():
            wheel(registry, name, version)
        for version, jax in FLAX.items():
            wheel(registry, "flax", version, f"Requires-Dist: jax>={jax}")
        asked = [f"Requires-Dist: {one}" for one in PROJECT["dependencies"]]
        asked += [f'Requires-Dist: {one}; extra == "{extra}"' for one in EXTRAS[extra]]
        ours = wheel(tmp_path, "loss_balancers", PROJECT["version"], f"Provides-Extra: {extra}", *asked)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        for name, version in installed.items():
            (site / f"{name}-{version}.dist-info").mkdir()
            (site / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata(name, version), "utf-8")
        report = tmp_path / "report.json"
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet", "--dry-run"]
        pip += ["--no-index", "--find-links", str(registry), "--report", str(report), f"loss-balancers[{extra}] @ {ours.as_uri()}"]
        pip += asked_too
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        run = subprocess.run(
            pip, env={**own, "PIP_CONFIG_FILE": os.devnull}, capture_output=True, text=True, check=False, timeout=600
        )
        assert run.returncode == 0, run.stderr
        return {one["metadata"]["name"]: one["metadata"]["version"] for one in json.loads(report.read_text("utf-8"))["install"]}

    return moved


@pytest.mark.parametrize(
    ("extra", "installed"),
    [
        ("torch", {"torch": "2.9.1+cu128", "numpy": "1.26.4"}),
        ("torch", {"torch": "2.8.0", "numpy": "2.3.5"}),
        ("torch", {"torch": "2.15.0+cu132", "numpy": "2.5.5"}),
        ("jax", {"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.12", "numpy": "2.5.5"}),
        ("jax", {"jax": "0.6.2", "jaxlib": "0.6.2", "flax": "0.10.7", "numpy": "1.26.4"}),
        ("jax", {"jax": "0.12.0.1", "jaxlib": "0.12.0.1", "flax": "0.12.12", "numpy": "2.5.5"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(list(value.values())[:1]),
)
def test_no_framework_moves(moved, extra: str, installed: dict[str, str]) -> None:
    found = moved(extra, installed)
    assert "loss-balancers" in found
    assert not FRAMEWORKS & found.keys(), found


@pytest.mark.parametrize(
    ("extra", "installed", "moves"),
    [
        ("torch", {"torch": "2.7.1", "numpy": "2.3.5"}, {"torch"}),
        ("jax", {"jax": "0.6.1", "jaxlib": "0.6.1", "flax": "0.10.7", "numpy": "2.3.5"}, {"jax"}),
        ("jax", {"jax": "0.6.2", "jaxlib": "0.6.2", "flax": "0.10.6", "numpy": "2.3.5"}, {"flax", "jax"}),
        ("torch", {"torch": "2.8.0", "numpy": "1.25.2"}, {"numpy"}),
    ],
    ids=["torch", "jax", "flax", "numpy"],
)
def test_one_below_the_floor_does(moved, extra: str, installed: dict[str, str], moves: set[str]) -> None:
    assert FRAMEWORKS & moved(extra, installed).keys() == moves


@pytest.mark.parametrize(
    ("installed", "flax"),
    [({"jax": "0.8.3"}, "0.12.6"), ({"jax": "0.6.2", "flax": "0.10.6"}, "0.10.7")],
    ids=["without Flax", "an old Flax"],
)
def test_a_jax_that_is_named_stays_where_flax_is_missing_or_old(moved, installed: dict[str, str], flax: str) -> None:
    """As README and the error say: the newest Flax asks for a new JAX."""
    jax = installed["jax"]
    found = moved("jax", {**installed, "jaxlib": jax, "numpy": "2.3.5"}, f"jax=={jax}")
    assert {name: version for name, version in found.items() if name in FRAMEWORKS} == {"flax": flax}


# --- what was measured ----------------------------------------------------------------------------------------------


def test_the_page_is_of_what_was_measured() -> None:
    assert FILE.read_text("utf-8") == page(measurements())


def test_the_pairs_cover_the_floors_and_three_pythons() -> None:
    asked = " ".join(" ".join(pair.packages) for pair in versions.PAIRS)
    assert {f"{name}=={version}" for name, version in OLDEST.items()} <= {*asked.replace(".0 ", " ").replace(".* ", " ").split()}
    assert {pair.python for pair in versions.PAIRS} == {"3.11", "3.12", "3.13"}
    assert [pair["name"] for pair in measurements()] == [pair.name for pair in versions.PAIRS]


def test_a_measured_pair_ran_every_lane_of_a_cpu_or_says_why_not() -> None:
    lanes = {f"{framework}-cpu-{mode}" for framework, modes in MODES.items() for mode in modes}
    for pair in measurements():
        assert pair["results"] or pair["why"]
        if pair["results"]:
            assert pair["lanes"].keys() | pair["absent"].keys() == lanes, pair["name"]
            assert sum(results for _, results in pair["lanes"].values()) == pair["results"]
            assert sum(identical for identical, _ in pair["lanes"].values()) == pair["identical"]


def test_what_was_measured_is_identical_and_passed() -> None:
    for pair in measurements():
        assert pair["good"], pair["name"]
        assert pair["identical"] == pair["results"]
        assert "failed" not in (pair["tests"] or "")


def test_a_pair_that_is_not_measured_again_keeps_what_was_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "RESULTS", tmp_path / "versions.json")
    monkeypatch.setattr(versions, "FILE", tmp_path / "versions.md")
    monkeypatch.setattr(versions, "measurements", lambda: json.loads((tmp_path / "versions.json").read_text("utf-8")))
    before = measurements()[0]
    versions.keep(before)
    versions.keep({**before, "identical": 0, "results": 0, "lanes": {}, "why": "pip cannot install it", "good": False})
    (kept,) = versions.measurements()
    assert kept == {**before, "why": "pip cannot install it"}
    assert f"{before['results']:,}; since then not measured: pip cannot install it" in (tmp_path / "versions.md").read_text("utf-8")


def test_a_pair_that_is_asked_for_and_has_no_python_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "find_python", lambda version: None)
    for arguments, status in (["--vectors-only"], 0), (["--vectors-only", "--pair", "oldest"], 1):
        monkeypatch.setattr(sys, "argv", ["versions.py", *arguments])
        assert versions.main() == status


def test_a_version_with_a_difference_is_not_said_to_be_identical() -> None:
    pair = {"versions": {"torch": "2.9.1+cu128", "jax": "0.8.3"}, "identical": 12, "results": 12, "created": "2026-11-28T01:02:03Z"}
    later = {**pair, "versions": {"torch": "2.10.0", "jax": "0.9.0"}}
    assert versions_of("torch", [later, pair]) == ["2.9.1", "2.10.0"]
    assert said_of("torch", "2.9.1+cpu", [pair, later]) == (
        "torch 2.9.1+cpu: on a CPU all golden vectors of 2026-11-28 were bit-identical on this version, beside jax 0.8.3 "
        "(docs/evidence/versions.md)"
    )
    for other in ({**pair, "identical": 11}, {**pair, "identical": 0, "results": 0}, {**pair, "versions": {}, "results": 0}):
        said = said_of("torch", "2.9.1", [other, later])
        assert said.startswith(
            "torch 2.9.1: golden vectors were not measured on this version, but on 2.10.0 (docs/evidence/versions.md)"
        )


def test_an_interpreter_that_does_not_start_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 127\n", "utf-8")
    (tmp_path / "python3.12").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 11))
    assert versions.find_python("3.12") is None
    assert versions.find_python("3.13") is None
    assert versions.find_python("3.11") == sys.executable
    found = versions.measure(versions.Pair("lacking", "3.13", ("torch",)), quickly=False)
    assert (found["results"], found["why"]) == (0, "there is no Python 3.13 on PATH")
