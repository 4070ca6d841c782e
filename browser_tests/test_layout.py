"""On a phone, on paper, in the dark, for who does not see it, and with many lanes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from pypdf import PdfReader
from report_cases import FORGED, doctored, forged, matrix

from .conftest import DESK, PHONE, Show

PAPER = {"width": 718, "height": 1020}  # A4 less its margins
MATRICES = {"all-identical": matrix(), "doctored": doctored(), "forged": forged(), "forty-lanes": doctored(lanes=40)}
#: For axe, which looks at every pair of elements: small, and with everything that a page can have.
SMALL = {"all-identical": matrix(1, 8), "doctored": doctored(balancers=2), "forged": forged()}
#: What reaches beyond the right edge of the window, and is not in a box that scrolls.
BEYOND = """() => [...document.querySelectorAll("body *")]
  .filter(e => e.checkVisibility() && !e.closest(".scroll:not(.fits)") && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))"""


def _too_wide(page: Page) -> list[str]:
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return page.evaluate(BEYOND) + ([f"the page: {width} of {window}"] if width > window else [])


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_does_not_scroll_sideways(show: Show, name: str, scripts: bool, viewport: dict[str, int]) -> None:
    assert _too_wide(show(MATRICES[name], viewport, scripts=scripts)) == []


def test_the_measure_of_width_can_fail(show: Show) -> None:
    page = show(matrix(1, 2), PHONE)
    page.locator("h1").evaluate("title => { title.style.width = '400px' }")
    found = _too_wide(page)
    assert len(found) == 2
    assert found[0].startswith("<h1")
    assert found[1] == "the page: 416 of 375"


def test_a_wide_table_scrolls_in_its_box_and_the_lane_stays_in_sight(show: Show) -> None:
    page = show(doctored(), PHONE)
    box = page.locator("#matrix .scroll")
    assert box.get_attribute("tabindex") == "0"  # for the keyboard
    assert box.evaluate("box => { box.scrollLeft = 1e6; return box.scrollLeft }") > 100
    lane = page.locator("#matrix tbody th[scope=row]").first.bounding_box()
    last = page.locator("#matrix tbody tr[data-lane] td:last-child").first.bounding_box()
    assert lane is not None
    assert last is not None
    assert 0 <= lane["x"] < lane["x"] + lane["width"] <= last["x"] < last["x"] + last["width"] <= PHONE["width"]


@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [
        ("all-identical", "light", DESK),
        ("doctored", "light", DESK),
        ("doctored", "dark", PHONE),
        ("forged", "dark", DESK),
        ("forged", "light", PHONE),
    ],
    ids=lambda value: value if isinstance(value, str) else {375: "phone", 1280: "desk"}[value["width"]],
)
def test_axe_finds_nothing(show: Show, name: str, scheme: str, viewport: dict[str, int]) -> None:
    """Contrast, names, heads of tables, order of headings, ... (WCAG 2, and what axe calls best practice)."""
    # Axe is a script of ours and not of the page: the page's policy would refuse it.
    page = show(SMALL[name], viewport, color_scheme=scheme, bypass_csp=True)
    results = Axe().run(page, options={"resultTypes": ["violations", "passes"]})
    assert results.violations_count == 0, results.generate_report()
    assert "color-contrast" in {rule["id"] for rule in results.response["passes"]}


def test_axe_does_find_grey_on_grey(show: Show) -> None:
    page = show(matrix(1, 2), bypass_csp=True)
    page.locator(".facts").evaluate("facts => { facts.style.color = '#aaa' }")
    assert [found["id"] for found in Axe().run(page).response["violations"]] == ["color-contrast"]


def test_every_count_is_under_and_beside_its_heads(show: Show) -> None:
    page = show(doctored())
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("th:not([scope])").count() == 0
    bare = "cells => cells.filter(td => !td.parentElement.querySelector('th[scope=row]')).length"
    assert page.locator("main td").evaluate_all(bare) == 0


def _close_and_print(page: Page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = false })")
    page.emulate_media(media="print")


@pytest.mark.parametrize("name", MATRICES)
def test_paper_shows_everything_in_light_colours_and_clips_nothing(show: Show, name: str) -> None:
    page = show(MATRICES[name], PAPER, color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.documentElement).color")
    _close_and_print(page)
    assert _too_wide(page) == []
    page.locator(".scroll").evaluate_all("boxes => boxes.forEach(box => box.classList.remove('fits'))")
    assert page.locator(".scroll").evaluate_all("boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).length") == 0
    assert page.locator("#filter").is_hidden()
    hidden = "elements => elements.filter(e => !e.checkVisibility() || e.getBoundingClientRect().height === 0).length"
    assert page.locator("main tr, main td, main article, main li").evaluate_all(hidden) == 0
    ink, paper = page.evaluate("['color', 'backgroundColor'].map(name => getComputedStyle(document.documentElement)[name])")
    assert ink != dark
    assert ink == "rgb(31, 29, 26)"
    assert paper == "rgb(255, 255, 255)"


def test_the_pdf_has_every_text(show: Show, tmp_path: Path) -> None:
    made = doctored()
    page = show(made)
    _close_and_print(page)
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    pages = PdfReader(tmp_path / "report.pdf").pages
    text = re.sub(r"\s+", "", "".join(page.extract_text() for page in pages))
    wanted = [lane["id"] for lane in made["lanes"]] + made["balancers"] + made["labels"] + list(made["vectors"].values())
    wanted += [certificate["file"] for certificate in made["certificates"]]
    wanted += [f"{cell['identical']}/{cell['vectors']}" for cell in made["cells"]]
    for worst in (cell["worst"] for cell in made["cells"] if cell["worst"]):
        wanted += [worst["case"], worst["expected"], worst["actual"], worst["cotangent"], *worst["inputs"].values()]
    assert [one for one in wanted if re.sub(r"\s+", "", one) not in text] == []
    assert FORGED not in text  # the search can fail
    for count in ("114/114", "209/209", "133/133"):
        assert text.count(count) >= sum(f"{cell['identical']}/{cell['vectors']}" == count for cell in made["cells"])


def test_a_filtered_print_says_so(show: Show) -> None:
    page = show(doctored())
    page.locator("#filter input[value=torch]").uncheck()
    page.emulate_media(media="print")
    assert page.locator("#shown").is_visible()
    assert (page.locator("#shown").text_content() or "").startswith("12 of 20 lanes")


def test_forty_lanes_of_six_balancers_stay_usable(show: Show) -> None:
    made: dict[str, Any] = doctored(lanes=40)
    page = show(made)
    assert page.locator("#matrix tbody th[scope=row]").count() == 40
    assert page.locator("#matrix td").count() == 240
    took = page.evaluate("""() => {
      const start = performance.now();
      document.querySelector("#filter input[value=torch]").click();
      document.body.getBoundingClientRect();
      return performance.now() - start;
    }""")
    assert took < 500  # milliseconds; about 20 on a laptop
    page.locator("#reset").click()
    # The head of the table is at the top of the window when its last row is at the bottom.
    page.locator("#matrix tbody tr").last.scroll_into_view_if_needed()
    head = page.locator("#matrix thead th").nth(1).bounding_box()
    assert head is not None
    assert 0 <= head["y"] < 10
