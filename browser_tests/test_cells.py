"""What stands on the page is what stands in the matrix: every count, every worst case, every value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from report_cases import FORGED, doctored, forged, matrix

from .conftest import Show, listen

#: The text of each cell of a table, with the text of its row's head and of its column's.
READ = """tables => tables.flatMap(table => [...table.querySelectorAll("tbody td")].map(cell => [
  cell.parentElement.querySelector("th").textContent.trim(),
  table.tHead.rows[0].cells[cell.cellIndex].textContent.trim(),
  cell.innerText.replace(/\\s+/g, " ").trim(),
]))"""
PAIRS = """card => Object.fromEntries([...card.querySelectorAll("tr")].map(
  row => [row.cells[0].textContent, row.querySelector("code").textContent]))"""


def _words(identical: int, vectors: int) -> str:
    state = "✓ bit-identical" if identical == vectors else "✗ differs"
    return f"{identical}/{vectors} {state}"


def _squares(made: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What the cells of lanes and balancers must say."""
    expected = {}
    for lane in made["lanes"]:
        for balancer in made["balancers"]:
            cells = [cell for cell in made["cells"] if (cell["lane"], cell["balancer"]) == (lane["id"], balancer)]
            words = [_words(sum(cell["identical"] for cell in cells), sum(cell["vectors"] for cell in cells))]
            words += [f"{c['label']} {c['identical']}/{c['vectors']}" for c in cells if c["identical"] != c["vectors"]]
            expected[lane["id"], balancer] = " ".join(words)
    return expected


def _formats(made: dict[str, Any], balancer: str) -> dict[tuple[str, str], str]:
    """What the cells of lanes and formats must say."""
    ran = {
        (cell["lane"], cell["label"]): _words(cell["identical"], cell["vectors"])
        for cell in made["cells"]
        if cell["balancer"] == balancer
    }
    keys = [(lane["id"], label) for lane in made["lanes"] for label in made["labels"]]
    return {key: ran.get(key, "– not run") for key in keys}


def _read(page: Page, tables: str) -> dict[tuple[str, str], str]:
    found = page.locator(tables).evaluate_all(READ)
    read = {(row, column): text for row, column, text in found}
    assert len(read) == len(found)
    return read


MATRICES = {"all-identical": matrix(), "doctored": doctored(), "forged": forged(), "one-balancer": matrix(balancers=1, lanes=8)}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_every_cell_says_what_the_matrix_says(show: Show, name: str, scripts: bool) -> None:
    made = MATRICES[name]
    page = show(made, scripts=scripts)
    assert _read(page, "#matrix table") == _squares(made)
    sections = page.locator("#formats details")
    assert sections.count() == len(made["balancers"])
    for index, balancer in enumerate(made["balancers"]):
        assert sections.nth(index).locator("h3").text_content() == balancer
        assert _read(page, f"#formats-{index} >> xpath=../.. >> table") == _formats(made, balancer)
    assert json.loads(page.locator("#data").text_content() or "") == made
    assert page.locator("#filter").is_visible() is scripts
    hidden = "elements => elements.filter(e => !e.checkVisibility() || e.getBoundingClientRect().height === 0).length"
    assert page.locator("main td, main th, main article, main h2, main li").evaluate_all(hidden) == 0


def test_the_reader_sees_a_cell_that_lies(show: Show) -> None:
    made = doctored()
    page = show(made)
    page.locator("#matrix td .count").nth(7).evaluate("count => { count.firstChild.data = '742/741 ' }")
    assert len(set(_read(page, "#matrix table").items()) - set(_squares(made).items())) == 1


@pytest.mark.parametrize("name", ["doctored", "forged"])
def test_every_difference_is_shown_with_inputs_both_values_and_the_distance(show: Show, name: str) -> None:
    made = MATRICES[name]
    page = show(made)
    different = [cell for cell in made["cells"] if cell["identical"] != cell["vectors"]]
    assert len(different) == 3
    links = page.locator("#matrix .where a")
    assert links.count() == page.locator("#differences article").count() == len(different)
    seen = set()
    for index in range(len(different)):
        link = links.nth(index)
        lane = link.locator("xpath=ancestor::tr/th").text_content() or ""
        label = (link.text_content() or "").split(" ")[0]
        cell = next(c for c in different if (c["lane"], c["label"]) == (lane, label))
        link.click()
        card = page.locator(link.get_attribute("href") or "")
        assert card.evaluate("card => card.getBoundingClientRect().top") < 900  # the link led there
        assert card.locator("h3").text_content() == f"{cell['balancer']}, {label}"
        worst = cell["worst"]
        values = {"expected": worst["expected"], "actual": worst["actual"], **worst["inputs"], "cotangent": worst["cotangent"]}
        assert card.evaluate(PAIRS) == values
        text = card.text_content() or ""
        distance = "NaN against a number" if worst["ulp"] is None else f"{worst['ulp']} ulp"
        missed = cell["vectors"] - cell["identical"]
        count = f"{missed} vector{'s' if missed > 1 else ''} of {cell['vectors']} differ."
        for part in (lane, count, f"{worst['what']} of {worst['case']}, {distance} ({worst['format']})"):
            assert part in text
        seen.add((lane, label))
    assert len(seen) == len(different)


