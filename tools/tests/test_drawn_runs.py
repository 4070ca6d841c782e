"""`make drawn-runs`: every balancer and way is run with as many sequences as are promised, and what differs is counted."""

from collections import Counter
from pathlib import Path

import drawn
import drawn_runs
import pytest

from loss_balancers.spec import registry


def test_at_least_fifty_sequences_of_fifty_steps_of_every_balancer_in_every_way() -> None:
    found = Counter[tuple[str, str, bool]]()
    for job in drawn_runs.jobs(drawn.BALANCERS, drawn.SEQUENCES):
        found[job.balancer, job.way, bool(job.keyword)] += job.sequences * len(drawn.BALANCERS[job.balancer])
    assert set(found) == {(balancer, way, given) for balancer in drawn.BALANCERS for way in drawn.WAYS for given in (False, True)}
    assert min(found.values()) >= 50
    assert drawn.STEPS >= 50


def test_the_first_sequences_are_the_same_however_many_there_are() -> None:
    balancer = next(iter(drawn.BALANCERS))
    few, more = (drawn.groups(balancer, "count", sequences) for sequences in (1, 2))
    assert repr(few) == repr(drawn.beginning(more, 1))  # as text, since a NaN is not equal to itself
    assert repr(few) != repr(more)


def test_a_job_counts_what_it_compares() -> None:
    balancer = next(iter(drawn.BALANCERS))
    row = drawn_runs.run(drawn_runs.Job(balancer, "torch-eager", "", 1))
    assert (row.sequences, row.different) == (len(drawn.BALANCERS[balancer]), [])
    assert row.results >= row.sequences * drawn.STEPS * 7  # an aggregate, three gradients and three weights


def test_what_differs_is_on_the_page_and_is_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"

    def ran(todo, workers):
        return [(job, drawn_runs.Row(26, 1000, ["planted"] if job.keyword == "share" else [], 2.0)) for job in todo]

    monkeypatch.setattr(drawn_runs, "ran", ran)
    monkeypatch.setattr("sys.argv", ["drawn_runs.py", "--page", str(page)])
    assert drawn_runs.main() == 1
    assert "planted" in capsys.readouterr().out
    for balancer in drawn.BALANCERS:
        assert page.read_text("utf-8").count(f"| `{balancer}` | ") == len(drawn.WAYS)
    assert "| jax-eager | 78 | 50 | 3,000 | 1 | 6 |" in page.read_text("utf-8")
    monkeypatch.setattr(drawn_runs, "ran", lambda todo, workers: [(job, drawn_runs.Row(1, 9, [], 2.0)) for job in todo])
    assert drawn_runs.main() == 0


def test_fewer_sequences_leave_the_page_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_runs, "ran", lambda todo, workers: [(job, drawn_runs.Row(1, 9, [], 2.0)) for job in todo])
    monkeypatch.setattr("sys.argv", ["drawn_runs.py", "--page", str(tmp_path / "page.md"), "--sequences", "4"])
    assert drawn_runs.main() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_balancer_that_is_measured_alone_replaces_its_rows_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, (first, second, *_) = tmp_path / "page.md", drawn.BALANCERS

    def measured(results: int, *asked: str) -> dict[tuple[str, str], str]:
        monkeypatch.setattr(drawn_runs, "ran", lambda todo, workers: [(job, drawn_runs.Row(26, results, [], 2.0)) for job in todo])
        monkeypatch.setattr("sys.argv", ["drawn_runs.py", "--page", str(page), *asked])
        assert drawn_runs.main() == 0
        return {of: cells[2] for of, cells in drawn_runs.measured_before(page.read_text("utf-8")).items()}

    before = measured(1, "--balancer", second)
    assert before == {(second, way): "3" for way in drawn.WAYS}
    both = measured(2, "--balancer", first)
    assert both == {(first, way): "6" for way in drawn.WAYS} | before
    assert list(both) == [(balancer, way) for balancer in (first, second) for way in drawn.WAYS]
    assert set(measured(3, "--balancer", first).values()) == {"9", "3"}
    assert set(measured(4).values()) == {"12"}


def test_the_page_in_the_documents_says_that_nothing_differs() -> None:
    rows = [line.split(" | ") for line in drawn_runs.PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert {(row[0].strip("| `"), row[1]) for row in rows} <= {(name, way) for name in registry.SETTINGS for way in drawn.WAYS}
    assert rows
    assert {row[5] for row in rows} == {"0"}
    assert min(int(row[2]) for row in rows) >= 50
