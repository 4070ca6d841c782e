"""The matrix on the terminal: one table however many balancers there are, cut where the window ends and nowhere else."""

import io
import re

import pytest
from report_cases import doctored, matrix
from rich.console import Console

from loss_balancers.parity.report.absences import absences
from loss_balancers.parity.report.tables import as_markdown, print_matrix


def _text(made, width: int) -> str:
    written = io.StringIO()
    print_matrix(made, Console(width=width, file=written))
    return written.getvalue()


def _counts(text: str) -> dict[str, list[str]]:
    """The counts of each lane, of all tables one after the other."""
    found: dict[str, list[str]] = {}
    for lane, counts in re.findall(r"^ ((?:\d:)?\w+-\w+-\w+) +((?:(?:\d+/\d+|-) *)+)$", text, re.MULTILINE):
        found.setdefault(lane, []).extend(counts.split())
    return found


@pytest.mark.parametrize("width", [50, 80, 200])
def test_every_count_is_there_whatever_the_width(width: int) -> None:
    made = doctored()
    expected = {}
    for lane in made["lanes"]:
        cells = [cell for cell in made["cells"] if cell["lane"] == lane["id"]]
        of_balancers = [[cell for cell in cells if cell["balancer"] == balancer] for balancer in made["balancers"]]
        expected[lane["id"]] = [f"{sum(c['identical'] for c in of)}/{sum(c['vectors'] for c in of)}" for of in of_balancers]
    text = _text(made, width)
    assert _counts(text) == expected
    assert "…" not in text
    table = [line for line in text.splitlines() if re.search(r"^ +\S|─", line)]
    assert max(map(len, table)) <= width


def test_one_balancer_has_its_formats() -> None:
    text = _text(matrix(balancers=1, lanes=2), 80)
    assert [line.split() for line in text.splitlines() if "lane " in line] == [
        ["lane", "bf16", "f16", "f32", "f64", "mixed", "all"]
    ]
    assert _counts(text)["torch-cpu-eager"] == ["114/114", "114/114", "209/209", "133/133", "171/171", "741/741"]


def test_what_did_not_run_is_said_once_for_all_that_lack_the_same() -> None:
    made = doctored()
    tpu = [lane["id"] for lane in made["lanes"] if lane["device"] == "tpu"]
    assert [(found.labels, found.balancers, found.lanes) for found in absences(made)] == [
        (["f64"], [], tpu),
        (["mixed"], ["StaticLossBalancer"], ["2:torch-cuda-step"]),
    ]
    for text in (_text(made, 300), as_markdown(made)):
        lines = [line for line in text.splitlines() if "absent: " in line]
        assert len(lines) == 2
        assert "and 4 more, f64: every balancer (float64 on tpu is an emulation: " in lines[0]
        assert "mixed: StaticLossBalancer (cuda has no bfloat16)" in lines[1]
