"""`make exhaustive`: every block is tried once, a fault is counted, and a run goes on where it was."""

import json
from pathlib import Path
from typing import Any

import exhaustive
import numpy as np
import pytest
from elementary import NAMES, exact, floats
from elementary_page import page

from loss_balancers.spec import hard_inputs

RIGHT = {name: lambda x, name=name: exact(name, x) for name in NAMES}


def one_off_at(bits: int) -> Any:
    """`exp` with one result that is the next float32 number."""

    def run(x: np.ndarray) -> np.ndarray:
        y = exact("exp", x)
        return np.where(x.view(np.uint32) == bits, np.nextafter(y, np.float32(np.inf)), y)

    return run


def test_every_block_comes_once_and_a_first_part_is_spread_over_all() -> None:
    blocks = exhaustive.blocks()
    assert sorted(blocks) == list(range(exhaustive.BLOCKS))
    assert sorted(blocks[:16]) == list(range(0, exhaustive.BLOCKS, exhaustive.BLOCKS // 16))
    assert exhaustive.SIZE * exhaustive.BLOCKS == 2**32


@pytest.mark.parametrize("count", [0, 1, 3, 50])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_no_block_is_lost_between_workers(count: int, workers: int) -> None:
    assert list(exhaustive.in_order(lambda i: i * i, list(range(count)), workers)) == [i * i for i in range(count)]


def test_a_wrong_result_is_counted_and_named() -> None:
    bits = hard_inputs.EXP[0]
    lanes = {"right": RIGHT, "wrong": {**RIGHT, "exp": one_off_at(bits)}}
    found = exhaustive.tried(bits // exhaustive.SIZE, lanes)
    none = {"wrong": 0, "first": None}
    assert found["right"] == dict.fromkeys(NAMES, none)
    assert found["wrong"] == {**dict.fromkeys(NAMES, none), "exp": {"wrong": 1, "first": f"0x{bits:08X}"}}


def test_signs_of_zero_count_and_kinds_of_nan_do_not() -> None:
    a, b = np.array([0.0, np.nan, np.nan], np.float32), np.array([-0.0, -np.nan, 1.0], np.float32)
    assert exhaustive.wrong(a, b).tolist() == [0, 2]


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "SIZE", 16)
    monkeypatch.setattr(exhaustive, "lanes", lambda: {"lane": {**RIGHT, "exp": lambda x: x * 0 + 2}})
    monkeypatch.setattr(exhaustive.torch, "set_num_threads", lambda count: None)
    file = tmp_path / "state.json"
    assert exhaustive.run(file, 8)["done"] == 8
    tried = []
    do = exhaustive.tried
    monkeypatch.setattr(exhaustive, "tried", lambda block, functions: tried.append(block) or do(block, functions))
    state = exhaustive.run(file, 12)
    assert (state["done"], sorted(tried[1:])) == (12, sorted(exhaustive.blocks()[8:12]))
    assert state["wrong"]["lane"]["exp"]["wrong"] == 12 * 16
    text = page(state, 16, exhaustive.BLOCKS)
    assert "of 192 of all 4,294,967,296 float32 numbers" in " ".join(text.split())
    assert "| `lane` | 192, the first at 0x00000000 | 0 | 0 |" in text
    file.write_text(json.dumps({**state, "code": "another"}))
    assert exhaustive.resumed(file)["done"] == 0


def test_floats_are_made_of_their_bits() -> None:
    assert floats([0x3F800000, 0xC0000000]).tolist() == [1.0, -2.0]
