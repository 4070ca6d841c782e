"""A run that is killed at random moments and goes on from what it saved has the bits of one that was never interrupted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resume_program import live

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import read_state, save_state

PROGRAM = Path(__file__).parents[1] / "helpers" / "resume_program.py"
STEPS, KILLS = 800, 20


def aggregates(folder: Path) -> list[tuple[int, str]]:
    lines = [line.split() for line in (folder / "aggregates").read_text().splitlines()]
    return [(int(step), value) for step, value in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both frameworks' runs, whole and killed, one framework after the other."""
    folders = {framework: tmp_path_factory.mktemp(framework) for framework in ("torch", "jax")}
    for framework, folder in folders.items():
        command = [sys.executable, "-W", "ignore", str(PROGRAM), framework, str(folder), str(STEPS), str(KILLS), "0"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert result.returncode == 0, result.stderr
    return folders


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_killed_run_has_the_bits_of_a_whole_one(runs: dict[str, Path], framework: str) -> None:
    whole, killed = (runs[framework] / name for name in ("whole", "killed"))
    lives = [int(line) for line in (killed / "lives").read_text().split()]
    assert len(lives) == KILLS + 1
    assert lives == sorted(lives)
    assert len(set(lives)) > KILLS // 2  # it got on between the kills
    expected, seen = aggregates(whole), aggregates(killed)
    assert [step for step, _ in expected] == list(range(STEPS))
    assert set(seen) == set(expected)  # a step that was lost and done again is there twice, with the same bits
    ours, theirs = (read_state(folder / "state.safetensors") for folder in (killed, whole))
    assert {part: ours[part] for part in ours if part != "state"} == {part: theirs[part] for part in theirs if part != "state"}
    assert list(ours["state"]) == list(theirs["state"])
    for name, value in theirs["state"].items():
        assert_same_bits(ours["state"][name], value)


def test_both_frameworks_had_the_same_run(runs: dict[str, Path]) -> None:
    assert aggregates(runs["torch"] / "whole") == aggregates(runs["jax"] / "whole")
    states = [read_state(runs[framework] / "killed" / "state.safetensors")["state"] for framework in ("torch", "jax")]
    assert sorted(states[0]) == sorted(states[1])
    for name, value in states[0].items():
        assert_same_bits(value, states[1][name])
    assert states[0]["steps"] == STEPS


def test_a_life_that_is_over_before_it_is_killed_waits_for_that(tmp_path: Path) -> None:
    """As on a fast machine, or on one so loaded that the kill comes late: each life has but one step to make."""
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "torch", str(tmp_path), "8", "7", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "killed" / "lives").read_text().split()) == 8
    assert set(aggregates(tmp_path / "killed")) == set(aggregates(tmp_path / "whole"))


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """A run that goes on with a state off by one ulp has other bits."""
    for name in ("whole", "doctored"):
        (tmp_path / name).mkdir()
        live("torch", tmp_path / name, 3)
    file = tmp_path / "doctored" / "state.safetensors"
    saved = read_state(file)
    saved["state"]["total"] = np.nextafter(saved["state"]["total"], np.float32(np.inf))
    save_state(file, saved)
    for name in ("whole", "doctored"):
        live("torch", tmp_path / name, 20)
    assert aggregates(tmp_path / "whole")[:3] == aggregates(tmp_path / "doctored")[:3]
    assert aggregates(tmp_path / "whole") != aggregates(tmp_path / "doctored")
    assert (tmp_path / "doctored" / "lives").read_text() == "0\n3\n"
