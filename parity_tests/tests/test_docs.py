"""The documents: every code block and docstring example runs, every link leads somewhere, and what they list is what there is."""

import doctest
import importlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import typer
from certificates import doctored, few_vectors, torch_certificate
from evidence import BLOCK, CERTIFICATE, README, matrix_block
from hypothesis import HealthCheck, settings

from loss_balancers.parity.certificates.merge import merge
from loss_balancers.parity.certificates.reading import check, read_certificate
from loss_balancers.parity.cli import app
from loss_balancers.parity.lanes.known import known_lanes

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted(file for folder in ("docs", "examples") for file in (ROOT / folder).rglob("*.md")),
]
TEXTS = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in DOCUMENTS}
BLOCKS = [
    pytest.param(block, id=f"{name}-{i}")
    for name, text in TEXTS.items()
    if not name.startswith("docs/hosts/")  # their libraries are not installed here: `make test-integrations` runs them
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
]
PARTS = [ROOT / part for part in ("spec", "torch_impl", "jax_impl", "parity_tests")]  # the example of keras_impl needs Keras
MODULES = [
    ".".join(file.relative_to(part).with_suffix("").parts).removesuffix(".__init__")
    for part in PARTS
    for file in sorted((part / "loss_balancers").rglob("*.py"))
    if ">>> " in file.read_text("utf-8")
]


# --- what runs ------------------------------------------------------------------------------------------------------


def test_there_are_blocks_and_examples() -> None:
    assert len(BLOCKS) >= 10
    assert {module.split(".")[1] for module in MODULES} >= {"torch", "jax", "parity"}


@pytest.mark.parametrize("block", BLOCKS)
def test_code_block_runs(block: str) -> None:
    exec(compile(block, "<document>", "exec"), {"__name__": "__document__"})


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    # A machine that is loaded is slow to draw, which Hypothesis would call a failure.
    before = settings.get_current_profile_name()
    settings.register_profile("documents", deadline=None, suppress_health_check=list(HealthCheck))
    settings.load_profile("documents")
    try:
        result = doctest.testmod(importlib.import_module(module))
    finally:
        settings.load_profile(before)
    assert result.failed == 0
    assert result.attempted > 0


# --- what is linked and named ---------------------------------------------------------------------------------------


