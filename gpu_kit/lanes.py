"""The golden vectors on one lane, and the certificate of all lanes so far."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from gpu_kit.figures import change, first_line, record
from gpu_kit.jobs import ABSENT
from loss_balancers.parity.certificates.certificate import make_certificate
from loss_balancers.parity.golden.comparison import Cell
from loss_balancers.parity.golden.vectors import LABELS, columns, installed_vectors
from loss_balancers.parity.lanes.absent import NotCompiledError
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.run import run_lane

#: The columns in order of what they tell; those together that share compilations.
CHUNKS = (("f32",), ("bf16", "f16"), ("f64", "mixed"))
TIME_WAS_UP = "not run: the time of the lane was up"


def run(job: str, folder: Path) -> int:
    """Runs a lane, or of ``LANE.BALANCER`` that balancer, some columns at a time; the certificate is written after each.

    Columns that fail stop no other.
    """
    name, _, balancer = job.partition(".")
    lane = next((lane for lane in _lanes(name.partition("-")[0]) if lane.name == name), None)
    reason = "there is no such lane" if lane is None else lane.why_absent()
    if lane is None or reason is not None:
        return _absent(job, reason, folder)
    vectors = installed_vectors()
    every = [group for of_balancer in vectors.values() for group in of_balancer.groups]
    groups = [group for group in every if not balancer or group.balancer == f"{balancer}LossBalancer"]
    cells = {pair: Cell(name, *pair, absent=TIME_WAS_UP) for pair in columns(every, LABELS)}
    own = {group.balancer for group in groups}
    failed = 0
    for labels in CHUNKS:
        try:
            ran = run_lane(lane, groups, labels)
        except NotCompiledError as error:
            return _absent(job, str(error), folder)
        except Exception as error:  # of a compiler that fails: the reason stands in the certificate, and the traceback in the log
            import traceback

            traceback.print_exc()
            failed = 1
            reason = f"failed: {first_line(error)}"
            ran = [cell._replace(absent=reason) for cell in cells.values() if cell.label in labels and cell.balancer in own]
        cells |= {(cell.balancer, cell.label): cell for cell in ran}
        _certify(lane, list(cells.values()), own, folder)
    return failed


def _lanes(framework: str) -> list[Lane]:
    """Those of one framework: the other would start its own device."""
    if framework == "torch":
        from loss_balancers.parity.lanes.in_torch import torch_lanes

        return torch_lanes()
    from loss_balancers.parity.lanes.in_jax import jax_lanes

    return jax_lanes()


def _absent(name: str, reason: Any, folder: Path) -> int:
    record(folder, "progress", name, "why", value=reason)
    return ABSENT


def _certify(lane: Lane, cells: Sequence[Cell], own: Set[str], folder: Path) -> None:
    """Puts some balancers of the lane, as far as they got, into the certificate, where there is a result of them."""
    if all(cell.absent is not None for cell in cells):
        return
    made = make_certificate({lane.name: cells}, [lane])

    def joined(before: dict[str, Any]) -> dict[str, Any]:
        if not before:
            return made
        (row,) = made["lanes"]
        # The flags of a lane are those that were other ones there than the certificate says.
        row["flags"] = {flag: value for flag, value in made["flags"].items() if before["flags"].get(flag) != value}
        others = [other for other in before["lanes"] if _mode(other) != _mode(row)]
        for same in (other for other in before["lanes"] if _mode(other) == _mode(row)):  # jobs of other balancers were here
            row["balancers"] |= {name: cells for name, cells in same["balancers"].items() if name not in own}
        return {**before, "created": made["created"], "lanes": [*others, row]}

    change(folder, "certificate", joined)


def _mode(lane: dict[str, Any]) -> tuple[str, str, str]:
    return lane["framework"], lane["device"], lane["mode"]
