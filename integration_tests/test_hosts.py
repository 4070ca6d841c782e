"""What holds for every host: an example, a page that names it, few lines, and nothing imported before it is used."""

import importlib.util
import re
import subprocess
import sys

import pytest
from hosts import ROOT

EXAMPLES = sorted(file.stem for file in (ROOT / "examples/hosts").glob("*.py"))
#: Beside the host's own lines.
MOST_LINES = 6
MARK = "  # balancer"
ADAPTERS = ["torch/modelopt", "torch/transformers", "jax/tunix", "keras"]


def lines_of(host: str) -> list[str]:
    """The lines of an example that are there for the balancer: they are marked."""
    return [line for line in (ROOT / f"examples/hosts/{host}.py").read_text("utf-8").splitlines() if line.endswith(MARK)]


@pytest.mark.parametrize("host", EXAMPLES)
def test_a_user_writes_few_lines_and_the_table_says_how_many(host):
    table = (ROOT / "docs/hosts/README.md").read_text("utf-8")
    (said,) = re.findall(rf"^\|.*(?:\]\({host}\.md\)|`{host}`).*\| (\d+) \|$", table, re.MULTILINE)
    assert len(lines_of(host)) == int(said)
    assert 1 <= int(said) <= MOST_LINES


@pytest.mark.parametrize("host", EXAMPLES)
def test_every_line_with_a_balancer_is_marked(host):
    text = (ROOT / f"examples/hosts/{host}.py").read_text("utf-8")
    code = re.sub(r'""".*?"""|^print\([^\n]*', "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in code.splitlines() if "balancer" in re.sub(r"#.*", "", line) and not line.endswith(MARK)] == []


@pytest.mark.parametrize("host", EXAMPLES)
def test_no_example_is_found_in_place_of_its_host(host):
    """A script's folder comes first: beside `lightning.py`, `import lightning` would find the example."""
    assert importlib.util.find_spec(host) is None


@pytest.mark.parametrize("host", EXAMPLES)
def test_a_page_shows_the_command_of_the_example(host):
    pages = [page.read_text("utf-8") for page in (ROOT / "docs/hosts").glob("*.md")]
    assert any(re.search(rf"\bmake host HOST={host}\b", page) for page in pages)


def test_the_library_loads_no_host():
    hosts = ("modelopt", "transformers", "trl", "lightning", "accelerate", "keras", "tunix", "orbax", "optax", "equinox")
    code = f"import sys, loss_balancers.torch, loss_balancers.jax; print([x for x in {hosts} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, torch, flax.nnx; print([x for x in {hosts} if x in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == loaded.stdout


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_are_thin(adapter):
    found = [file for file in ROOT.glob(f"*_impl/loss_balancers/{adapter}*") if file.suffix == ".py" or file.is_dir()]
    files = [file for each in found for file in (sorted(each.rglob("*.py")) if each.is_dir() else [each])]
    assert files
    assert all(len(file.read_text("utf-8").splitlines()) < 120 for file in files)
