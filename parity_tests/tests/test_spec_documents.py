"""The documents say what the code does: every clause that is cited exists, and the table of balancers is that of the registry."""

import re
from inspect import Parameter, isfunction, signature
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import pytest
import torch
from runs import as_bytes, drawn, make

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec import registry, schedules
from loss_balancers.spec.registry import SETTINGS

ROOT = Path(__file__).parents[2]
CODE = [
    file
    for part in ("spec", "torch_impl", "jax_impl", "keras_impl", "parity_tests")
    for file in sorted((ROOT / part).rglob("*.py"))
]
PAGES = sorted((ROOT / "docs" / "spec").glob("*.md"))
DEFINED = [clause for page in PAGES for clause in re.findall(r"\*\*([A-Z]\d+)\*\*", page.read_text("utf-8"))]


def _cited(text: str) -> set[str]:
    """The clauses that a text cites: "spec A3", "spec S1 to S5", "spec A5, A8" and "docs/spec/2-arithmetic.md, A1 and A12"."""
    found = set()
    for citation in re.findall(r"(?:\bspec|spec/[\w-]+\.md,) ((?:[A-Z]\d+(?:, | and | to )?)+)", text):
        found |= set(re.findall(r"[A-Z]\d+", citation))
        for letter, first, last in re.findall(r"([A-Z])(\d+) to [A-Z](\d+)", citation):
            found |= {f"{letter}{number}" for number in range(int(first), int(last) + 1)}
    return found


def test_every_clause_that_is_cited_exists() -> None:
    cited = {clause for file in CODE for clause in _cited(file.read_text("utf-8"))}
    assert cited <= set(DEFINED), sorted(cited - set(DEFINED))
    assert {clause[0] for clause in cited} == {clause[0] for clause in DEFINED}  # every group is cited somewhere


def test_no_clause_has_two_texts() -> None:
    assert len(DEFINED) == len(set(DEFINED))


def test_the_search_for_citations_finds_them() -> None:
    text = "(spec A3), (spec S1 to S3). docs/spec/2-arithmetic.md, A10 and A12; spec T6, T7"
    assert _cited(text) == {"A3", "S1", "S2", "S3", "A10", "A12", "T6", "T7"}


def _rows() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "balancers.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("\n")
        if re.match(r"\| `\w+LossBalancer`", line)
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_table_has_every_balancer_and_its_state() -> None:
    examples = {settings.balancer: settings for settings in registry.examples().values()}
    assert list(_rows()) == list(SETTINGS)
    for name, (_, _, state, _) in _rows().items():
        own = [f"`{entry.name}`" for entry in examples[name].state if entry.name not in ("steps", "skipped", "pending")]
        of_all = SETTINGS[name].examples().values()
        learned = dict.fromkeys(f"`{entry.name}`" for example in of_all for entry in example.learned)
        wanted = ", ".join(["counters", *own]) if examples[name].state else "none"
        assert state == (f"{wanted}; the parameter {' or '.join(learned)}" if learned else wanted)


def _argument_tables(text: str) -> dict[str, dict[str, str]]:
    """The tables of arguments by their headings: from argument to default."""
    sections = re.findall(r"^### (.*?)\n(.*?)(?=^#)", text, re.DOTALL | re.MULTILINE)
    return {title.strip("`"): dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", body, re.MULTILINE)) for title, body in sections}


@pytest.mark.parametrize("framework", [loss_balancers.torch, loss_balancers.jax])
def test_the_tables_of_arguments_are_the_signatures(framework: ModuleType) -> None:
    tables = _argument_tables((ROOT / "docs" / "balancers.md").read_text("utf-8"))
    other = "axis_name" if framework is loss_balancers.torch else "process_group"
    shared = {name: default for name, default in tables.pop("All with counters, by keyword").items() if name != other}
    assert list(tables) == list(SETTINGS)
    for balancer, stated in tables.items():
        _, *parameters = signature(getattr(framework, balancer).__init__).parameters.values()  # without `self`
        own = {p.name: "–" if p.default is Parameter.empty else f"`{p.default!r}`" for p in parameters}
        has_state = any(settings.state for settings in SETTINGS[balancer].examples().values())
        assert own == stated | (shared if has_state else {})
        assert {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY} == own.keys() - stated.keys()


def test_a_wrong_default_in_a_table_of_arguments_is_read() -> None:
    text = "### `A`\n\n| argument | default |\n|---|---|\n| `beta` | `0.5` | x |\n| `names` | – | y |\n\n## End"
    assert _argument_tables(text) == {"A": {"beta": "`0.5`", "names": "–"}}


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_weights_are_constant_within_a_step_where_the_table_says_so(framework: str) -> None:
    array = {"torch": torch.from_numpy, "jax": jnp.asarray}[framework]
    rows = [{name: array(x) for name, x in row.items()} for row in drawn(6, seed=3)]
    found: dict[str, dict[bool, bool]] = {}
    for settings in registry.examples().values():
        balancer = make(framework, settings)
        if settings.state:
            balancer.observe(rows[0])
            balancer.step()
        seen = []
        for row in rows:
            seen.append({name: as_bytes(x) for name, x in balancer.weights(row).items()})
            if settings.state:
                balancer.observe(row)
        found.setdefault(settings.balancer, {})[getattr(settings, "lagged", False)] = all(weights == seen[0] for weights in seen)
    words = {True: "yes", False: "no"}
    for name, row in _rows().items():
        lagged = f"; `lagged=True`: {words[found[name][True]]}" if True in found[name] else ""
        assert row[-1] == words[found[name][False]] + lagged


def test_every_schedule_is_in_the_table_of_schedules() -> None:
    text = (ROOT / "docs" / "schedules.md").read_text("utf-8")
    own = {name for name, x in vars(schedules).items() if isfunction(x) and x.__module__ == schedules.__name__ and name[0] != "_"}
    assert set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)) == own - {"as_schedule"}
