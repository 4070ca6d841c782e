"""A real Chromium, headless, and pages of reports in it that must not make a sound."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from loss_balancers.parity.report.page import html_report

PHONE = {"width": 375, "height": 800}
DESK = {"width": 1280, "height": 900}

Show = Callable[..., Page]


def pytest_configure() -> None:
    # An error and no skip, before anything else: a browser that is not there has tested nothing.
    if _chromium() is None:
        pytest.exit(
            "The browser tests need Chromium, and there is none on the PATH. "
            "Install it: `apt-get install chromium` (Debian), or Google Chrome.",
            returncode=1,
        )


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=["--disable-gpu", "--disable-quic"])
        yield chromium
        chromium.close()


def listen(page: Page) -> list[str]:
    """What a page says on the console, what it throws, and what it asks the network for, from now on."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(f"request: {request.url}"))
    return heard


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Opens the report of a matrix. At the end of the test nothing may have been said, thrown or fetched but the file itself."""
    opened: list[tuple[Page, list[str], str, bool]] = []

    def open_report(matrix: dict[str, Any], viewport: dict[str, int] = DESK, scripts: bool = True, **options: Any) -> Page:
        file = tmp_path / f"report-{len(opened)}.html"
        file.write_text(html_report(matrix), "utf-8")
        context = browser.new_context(viewport=viewport, java_script_enabled=scripts, **options)  # pyright: ignore[reportArgumentType]
        page = context.new_page()
        opened.append((page, listen(page), file.as_uri(), scripts))
        page.goto(file.as_uri())
        return page

    yield open_report
    for page, heard, uri, scripts in opened:
        # What it has to say is said before this is answered. Where scripts are off, a timer never rings.
        page.evaluate("new Promise(resolve => setTimeout(resolve))" if scripts else "0")
        page.context.close()
        assert heard == [f"request: {uri}"]