def test_every_disagreement_says_which_lanes_have_which_value(show: Show) -> None:
    made = doctored()
    cards = show(made).locator("#disagreements article")
    by_distance = sorted(made["disagreements"], key=lambda found: -(found["ulp"] or 10**9))
    assert cards.count() == len(by_distance) == 3
    for index, found in enumerate(by_distance):
        card = cards.nth(index)
        assert found["balancer"] == card.locator("h3").text_content()
        for part in (found["case"], found["what"], found["format"]):
            assert part in (card.locator(".what").text_content() or "")
        assert card.locator(".reference code").text_content() == found["expected"]
        read = {}
        for value in card.locator(".value").all():
            odd = "odd" in (value.get_attribute("class") or "")
            code = value.locator("code").text_content()
            assert odd == (code != found["expected"]) == ("✗ not as the reference" in (value.text_content() or ""))
            read |= dict.fromkeys(value.locator("li").all_text_contents(), code)
        assert read == {entry["lane"]: entry["value"] for entry in found["values"]}


@pytest.mark.parametrize("name", ["doctored", "forged"])
def test_what_did_not_run_is_listed_with_the_reason(show: Show, name: str) -> None:
    made = MATRICES[name]
    read = []
    for card in show(made).locator("#absent article").all():
        labels, _, named = (card.locator("h3").text_content() or "").partition(" of ")
        reason = card.locator(".what").text_content()
        for lane in card.locator("li").all_text_contents():
            balancers = named.split(", ") if named else made["balancers"]
            read += [(lane, balancer, label, reason) for balancer in balancers for label in labels.split(", ")]
    stated = [(one["lane"], one["balancer"], one["label"], one["reason"]) for one in made["absent"]]
    assert len(stated) == 37
    assert sorted(read) == sorted(stated)


def test_a_forged_text_is_text(show: Show) -> None:
    page = show(forged())
    assert page.title() == "Parity matrix: 83,843 of 83,961 bit-identical"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator("#matrix tbody th[scope=row]").first.text_content() == f"1:{FORGED}"
    assert page.locator("#filter label").first.text_content() == f" {FORGED}"
    assert FORGED in page.locator("#certificates .card").first.inner_text()
    assert page.locator("#vectors code").text_content() == FORGED


def test_hosts_and_hashes_stand_on_the_page(show: Show) -> None:
    made = doctored()
    page = show(made)
    cards = page.locator("#certificates table")
    assert cards.count() == len(made["certificates"])
    for index, certificate in enumerate(made["certificates"]):
        rows = cards.nth(index).locator("tr:has(td)").all()
        read = dict(row.locator("th, td").all_text_contents() for row in rows)
        flags = {"env.XLA_FLAGS": "not set", "env.LIBTPU_INIT_ARGS": '""', "jax.jax_enable_x64": "false"}
        flags |= {"inductor.use_fast_math": "false"}
        named = {"created": certificate["created"], "loss-balancers": certificate["library"]}
        assert read == {**named, **certificate["host"], **certificate["frameworks"], **flags}
        assert certificate["file"] in (cards.nth(index).locator("caption").text_content() or "")
    rows = page.locator("#vectors tr").all()
    assert dict(row.locator("th, td").all_text_contents() for row in rows) == made["vectors"]


def test_what_listens_to_the_pages_does_hear(browser: Browser) -> None:
    page = browser.new_page()
    heard = listen(page)
    page.set_content("<img src='http://127.0.0.1:9/x.png'><script>console.warn('look'); throw new Error('oh')</script>")
    page.wait_for_load_state("networkidle")
    page.close()
    assert {"request: http://127.0.0.1:9/x.png", "console warning: look", "error: oh"} <= set(heard)
