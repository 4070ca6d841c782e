"""The HTML report as text; `browser_tests` read it in a browser."""

import re

import pytest
from report_cases import FORGED, doctored, forged, matrix

from loss_balancers.parity.report.page import html_report


def test_the_same_matrix_gives_the_same_page() -> None:
    assert html_report(doctored()) == html_report(doctored())
    assert html_report(doctored()) != html_report(matrix())


@pytest.mark.parametrize("made", [matrix(), doctored(), forged()], ids=["all-identical", "doctored", "forged"])
def test_nothing_on_the_page_is_fetched(made) -> None:
    page = html_report(made)
    markup = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="([^"]*)"', markup)
    assert not [link for link in re.findall(r'(?:src|href|srcset|action)="([^"]*)"', markup) if not link.startswith(("#", "data:"))]
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page


def test_every_text_is_escaped() -> None:
    page = html_report(forged())
    assert FORGED not in page
    assert "<img" not in page
    assert page.count("<script") == 2


def test_a_matrix_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a matrix of the schema 'loss-balancers-matrix/1'. Received 'abacus/2'"):
        html_report(matrix() | {"schema": "abacus/2"})
