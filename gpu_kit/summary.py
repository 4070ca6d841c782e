"""What was found, in ten lines; and the exit status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_kit.figures import NOT_HERE, read
from loss_balancers.parity.text import clean

IDENTICAL, DIFFERENT, INCOMPLETE = 0, 1, 3
Data = Mapping[str, Any]


def summary(folder: Path, jobs: Sequence[str]) -> str:
    """Ten lines of text."""
    found = {name: read(folder, name) for name in ("host", "progress", "certificate", "quotients", "costs")}
    status = verdict(found, jobs)
    words = {
        IDENTICAL: "every bit identical, all jobs done",
        DIFFERENT: "SOMETHING DIFFERS",
        INCOMPLETE: "no difference, INCOMPLETE",
    }
    host = found["host"]
    lines = [
        f"device       {_device(host)}",
        f"torch        {_framework(host, 'torch')}; jax {_framework(host, 'jax')}",
        f"vectors      {_lanes(found['certificate'], 'torch')}",
        f"             {_lanes(found['certificate'], 'jax')}",
        f"quotients    {_quotients(found['quotients'])}",
        f"kernels      {_each(found['costs'], 'kernels', _launched)} (forward+backward+step; by hand forward+backward)",
        f"syncs        {_each(found['costs'], 'kernels', _syncs)}",
        f"eager        {_each(found['costs'], 'eager', _times)} times as long as by hand; "
        f"compiled: {_each(found['costs'], 'compiled', _of_default)}",
        f"CUDA graphs  {_each(found['costs'], 'graph', _replays)}",
        f"verdict      {words[status]}: {_jobs(found['progress'], jobs)}; exit status {status}; "
        f"merge {clean(folder, 4096)}/certificate.json",
    ]
    return "\n".join(lines) + "\n"


def verdict(found: Data, jobs: Sequence[str]) -> int:
    """The exit status: any difference, else whether all is done."""
    if any(_differences(found)):
        return DIFFERENT
    done = all(found["progress"].get(job, {}).get("state") == "done" for job in jobs)
    # Who does not see a planted wait has not shown that there is none.
    sees = all(measures.get("kernels", {}).get("a planted sync is found", True) for measures in found["costs"].values())
    return IDENTICAL if done and sees else INCOMPLETE


def _differences(found: Data) -> Iterator[bool]:
    for _, cell in _cells(found["certificate"]):
        yield cell.get("identical") != cell.get("vectors")
    for formats in found["quotients"].values():
        yield from (one.get("differ", 0) > 0 for one in formats.values())
    for measures in found["costs"].values():
        yield measures.get("kernels", {}).get("syncs") not in (None, NOT_HERE)
        for measure in (measures.get("graph", {}), *_dicts(measures.get("compiled"))):
            yield measure.get("differ", 0) > 0


def _dicts(measure: Any) -> list[Data]:
    return [one for one in (measure or {}).values() if isinstance(one, dict)]


def _cells(certificate: Data) -> Iterator[tuple[Data, Data]]:
    for lane in certificate.get("lanes", ()):
        for columns in lane["balancers"].values():
            yield from ((lane, cell) for cell in columns.values())


def _device(host: Data) -> str:
    driver = host.get("driver")
    if isinstance(driver, list):
        return "; ".join(f"{one['name']}, driver {one['driver_version']}, {one['memory.total']}" for one in driver)
    return f"{host.get('host', {}).get('processor', 'not asked')} (driver: {driver})"


def _framework(host: Data, name: str) -> str:
    found = host.get(name)
    return "not asked" if found is None else f"{found['version']} on {found.get('device', host['device'])}"


def _lanes(certificate: Data, framework: str) -> str:
    """The lanes of a framework: how many results are identical, of how many that ran, and how many did not run."""
    counts: dict[str, list[int]] = {}
    for lane, cell in _cells(certificate):
        if lane["framework"] == framework:
            count = counts.setdefault(f"{framework}-{lane['device']}-{lane['mode']}", [0, 0, 0])
            if "absent" in cell:
                count[2] += 1
            else:
                count[0] += cell["identical"]
                count[1] += cell["vectors"]
    shown = [
        f"{name} {identical}/{ran}" + (f" (and {absent} columns not run)" if absent else "")
        for name, (identical, ran, absent) in counts.items()
    ]
    return ", ".join(shown) or f"{framework}: nothing ran"


def _quotients(quotients: Data) -> str:
    ran = [one for formats in quotients.values() for one in formats.values()]
    drawn, differ = (sum(one.get(key, 0) for one in ran) for key in ("drawn", "differ"))
    failed = sum("failed" in one for one in ran)
    return f"{differ:,} of {drawn:,} differ, on {len(quotients)} lanes" + (f"; {failed} FAILED" if failed else "")


def _each(costs: Data, what: str, shown: Any) -> str:
    """What a measure gives for each balancer; once where it is the same for all."""
    given = {}
    for name, measures in costs.items():
        if (measure := measures.get(what)) is not None:
            given[name.removesuffix("LossBalancer")] = "FAILED" if "failed" in measure else shown(measure)
    if not given:
        return "not run"
    texts = set(given.values())
    return texts.pop() if len(texts) == 1 else ", ".join(f"{name} {text}" for name, text in given.items())


def _launched(measure: Data) -> str:
    launched = measure["launched"]
    if launched == NOT_HERE:
        return NOT_HERE
    ours, by_hand = ("+".join(str(part["count"]) for part in launched[side].values()) for side in ("ours", "by hand"))
    return f"{ours} ({by_hand})"


def _syncs(measure: Data) -> str:
    if measure["syncs"] == NOT_HERE:
        return NOT_HERE
    planted = "" if measure["a planted sync is found"] else " (BUT A PLANTED ONE IS NOT FOUND)"
    return ("none" if measure["syncs"] is None else f"WAITS: {measure['syncs']}") + planted


def _times(measure: Data) -> str:
    return f"{measure['times as long']:.2f}"


def _of_default(measure: Data) -> str:
    found = measure["default"]
    return _times(found) + (f" ({found['differ']} STEPS DIFFER)" if found["differ"] else "")


def _replays(measure: Data) -> str:
    if "replayed" in measure:
        return measure["replayed"]
    return f"{measure['differ']} of {measure['replays']} replays differ, {_times(measure)} times as long"


def _jobs(progress: Data, jobs: Sequence[str]) -> str:
    """How many jobs are done, and what became of the others."""
    rest = {job: progress.get(job, {}).get("state", "not begun") for job in jobs}
    others = [f"{job} {state.partition(',')[0]}" for job, state in rest.items() if state != "done"]
    return f"{len(jobs) - len(others)} of {len(jobs)} jobs done" + "".join(f", {other}" for other in others)
