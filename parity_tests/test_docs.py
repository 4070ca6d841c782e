"""Every code block of the documents and every example of a docstring runs."""

import doctest
import importlib
import json
import re
from pathlib import Path

import pytest

from loss_balancers.spec import golden_hash, load_golden

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=f"{file.relative_to(ROOT)}-{i}")
    for file in DOCUMENTS
    for i, block in enumerate(BLOCK.findall(file.read_text("utf-8")))
]
MODULES = [
    f"loss_balancers.{part}.{module}" for part in ("torch", "jax") for module in ("base", "functional", "static")
]  # fmt: skip


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_code_block_runs(block: str) -> None:
    exec(compile(block, "<document>", "exec"), {"__name__": "__document__"})


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted > 0


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for file in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text("utf-8")):
            if "://" not in target and not (file.parent / target).exists():
                broken.append(f"{file.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_printed_matrix_is_of_these_vectors() -> None:
    """The matrix in the README and the certificate in the evidence are of the vectors as they are now, and all identical."""
    evidence = json.loads((ROOT / "docs/evidence/cpu-linux-x86_64.json").read_text("utf-8"))
    assert evidence["vectors"] == {"StaticLossBalancer": golden_hash()}
    total = sum(cell["vectors"] for row in evidence["matrix"].values() for cell in row.values())
    assert total == sum(cell["identical"] for row in evidence["matrix"].values() for cell in row.values())
    assert total == len(evidence["matrix"]) * sum(len(group.vectors) for group in load_golden())
    assert f"{len(evidence['matrix'])} lanes, {total}/{total} bit-identical" in (ROOT / "README.md").read_text("utf-8")
