"""Measuring two implementations against each other on a busy machine.

Absolute times drift with whatever else the machine does; a ratio does not, if both sides are timed a moment apart. So a
*round* times each side in turn, the order reversed from round to round, and what counts is the median over the rounds of the
ratio within a round. Each side's turn opens with calls that do not count: whoever comes second finds the caches full of the
other's code, and takes some thirty calls to be as fast as it was.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

Call = Callable[[], object]


class Comparison(NamedTuple):
    """What `compare` measured: seconds per call (the median round) and how many times faster than the peer ours is."""

    peer: float
    ours: float
    ratio: float
    #: The quartiles of the ratio within a round.
    quartiles: tuple[float, float]


def compare(
    peer: Call, ours: Call, *, rounds: int, seconds: float = 0.005, finish: Callable[[], object] = lambda: None
) -> Comparison:
    """Times ``peer`` and ``ours`` in interleaved rounds.

    Args:
        peer: One call of what we compare with.
        ours: One call of ours.
        rounds: How many rounds count; a tenth as many come before, uncounted.
        seconds: How long one side of a round takes, about. Short, so that both sides of a round meet the same machine.
        finish: Waits for a device that works on its own, before the clock is read: `torch.cuda.synchronize`.
    """
    calls = max(1, round(seconds / _time(peer, 40, finish)))
    enabled = gc.isenabled()
    gc.disable()  # a collection would fall on one side of a round
    try:
        times = []
        for i in range(-(rounds // 10), rounds):
            if i % 2:
                peer_time, ours_time = _time(peer, calls, finish), _time(ours, calls, finish)
            else:
                ours_time, peer_time = _time(ours, calls, finish), _time(peer, calls, finish)
            if i >= 0:
                times.append((peer_time, ours_time))
    finally:
        if enabled:
            gc.enable()
    ratios = [peer_time / ours_time for peer_time, ours_time in times]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Comparison(statistics.median(p for p, _ in times), statistics.median(o for _, o in times), ratio, (low, high))


def _time(call: Call, calls: int, finish: Callable[[], object]) -> float:
    for _ in range(calls // 2):
        call()
    finish()
    start = perf_counter()
    for _ in range(calls):
        call()
    finish()
    return (perf_counter() - start) / calls


def environment(*packages: str) -> dict[str, Any]:
    """Where and with what a measurement was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"kind": "cpu", "name": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
