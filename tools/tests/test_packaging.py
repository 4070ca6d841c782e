"""The wheel: what is in it, and what imports where a framework is missing."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from evidence import CERTIFICATE

from loss_balancers.spec.errors import with_extra

ROOT = Path(__file__).parents[2]
PARTS = ("spec", "torch_impl", "jax_impl", "keras_impl", "parity_tests")
PROBE = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, {site!r})
{code}
"""
TORCH, JAX = {"torch"}, {"jax", "jaxlib", "flax", "optax"}
KIT = {"typer"}
#: What `[merge]` does not bring.
NOT_MERGE = TORCH | JAX | {"ml_dtypes", "jaxtyping", "safetensors", "hypothesis", "pytest", "libtpu"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this tree and the wheel from it, or those that `make release-check` has built."""
    if built := os.environ.get("LOSS_BALANCERS_DIST"):
        return Path(built)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _run(site: Path, code: str, missing: set[str]) -> subprocess.CompletedProcess[str]:
    """Runs code with the wheel alone on the path of the project, and without the missing packages."""
    script = PROBE.format(missing=sorted(missing), site=str(site), code=code)
    # -I and the filter: nothing of the checkout is importable, so that the wheel must hold it all.
    script = f"import sys; sys.path = [p for p in sys.path if {str(ROOT)!r} not in p or '.venv' in p]\n" + script
    script = script.replace(
        "import importlib.abc, sys", "import importlib.abc, sys\nsys.path = [p for p in sys.path if '_impl' not in p]", 1
    )
    return subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)


def _assert_is_the_package(names: set[str]) -> None:
    parts = {name.split("/")[1] for name in names if name.startswith("loss_balancers/")}
    assert {name for name in names if name.startswith("loss_balancers_pytest/")} == {"loss_balancers_pytest/__init__.py"}
    assert parts == {"spec", "torch", "jax", "keras", "parity", "audit"}
    assert {f"loss_balancers/{part}/py.typed" for part in parts} <= names
    data = {
        p.relative_to(ROOT / part).as_posix()
        for part in PARTS
        for p in (ROOT / part / "loss_balancers").rglob("*.*")
        if p.is_file()
    }
    data = {name for name in data if not name.endswith((".py", ".pyc"))}
    assert {name.rsplit(".")[-1] for name in data} == {"json", "typed", "html", "css", "js"}
    assert data <= names
    assert "loss_balancers/__init__.py" not in names  # a native namespace package
    assert not [name for name in names if "test" in name.removeprefix("loss_balancers_pytest/")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"loss_balancers", "loss_balancers_pytest"}


def test_the_wheel_holds_the_package_and_nothing_else(site: Path) -> None:
    names = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    _assert_is_the_package(names)
    (licence,) = (name for name in names if name.endswith("licenses/LICENSE"))
    for lacks in ("loss_balancers/spec/golden/static.json", "loss_balancers/torch/py.typed", licence):
        with pytest.raises(AssertionError):
            _assert_is_the_package(names - {lacks})
    for has in ("loss_balancers/torch/tests/test_static.py", "loss_balancers/__init__.py", "docs/spec.md"):
        with pytest.raises(AssertionError):
            _assert_is_the_package(names | {has})


def _wrong_in_sdist(names: set[str]) -> list[str]:
    """What of this tree an sdist lacks, and what it has that nobody wrote."""
    folders = [*PARTS, "docs", "examples", "benchmarks", "browser_tests", "tools"]
    written = {".py", ".json", ".typed", ".html", ".css", ".js", ".md", ".toml", ".yml"}
    wanted = {
        file.relative_to(ROOT).as_posix() for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in written
    }
    # What tools leave, such as `.pytest_cache`, has folders of its own, which a name with a dot tells.
    wanted = {name for name in wanted if not re.search(r"(^|/)\.(?!github)", name)}
    wanted |= {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        "PKG-INFO",
        "conftest.py",
    }
    return [
        *(f"lacks {name}" for name in sorted(wanted - names)),
        *(f"has {name}" for name in sorted(names) if re.search(r"\.pyc$|(^|/)(\.venv|\.git/|out/|dist/)", name)),
    ]


def test_the_sdist_holds_what_is_in_the_checkout(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _wrong_in_sdist(names) == []
    assert _wrong_in_sdist(names - {"LICENSE"} | {"spec/__pycache__/a.pyc"}) == ["lacks LICENSE", "has spec/__pycache__/a.pyc"]


@pytest.mark.parametrize(
    ("missing", "works", "fails", "extra"),
    [
        (JAX | KIT, "torch", "jax", "jax"),
        (TORCH | KIT, "jax", "torch", "torch"),
        (TORCH | JAX | KIT, "spec", "torch", "torch"),
        (TORCH | JAX | KIT, "spec", "jax", "jax"),
    ],
    ids=["torch-alone", "jax-alone", "neither-wants-torch", "neither-wants-jax"],
)
def test_each_part_imports_alone_and_names_the_extra_of_the_others(site: Path, missing, works, fails, extra) -> None:
    good = _run(site, f"import loss_balancers.{works} as m; print(m.__file__)", missing)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(str(site))
    bad = _run(site, f"import loss_balancers.{fails}", missing)
    assert bad.returncode != 0
    assert "ImportError" in bad.stderr
    assert with_extra(extra) in bad.stderr


def test_the_command_line_names_its_extra(site: Path) -> None:
    result = _run(site, "from loss_balancers.parity.cli import main; main()", KIT)
    assert result.returncode == 70
    assert with_extra("parity") in result.stderr


def _merge(site: Path, folder: Path, missing: set[str]) -> subprocess.CompletedProcess[str]:
    words = [
        "loss-balancers",
        "merge",
        str(CERTIFICATE),
        *(w for o in ("html", "json", "markdown") for w in (f"--{o}", str(folder / o))),
    ]
    return _run(site, f"import sys; sys.argv = {words!r}; from loss_balancers.parity.cli import main; main()", missing)


def test_merge_needs_what_its_extra_brings_and_no_more(site: Path, tmp_path: Path) -> None:
    result = _merge(site, tmp_path, NOT_MERGE)
    assert result.returncode == 0, result.stderr
    assert "bit-identical" in result.stdout
    assert "<title>Parity matrix: " in (tmp_path / "html").read_text("utf-8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["html", "json", "markdown"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for requirement in extras["merge"]:  # and each of them is needed
        package = re.split(r"[^\w-]", requirement)[0]
        assert _merge(site, tmp_path, NOT_MERGE | {package}).returncode != 0, package


@pytest.mark.parametrize(("part", "foreign"), [("torch", JAX), ("jax", TORCH), ("spec", TORCH | JAX)])
def test_no_part_imports_the_other_framework(site: Path, part: str, foreign: set[str]) -> None:
    result = _run(site, f"import loss_balancers.{part}, sys; print(sorted({foreign!r} & set(sys.modules)))", set())
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_probe_can_fail(site: Path) -> None:
    result = _run(site, "import loss_balancers.torch, sys; print(sorted({'torch'} & set(sys.modules)))", set())
    assert result.stdout.strip() == "['torch']"


NAMESAKES = ("torch", "jax", "spec", "parity")


@pytest.mark.parametrize("in_namespace", [False, True], ids=["as-it-is", "within-loss_balancers"])
def test_pytest_takes_no_other_modules_for_the_plugin_s(site: Path, tmp_path: Path, in_namespace: bool) -> None:
    """pytest rewrites the modules of a distribution with a plugin. Were the plugin in our namespace, `torch` would count as one."""
    installed = Path(shutil.copytree(site, tmp_path / "site"))
    if in_namespace:
        shutil.rmtree(installed / "loss_balancers_pytest")
        (info,) = installed.glob("*.dist-info")
        record = (info / "RECORD").read_text("utf-8").splitlines()
        (info / "RECORD").write_text("\n".join(line for line in record if not line.startswith("loss_balancers_pytest")), "utf-8")
        (info / "entry_points.txt").write_text("[pytest11]\nloss_balancers = loss_balancers.parity\n", "utf-8")
    for name in NAMESAKES:
        (installed / f"{name}.py").write_text("")
    (tmp_path / "test_loaders.py").write_text(
        f"import {', '.join(NAMESAKES)}, sys\n"
        f"def test(): print('rewritten:', *(n for n in {(*NAMESAKES, 'loss_balancers_pytest')!r}"
        " if 'Rewrit' in type(getattr(sys.modules.get(n), '__loader__', None)).__name__))\n"
    )
    others = [
        f"-pno:{name}" for name in ("cacheprovider", "jaxtyping", "anyio", "hypothesispytest", "xdist")
    ]  # they import torch or jax
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", *others],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    expected = " ".join(NAMESAKES) if in_namespace else "loss_balancers_pytest"
    assert f"rewritten: {expected}\n" in run.stdout
