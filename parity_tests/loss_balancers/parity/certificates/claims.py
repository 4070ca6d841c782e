"""What the audit says of compiled code, beside what a device gave: two witnesses of one thing, so they must not contradict.

The audit reads the float32 code of aggregate and gradients that a compiler emits for a device. So a claim is compared with the
float32 column of the lanes that compile the balancer, and with aggregates and gradients alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loss_balancers.parity.certificates.certificate import Certificate, LaneResults
from loss_balancers.parity.golden.comparison import Cell
from loss_balancers.parity.text import clean

#: The version of what `loss-balancers audit --json` writes.
AUDIT_SCHEMA = 2
#: The kind of target that an audit of a lane's framework and device has. Not of the CPU, which is the auditing host's own.
FAMILIES = {("jax", "cuda"): "cuda", ("torch", "cuda"): "cuda-torch", ("jax", "tpu"): "tpu"}
#: The modes that compile no balancer as a whole.
NOT_COMPILED = {"jax": ("eager",), "torch": ("eager", "vmap")}
LABEL = "f32"
#: How the names of the cases end whose arithmetic is read; of the others it is read that no launch has a race.
ARITHMETIC = (" forward", " gradient")
AS_SPECIFIED, FINDINGS, NOT_ESTABLISHED = "as specified", "findings", "not established"
#: All that a case of an audit may have, those of planted faults among them.
STATUSES = {AS_SPECIFIED, FINDINGS, NOT_ESTABLISHED, "found", "missed"}
#: What a claim and a device make together. Only the last is an error.
AGREE, NOTE, CONTRADICTION = "agree", "note", "contradiction"


class AuditError(ValueError):
    """An audit that is refused. The message names the file."""

    def __init__(self, file: Path, message: str) -> None:
        super().__init__(f"{clean(file)}: {message}")


def read_audit(file: Path, certificates: Sequence[Certificate]) -> dict[str, Any]:
    """What `loss-balancers audit --json` wrote.

    Args:
        file: The file.
        certificates: Those that it is laid beside.

    Raises:
        AuditError: It cannot be read, is no such file, or is of another version of this library than a certificate.
    """
    audit: Any = None
    try:
        audit = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise AuditError(file, f"cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        pass  # not JSON, which is not an audit either
    if not _is_audit(audit):
        raise AuditError(file, "is not an audit of this version. Name the file that `loss-balancers audit --json` wrote.")
    for certificate in certificates:
        if certificate.data["library"] != audit["library"]:
            raise AuditError(
                file,
                f"the audit is of loss-balancers {clean(audit['library'])}, and {certificate.file} of "
                f"{certificate.data['library']}. They say nothing of each other: run both with the same version.",
            )
    return audit


def _is_audit(audit: Any) -> bool:
    """Whether it has all that is read here, of the types and among the words that the audit writes."""
    try:
        targets, statuses = audit["matrix"], {verdict["status"] for row in audit["matrix"].values() for verdict in row.values()}
        texts = [audit["library"], audit["date"], *targets, *(versions["device"] for versions in audit["versions"].values())]
        known = audit["schema"] == AUDIT_SCHEMA and audit["versions"].keys() == targets.keys()
        return known and statuses <= STATUSES and all(text == clean(text) for text in texts)
    except (TypeError, KeyError, AttributeError):
        return False


def claims(audit: Mapping[str, Any], lanes: Mapping[str, LaneResults]) -> list[dict[str, Any]]:
    """What the audit says of each balancer on each lane of whose kind it has targets, and whether the device says so too.

    Args:
        audit: What `read_audit` gave.
        lanes: The lanes of a matrix, by id.
    """
    return [claim for name, lane in lanes.items() for claim in _of_lane(audit, name, lane)]


def _of_lane(audit: Mapping[str, Any], name: str, lane: LaneResults) -> Iterator[dict[str, Any]]:
    family = FAMILIES.get((lane.framework, lane.device))
    targets = [target for target in audit["matrix"] if target.partition(":")[0] == family]
    if not targets or lane.mode in NOT_COMPILED[lane.framework]:
        return
    # The target of this very device, where there is one; else no target is nearer to it than the others.
    own = [target for target in targets if audit["versions"][target]["device"] == lane.device_kind]
    for cell in lane.cells:
        if cell.label == LABEL and cell.absent is None:
            said = {target: status for target in own or targets if (status := _said(audit["matrix"][target], cell.balancer))}
            if said:
                yield {
                    "lane": name,
                    "balancer": cell.balancer,
                    "targets": said,
                    "identical": _as_read(cell),
                    "together": _together(said, cell),
                }


def _said(cases: Mapping[str, Any], balancer: str) -> str | None:
    """What the audit of a target says of a balancer: the worst of its cases; None where it has none.

    An audit that has missed a fault that was planted establishes nothing. One that found no race says nothing of results by that.
    """
    names = [case for case in cases if case.startswith(f"{balancer} ")]
    of_balancer = [cases[name]["status"] for name in names]
    arithmetic = any(name.endswith(ARITHMETIC) for name in names)
    if not of_balancer:
        return None
    if FINDINGS in of_balancer:
        return FINDINGS
    missed = any(verdict["status"] == "missed" for verdict in cases.values())
    return AS_SPECIFIED if set(of_balancer) == {AS_SPECIFIED} and arithmetic and not missed else NOT_ESTABLISHED


def _as_read(cell: Cell) -> bool:
    """Whether what the audit reads, aggregates and gradients, is identical."""
    return not any(difference.what.startswith(("the aggregate", "the gradient")) for difference in cell.differences)


def _together(said: Mapping[str, str], cell: Cell) -> str:
    """A device that differs contradicts targets that are all as specified. Findings that no device shows are worth a note."""
    if set(said.values()) == {AS_SPECIFIED}:
        return AGREE if _as_read(cell) else CONTRADICTION
    return AGREE if FINDINGS in said.values() and not _as_read(cell) else NOTE


def in_words(claim: Mapping[str, Any], lane: str) -> str:
    """A claim and what the device gave, as a sentence."""
    said = ", ".join(f"{target}: {status}" for target, status in claim["targets"].items())
    gave = "gave identical float32 results" if claim["identical"] else "gave float32 results that differ"
    end = {
        AGREE: "",
        NOTE: " (a note: neither confirms the other)",
        CONTRADICTION: " (A CONTRADICTION: the audit does not see what the device does, or the device does not do what it is told)",
    }[claim["together"]]
    return f"{claim['balancer']} on {lane}: the audit says {said}; the device {gave}{end}"
