"""The filter: by framework, by device, only differences, together, and back again."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
from playwright.sync_api import Page
from report_cases import doctored

from .conftest import Show

MADE = doctored()
FRAMEWORKS, DEVICES = {"torch", "jax"}, {"cpu", "cuda", "tpu"}


def _set(page: Page, frameworks: Set[str] = FRAMEWORKS, devices: Set[str] = DEVICES, only: bool = False) -> None:
    for name, chosen in (("framework", frameworks), ("device", devices)):
        for box in page.locator(f"#filter input[name={name}]").all():
            box.set_checked(box.get_attribute("value") in chosen)
    page.locator("#filter input[name=only]").set_checked(only)


def _visible(page: Page, selector: str) -> list[str]:
    texts = "elements => elements.filter(e => e.checkVisibility()).map(e => e.textContent.replace(/\\s+/g, ' ').trim())"
    return page.locator(selector).evaluate_all(texts)


def _assert_shown(page: Page, lanes: list[str], balancers: list[str], only: bool = False) -> None:
    """Rows, columns, formats, differences and the count: all are those of these lanes and balancers, and of no others."""
    cells = [cell for cell in MADE["cells"] if cell["lane"] in lanes and cell["balancer"] in balancers]
    assert _visible(page, "#matrix tbody th[scope=row]") == lanes
    assert _visible(page, "#matrix thead th") == ["Lane", *balancers]
    assert len(_visible(page, "#matrix td")) == len(lanes) * len(balancers)
    assert _visible(page, "#formats h3") == balancers
    rows = [
        lane
        for balancer in balancers
        for lane in lanes
        if not only or any((c["lane"], c["balancer"]) == (lane, balancer) for c in cells if c["identical"] != c["vectors"])
    ]
    assert _visible(page, "#formats tbody th[scope=row]") == rows
    different = [c for c in cells if c["identical"] != c["vectors"]]
    assert len(_visible(page, "#differences article")) == len(_visible(page, "#matrix .where a")) == len(different)
    assert len(_visible(page, "#differences .none")) == (not different)
    results = f"{sum(c['identical'] for c in cells):,} of {sum(c['vectors'] for c in cells):,} results bit-identical."
    said = (
        f"{len(lanes)} of 20 lanes and {len(balancers)} of 6 balancers shown: {results if lanes else 'nothing matches the filter.'}"
    )
    assert _visible(page, "#shown") == [said]


def _lanes(frameworks: Set[str], devices: Set[str]) -> list[dict[str, Any]]:
    return [lane for lane in MADE["lanes"] if lane["framework"] in frameworks and lane["device"] in devices]


@pytest.mark.parametrize(
    ("frameworks", "devices"),
    [
        (FRAMEWORKS, DEVICES),
        ({"torch"}, DEVICES),
        ({"jax"}, DEVICES),
        (FRAMEWORKS, {"cpu"}),
        (FRAMEWORKS, {"cuda"}),
        (FRAMEWORKS, {"tpu"}),
        (FRAMEWORKS, {"cuda", "tpu"}),
        ({"torch"}, {"cpu", "cuda"}),
        ({"jax"}, {"cpu"}),
        ({"torch"}, {"tpu"}),
        (set(), DEVICES),
    ],
    ids=lambda chosen: "-".join(sorted(chosen)) or "none",
)
def test_by_framework_and_device(show: Show, frameworks: set[str], devices: set[str]) -> None:
    page = show(MADE)
    _set(page, frameworks, devices)
    lanes = [lane["id"] for lane in _lanes(frameworks, devices)]
    _assert_shown(page, lanes, MADE["balancers"] if lanes else [])
    groups = list(dict.fromkeys(f"{lane['framework']} on {lane['device']}" for lane in _lanes(frameworks, devices)))
    assert [" ".join(text.split()[:3]) for text in _visible(page, "#matrix .group")] == groups


STATIC, AVERAGE = MADE["balancers"][:2]


@pytest.mark.parametrize(
    ("frameworks", "devices", "lanes", "balancers"),
    [
        (FRAMEWORKS, DEVICES, ["2:torch-cuda-compiled", "4:jax-tpu-scan"], [STATIC, AVERAGE]),
        ({"torch"}, DEVICES, ["2:torch-cuda-compiled"], [STATIC]),
        (FRAMEWORKS, {"tpu"}, ["4:jax-tpu-scan"], [AVERAGE]),
        (FRAMEWORKS, {"cpu"}, [], []),
    ],
    ids=["all", "torch", "tpu", "cpu"],
)
def test_only_differences(show: Show, frameworks, devices, lanes: list[str], balancers: list[str]) -> None:
    page = show(MADE)
    _set(page, frameworks, devices, only=True)
    _assert_shown(page, lanes, balancers, only=True)


@pytest.mark.parametrize(
    ("frameworks", "devices", "only", "cards"),
    [
        (FRAMEWORKS, DEVICES, False, 3),
        (FRAMEWORKS, DEVICES, True, 3),
        ({"torch"}, DEVICES, False, 1),
        (FRAMEWORKS, {"cpu", "tpu"}, True, 2),
        (FRAMEWORKS, {"cpu"}, False, 0),
    ],
)
def test_a_disagreement_is_shown_as_long_as_who_is_wrong_is(show: Show, frameworks, devices, only: bool, cards: int) -> None:
    page = show(MADE)
    _set(page, frameworks, devices, only)
    assert len(_visible(page, "#disagreements article")) == cards
    assert len(_visible(page, "#disagreements .none")) == (cards == 0)
    # Those who are right are listed too, "only differences" or not: all lanes that match, once in each card.
    lanes = [lane["id"] for lane in _lanes(frameworks, devices)]
    assert sorted(_visible(page, "#disagreements li")) == sorted(lanes * cards)


def test_reset_shows_everything_again(show: Show) -> None:
    page = show(MADE)
    _set(page, {"jax"}, {"tpu"}, only=True)
    page.locator("#reset").click()
    _assert_shown(page, [lane["id"] for lane in MADE["lanes"]], MADE["balancers"])
    assert page.locator("#filter input:checked").count() == len(FRAMEWORKS) + len(DEVICES)


def test_the_keyboard_alone_is_enough(show: Show) -> None:
    page = show(MADE)
    focused = "document.activeElement.value || document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "torch"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Space")
    _assert_shown(page, [lane["id"] for lane in _lanes({"jax"}, DEVICES)], MADE["balancers"])
    order = []
    while page.evaluate(focused) != "reset":
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
    assert order == ["jax", "cpu", "cuda", "tpu", "only", "reset"]
    page.keyboard.press("Enter")
    _assert_shown(page, [lane["id"] for lane in MADE["lanes"]], MADE["balancers"])
