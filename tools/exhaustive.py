"""`make exhaustive`: `exp`, `log` and `sqrt` of all 2^32 float32 numbers on every lane of a CPU, against the exact results.

It can be stopped at any time, and goes on where it was unless versions, processor or code have changed. The blocks of numbers come
in an order in which any first part is spread evenly over all of them. `elementary_page.py` makes the page of what came out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import elementary
import jax
import numpy as np
import torch
from elementary import NAMES, exact
from elementary_page import PAGE, page
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import loss_balancers.jax.portable
import loss_balancers.torch.portable
from loss_balancers.parity.certificates.host import frameworks, host
from loss_balancers.parity.files import write_json, write_text

ROOT = Path(__file__).parent.parent
STATE = ROOT / "out" / "exhaustive.json"
#: As many numbers are in a block, and as many blocks there are: 2^32 numbers in all.
SIZE, BLOCKS = 2**18, 2**14
#: What has been done is written so often, in seconds.
EVERY = 20.0

Function = Callable[[np.ndarray], np.ndarray]


def lanes() -> dict[str, dict[str, Function]]:
    """By lane and name, a function of a block."""
    ours, theirs = loss_balancers.torch.portable, loss_balancers.jax.portable

    def in_torch(function: Any) -> Function:
        return lambda x: function(torch.from_numpy(x)).numpy()

    def in_jax(function: Any) -> Function:
        return lambda x: np.asarray(function(x))

    return {
        "torch-cpu-eager": {name: in_torch(getattr(ours, name)) for name in NAMES},
        "torch-cpu-compiled": {name: in_torch(torch.compile(getattr(ours, name), fullgraph=True, dynamic=False)) for name in NAMES},
        "jax-cpu-jit": {name: in_jax(jax.jit(getattr(theirs, name))) for name in NAMES},
    }


def wrong(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where two blocks differ in their bits. Any NaN is as good as another."""
    at = np.flatnonzero(given.view(np.uint32) != wanted.view(np.uint32))
    return at[~(np.isnan(given[at]) & np.isnan(wanted[at]))]


def tried(block: int, functions: Mapping[str, Mapping[str, Function]]) -> dict[str, dict[str, Any]]:
    """How many results of a block are wrong by lane and name, and the bits of the first number that has one."""
    bits = np.arange(block * SIZE, (block + 1) * SIZE, dtype=np.uint32)
    x = elementary.floats(bits)
    found: dict[str, dict[str, Any]] = {lane: {} for lane in functions}
    for name in NAMES:
        wanted = exact(name, x)
        for lane, of_name in functions.items():
            at = wrong(of_name[name](x), wanted)
            found[lane][name] = {"wrong": len(at), "first": f"0x{bits[at[0]]:08X}" if len(at) else None}
    return found


def blocks() -> list[int]:
    """All blocks, the bits of their numbers reversed: so the first n are spread over all numbers."""
    width = BLOCKS.bit_length() - 1
    return [int(f"{i:0{width}b}"[::-1], 2) for i in range(BLOCKS)]


def fresh() -> dict[str, Any]:
    """A state in which nothing has been tried."""
    code = hashlib.sha256()
    packages = (loss_balancers.torch.portable, loss_balancers.jax.portable)
    files = [file for package in packages for file in sorted(Path(str(package.__file__)).parent.glob("*.py"))]
    for file in (*files, Path(str(elementary.__file__)), Path(str(elementary.hard_inputs.__file__)), Path(__file__)):
        code.update(file.read_bytes())
    made = {"code": code.hexdigest(), "frameworks": frameworks(), "host": host(), "cpu": torch.backends.cpu.get_cpu_capability()}
    return {**made, "done": 0, "seconds": 0.0, "wrong": {}}


def resumed(path: Path) -> dict[str, Any]:
    """What was done, if it was done with this code, these versions and this processor."""
    new = fresh()
    if not path.exists():
        return new
    old = json.loads(path.read_text("utf-8"))
    same = all(old.get(key) == new[key] for key in ("code", "frameworks", "host", "cpu"))
    return old if same else new


def add(state: dict[str, Any], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Counts a block in."""
    for lane, names in found.items():
        for name, each in names.items():
            total = state["wrong"].setdefault(lane, {}).setdefault(name, {"wrong": 0, "first": None})
            total["wrong"] += each["wrong"]
            total["first"] = total["first"] or each["first"]


def in_order(work: Callable[[int], Any], todo: list[int], workers: int) -> Iterator[Any]:
    """The results of ``work`` in the order of ``todo``, so that what is done is always a first part."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[Future[Any]] = []
        left = iter(todo)
        try:
            while True:
                ahead += [pool.submit(work, block) for block in islice(left, 2 * workers - len(ahead))]
                if not ahead:
                    return
                yield ahead.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)


def run(path: Path, upto: int) -> dict[str, Any]:
    """Tries blocks until ``upto`` have been, and keeps what came out in a file."""
    torch.set_num_threads(1)  # each block has a thread of its own
    state, functions = resumed(path), lanes()
    todo = blocks()[state["done"] : upto]
    tried(0, functions)  # compiles
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    began = last = time.monotonic()
    before = state["seconds"]
    with Progress(*columns) as progress:
        task = progress.add_task(f"blocks of {SIZE:,} numbers", total=upto, completed=state["done"])
        try:
            for found in in_order(lambda block: tried(block, functions), todo, os.cpu_count() or 1):
                add(state, found)
                state["done"] += 1
                state["seconds"] = before + time.monotonic() - began
                progress.advance(task)
                if time.monotonic() > last + EVERY:
                    write_json(path, state)
                    last = time.monotonic()
        finally:
            write_json(path, state)
    return state


def main() -> int:
    """The exit status: 1 if one result is wrong."""
    parser = argparse.ArgumentParser(description="exp, log and sqrt of every float32 number, on every lane of a CPU")
    parser.add_argument("--part", type=int, default=1, help="try one in so many numbers; all of them if it is 1")
    parser.add_argument("--page", type=Path, default=ROOT / PAGE)
    arguments = parser.parse_args()
    upto = -(-BLOCKS // arguments.part)
    STATE.parent.mkdir(exist_ok=True)
    state = run(STATE, upto)
    write_text(arguments.page, page(state, SIZE, BLOCKS))
    minutes = state["seconds"] / state["done"] * BLOCKS / 60
    bad = sum(each["wrong"] for names in state["wrong"].values() for each in names.values())
    print(f"{state['done'] * SIZE:,} numbers, {bad} wrong results. All 2^32 take {minutes:.0f} minutes at this speed.")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
