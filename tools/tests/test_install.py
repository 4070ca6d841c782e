"""Every install line of the documents works as written, in an empty environment; so does what errors say to install."""

import re
import shlex
import shutil
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from environments import Environment, pack, wheels_of_what_is_here

from loss_balancers.audit import TARGETS
from loss_balancers.spec import errors

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "your_twins"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
#: What stands after `pip install`, up to the end of the line, of the code or of the command.
LINE = re.compile(r"\bpip install ([^`&#\n]*[^`&#\n ])")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *sorted(file for file in (ROOT / "docs").rglob("*.md")),
    *sorted(file for pattern in ("*.md", "*.yml") for file in (ROOT / "examples").rglob(pattern)),
]


def folder_of(document: Path) -> str:
    """Where the lines of a document are typed: the checkout, the example within it, or a repository of the example's own."""
    if not document.is_relative_to(EXAMPLE):
        return "checkout"
    return "example" if document.suffix == ".md" else "own"


LINES = {
    (folder_of(document), line): f"{document.relative_to(ROOT)}: {line}"
    for document in DOCUMENTS
    for line in LINE.findall(document.read_text("utf-8"))
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheels_of_what_is_here(folder)
    return folder


@pytest.fixture(scope="module")
def empty(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that has what builds, and that nothing is installed into."""
    environment = Environment(tmp_path_factory.mktemp("empty") / "environment", wheels)
    for name in environment.resolved("hatchling", cwd=wheels):
        pack(distribution(name), wheels, whole=True)
    environment.run("pip", "install", "hatchling", cwd=wheels)
    # pip reads 0 as "no isolation". With an environment for each build every line takes twice the time.
    environment.variables["PIP_NO_BUILD_ISOLATION"] = "0"
    return environment


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    own = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("own") / "your_twins"))
    (own / "loss-balancers").symlink_to(ROOT)  # its submodule
    return {"checkout": ROOT, "example": EXAMPLE, "own": own}


def faults(empty: Environment, line: str, folder: Path) -> str:
    """What is wrong with an install line; nothing if it works."""
    done = empty.run("pip", "install", "--dry-run", *shlex.split(line), cwd=folder)
    if done.returncode != 0:
        return done.stderr
    unknown = re.findall("(?:loss-balancers|your-twins) .* does not provide .*", done.stderr)
    missing = [] if f"loss-balancers-{version('loss-balancers')}" in done.stdout else ["loss-balancers would not be installed"]
    return "\n".join([*unknown, *missing])


def test_the_lines_are_found() -> None:
    assert {folder for folder, _ in LINES} == {"checkout", "example", "own"}
    assert {("checkout", "'.[torch]'"), ("checkout", "'.[parity]' 'jax[tpu]'"), ("own", "'./loss-balancers[merge]'")} <= set(LINES)


@pytest.mark.parametrize(("folder", "line"), LINES, ids=LINES.values())
def test_an_install_line_works_as_written(empty: Environment, folders: dict[str, Path], folder: str, line: str) -> None:
    assert faults(empty, line, folders[folder]) == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("'loss-balancers[torch]'", "No matching distribution found for loss-balancers"),  # on no index yet
        ("'.[torhc]'", "does not provide the extra 'torhc'"),
        ("'.[test]' 'jax[cuda13]' 'a-package-that-is-nowhere'", "No matching distribution found for a-package-that-is-nowhere"),
        ("'jax[tpu]'", "loss-balancers would not be installed"),
    ],
)
def test_a_line_that_fails_is_found(empty: Environment, line: str, words: str) -> None:
    assert words in faults(empty, line, ROOT)


def test_every_extra_of_an_error_installs_as_the_error_says(empty: Environment) -> None:
    (form,) = LINE.findall(errors.with_extra("EXTRA"))
    assert faults(empty, form.replace("EXTRA", ",".join(EXTRAS)), ROOT) == ""
    assert {target.extra for target in TARGETS.values() if target.extra} <= set(EXTRAS)


def test_errors_say_in_one_place_what_to_install() -> None:
    parts = [ROOT / part / "loss_balancers" for part in ("spec", "torch_impl", "jax_impl", "keras_impl", "parity_tests")]
    places = [file for part in parts for file in part.rglob("*.py") if "pip install" in file.read_text("utf-8")]
    assert places == [Path(str(ROOT / "spec/loss_balancers/spec/errors/packaging.py"))]


def test_the_readme_lists_every_extra() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## Install")[2].partition("\n## ")[0]
    assert {name for found in re.findall(r"\[([a-z,-]+)\]", section) for name in found.split(",")} == {*EXTRAS} - {"dev"}


def test_the_library_and_the_extra_merge_install_and_run(wheels: Path, empty: Environment, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment", wheels)
    for name in empty.resolved(".[merge]", cwd=ROOT):
        if name != "loss-balancers":
            pack(distribution(name), wheels, whole=True)

    installed = environment.run("pip", "install", ".", cwd=ROOT)
    assert installed.returncode == 0, installed.stderr
    for part, status, words in [
        ("spec", 0, ""),
        ("torch", 1, errors.missing_framework("torch", "PyTorch", "torch")),
        ("jax", 1, errors.missing_framework("jax", "JAX and Flax", "jax")),
        ("parity.cli", 70, errors.with_extra("parity")),
    ]:
        done = environment.run("python", "-I", "-c", f"import loss_balancers.{part}", cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr

    installed = environment.run("pip", "install", ".[merge]", cwd=ROOT)
    assert installed.returncode == 0, installed.stderr
    assert environment.run("pip", "check", cwd=tmp_path).returncode == 0
    done = environment.run("loss-balancers", "merge", "nowhere.json", cwd=tmp_path)
    assert (done.returncode, "nowhere.json" in done.stderr) == (2, True), done.stdout + done.stderr
