"""Certificates of hosts that never meet, merged into one matrix. Neither torch nor JAX is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loss_balancers.parity.bits import from_bits, ulp_distance
from loss_balancers.parity.certificates.certificate import Certificate, CertificateError, LaneResults
from loss_balancers.parity.certificates.claims import claims
from loss_balancers.parity.golden.comparison import Cell, Difference
from loss_balancers.parity.golden.vectors import LABELS

SCHEMA = "loss-balancers-matrix/1"


def merge(certificates: Sequence[Certificate], audit: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One matrix of all lanes of all certificates, as docs/certificates.md describes it.

    A lane's id is ``HOST:FRAMEWORK-DEVICE-MODE``, where HOST counts the certificates from 1.

    Args:
        certificates: Certificates that were checked, of the same vectors.
        audit: What `read_audit` gave, to be laid beside what devices gave.

    Raises:
        CertificateError: One certificate was given twice.
        ValueError: None was given.
    """
    if not certificates:
        raise ValueError("merge needs at least one certificate. Received none.")
    for index, certificate in enumerate(certificates):
        for before in certificates[:index]:
            if certificate.data == before.data:
                raise CertificateError(certificate.file, "", f"is the certificate {before.file} again. Give each once.")
    lanes = {
        f"{index + 1}:{lane.name}": (index, lane) for index, certificate in enumerate(certificates) for lane in certificate.lanes
    }
    cells = [(name, cell) for name, (_, lane) in lanes.items() for cell in lane.cells]
    claimed = {} if audit is None else {"audit": _claimed(audit, {name: lane for name, (_, lane) in lanes.items()})}
    return {
        "schema": SCHEMA,
        "vectors": dict(certificates[0].data["vectors"]),
        "certificates": [
            {"file": c.file, **{key: c.data[key] for key in ("library", "created", "host", "frameworks", "flags")}}
            for c in certificates
        ],
        "lanes": [_lane(name, index, lane) for name, (index, lane) in lanes.items()],
        "balancers": list(certificates[0].data["vectors"]),
        "labels": list(LABELS),
        "cells": [_cell(name, cell, certificates[lanes[name][0]]) for name, cell in cells if cell.absent is None],
        "absent": [
            {"balancer": cell.balancer, "lane": name, "label": cell.label, "reason": cell.absent}
            for name, cell in cells
            if cell.absent is not None
        ],
        "disagreements": list(_disagreements(cells)),
        "results": sum(cell.vectors for _, cell in cells),
        "identical": sum(cell.identical for _, cell in cells),
        **claimed,
    }


def _claimed(audit: Mapping[str, Any], lanes: Mapping[str, LaneResults]) -> dict[str, Any]:
    return {"date": audit["date"], "claims": claims(audit, lanes)}


def _lane(name: str, index: int, lane: LaneResults) -> dict[str, Any]:
    kind = {"framework": lane.framework, "device": lane.device, "device_kind": lane.device_kind, "mode": lane.mode}
    return {"id": name, "certificate": index, **kind, "flags": dict(lane.flags)}


def _cell(name: str, cell: Cell, certificate: Certificate) -> dict[str, Any]:
    counts = {"vectors": cell.vectors, "identical": cell.identical}
    worst = None if cell.worst is None else _worst(cell.worst, cell, certificate)
    return {"balancer": cell.balancer, "lane": name, "label": cell.label, **counts, "worst": worst}


def _worst(worst: Difference, cell: Cell, certificate: Certificate) -> dict[str, Any]:
    lane = next(i for i, lane in enumerate(certificate.lanes) if lane.name == cell.lane)
    listed = certificate.data["lanes"][lane]["balancers"][cell.balancer][cell.label]["differences"]
    inputs = next({"inputs": entry["inputs"], "cotangent": entry["cotangent"]} for entry in listed if entry["case"] == worst.case)
    fmt, expected, actual = worst.comparable
    values = {"expected": from_bits(expected, fmt).hex(), "actual": from_bits(actual, fmt).hex(), "ulp": worst.ulp}
    return {"case": worst.case, "what": worst.title, "format": fmt, **inputs, **values}


def _disagreements(cells: Iterable[tuple[str, Cell]]) -> Iterator[dict[str, Any]]:
    """Every value that not all lanes have as the reference has it, with the value of each lane that ran it."""
    by_column: dict[tuple[str, str], dict[str, Cell]] = {}
    for name, cell in cells:
        if cell.absent is None:
            by_column.setdefault((cell.balancer, cell.label), {})[name] = cell
    for (balancer, _), column in by_column.items():
        odd: dict[tuple[str, str], dict[str, Difference]] = {}
        for name, cell in column.items():
            for difference in cell.differences:
                odd.setdefault((difference.case, difference.what), {})[name] = difference
        for found in odd.values():
            yield from _of_one_value(balancer, found, list(column))


def _of_one_value(balancer: str, odd: Mapping[str, Difference], ran: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One disagreement; of a value that came in another format than the reference's, one for each such format.

    In those only the lanes that gave that format are listed: what the others gave is not comparable as bits.
    """
    for title in dict.fromkeys(difference.title for difference in odd.values()):
        found = {name: difference for name, difference in odd.items() if difference.title == title}
        sample = next(iter(found.values()))
        fmt, expected, _ = sample.comparable
        bits = {name: difference.comparable[2] for name, difference in found.items()}
        if sample.actual_format == sample.format:
            bits = {name: bits.get(name, expected) for name in ran if name in bits or name not in odd}
        yield {
            "balancer": balancer,
            "case": sample.case,
            "what": title,
            "format": fmt,
            "values": [{"lane": name, "value": from_bits(value, fmt).hex()} for name, value in bits.items()],
            "expected": from_bits(expected, fmt).hex(),
            "ulp": _widest([expected, *bits.values()], fmt),
        }


def _widest(bits: Sequence[int], fmt: str) -> int | None:
    """The largest distance between any two; None if a NaN is among them."""
    distinct = list(dict.fromkeys(bits))
    distances = [ulp_distance(a, b, fmt) for a in distinct for b in distinct]
    return None if None in distances else max(d for d in distances if d is not None)