def _anchors(text: str) -> set[str]:
    """Those that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken(name: str, text: str) -> list[str]:
    """Links within this repository that lead to no file, or to no heading of one."""
    found = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path
        if "://" in target or (path and file.exists() and not anchor):
            continue
        if not file.exists() or anchor not in _anchors(file.read_text("utf-8") if path else text):
            found.append(target)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    assert _broken(name, TEXTS[name]) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "# One: two\n[a](#one-two) [b](#two) [c](LICENSE) [d](LICENCE) [e](CONTRIBUTING.md#no)"
    assert _broken("README.md", text) == ["#two", "LICENCE", "CONTRIBUTING.md#no"]


def test_every_document_is_linked_from_another() -> None:
    linked = {
        ((ROOT / name).parent / target.partition("#")[0]).resolve()
        for name, text in TEXTS.items()
        for target in re.findall(r"\]\(([^)]+)\)", text)
        if "://" not in target
    }
    alone = [file for file in DOCUMENTS if file not in linked and file.parent not in linked and file != README]
    assert alone == []


def test_commands_and_options_exist() -> None:
    known = {name: command.params for name, command in typer.main.get_command(app).commands.items()}  # type: ignore[attr-defined]
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wrong = []
    for name, text in TEXTS.items():
        for line in re.findall(r"^(?: {4}|\$ )?(?:pip .*&& )?(loss-balancers .*|make .*)$", text, re.MULTILINE):
            program, verb, *words = line.partition("#")[0].split()
            options = {option for parameter in known.get(verb, ()) for option in parameter.opts}
            if verb not in (made if program == "make" else known) and verb != "--help":
                wrong.append(f"{name}: {program} {verb}")
            if program != "make":
                wrong += [f"{name}: {word}" for word in words if word.startswith("--") and word not in options | {"--help"}]
    assert wrong == []


def test_the_guide_to_lanes_names_every_mode_that_there_is() -> None:
    guide = TEXTS["docs/lanes.md"]
    rows = re.findall(r"^\| (`(?:torch|jax)-…-.*?) \|", guide, re.MULTILINE)
    named = {
        (row.split("-")[0].strip("`"), mode)
        for row in rows
        for mode in re.sub(r"`(torch|jax)-…-", "`", row).replace("`", "").split(", ")
    }
    assert named == {(lane.framework, lane.mode) for lane in known_lanes() if lane.device == "cpu"}


def _names(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_names, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})) | set().union(*(_names(value) for value in schema.values()))


def test_the_guide_to_certificates_names_every_field() -> None:
    guide = TEXTS["docs/certificates.md"]
    schema = json.loads((files("loss_balancers.parity.certificates") / "certificate.schema.json").read_text("utf-8"))
    stated = {name for name in _names(schema) if "." not in name}
    assert [name for name in sorted(stated) if f"`{name}`" not in guide and f'"{name}"' not in guide] == []
    assert {"digest", "actual_format", "cotangent", "python"} <= stated
    matrix = merge([check(doctored(torch_certificate()), "a.json", few_vectors())])
    entries = [*matrix["lanes"], *matrix["cells"], *matrix["disagreements"], matrix["disagreements"][0]["values"][0]]
    stated = {
        *matrix,
        *(name for entry in entries for name in entry),
        *(name for c in matrix["cells"] for name in c["worst"] or ()),
    }
    assert [name for name in sorted(stated) if f"`{name}`" not in guide] == []


# --- what is shown --------------------------------------------------------------------------------------------------


def test_the_evidence_is_of_these_vectors_and_all_identical() -> None:
    """`read_certificate` refuses one of other vectors. Write it again: `make evidence`."""
    matrix = merge([read_certificate(CERTIFICATE)])
    assert matrix["identical"] == matrix["results"] > 0
    assert len(matrix["lanes"]) >= 12
    assert {lane["id"].partition(":")[2] for lane in matrix["lanes"]} == {
        lane.name for lane in known_lanes() if lane.here and lane.device == "cpu"
    }


def test_the_page_of_a_gpu_shows_what_the_kit_left() -> None:
    """Not by `read_certificate`, which refuses one of other vectors than today's: a GPU is seldom at hand."""
    page, folder = (CERTIFICATE.parent / "gpu.md").read_text("utf-8"), CERTIFICATE.parent / "cuda-h100"
    lanes = json.loads((folder / "certificate.json").read_text("utf-8"))["lanes"]
    assert len(lanes) == 9
    for lane in lanes:
        cells = [cell for columns in lane["balancers"].values() for cell in columns.values()]
        identical, vectors = (sum(cell[key] for cell in cells) for key in ("identical", "vectors"))
        shown = str(identical) if identical == vectors else f"**{identical}**"
        assert f"| {lane['framework']}-{lane['device']}-{lane['mode']} | {shown} | {vectors} |" in page
    for balancer, measures in json.loads((folder / "costs.json").read_text("utf-8")).items():
        columns = [
            *("+".join(str(part["count"]) for part in side.values()) for side in measures["kernels"]["launched"].values()),
            *(
                f"{measure['ours, us']:.0f} us, {measure['times as long']:.2f}"
                for measure in (measures["eager"], measures["compiled"]["default"], measures["graph"])
            ),
        ]
        assert f"| {balancer.removesuffix('LossBalancer')} | {' | '.join(columns)} |" in page
        assert measures["kernels"]["syncs"] is None


def test_the_readme_shows_the_evidence() -> None:
    (shown,) = BLOCK.findall(README.read_text("utf-8"))
    assert shown == matrix_block()
