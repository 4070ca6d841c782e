"""Certificates: what the lanes of one host made of the golden vectors, as data that another host can check and merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

from loss_balancers.parity.bits import from_bits
from loss_balancers.parity.certificates.host import device_kind, frameworks, host
from loss_balancers.parity.golden.comparison import Cell, Difference
from loss_balancers.parity.golden.vectors import Case, Vectors, cases, installed_vectors
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.switches import Flag, flags
from loss_balancers.parity.text import clean

SCHEMA = "loss-balancers-certificate/2"
_HEX_DIGITS = {"bf16": 4, "f16": 4, "f32": 8, "f64": 16, "i32": 8}


class CertificateError(ValueError):
    """A certificate that is refused. The message names the file and, where there is one, the field."""

    def __init__(self, file: str, field: str, message: str) -> None:
        super().__init__(": ".join(part for part in (clean(file), field, message) if part))


class LaneResults(NamedTuple):
    """One lane of a certificate, with its cells, and the flags that were other ones there than in the certificate."""

    framework: str
    device: str
    device_kind: str
    mode: str
    cells: tuple[Cell, ...]
    flags: Mapping[str, Flag] = {}  # of a NamedTuple, and never changed

    @property
    def name(self) -> str:
        """``framework-device-mode``."""
        return f"{self.framework}-{self.device}-{self.mode}"


class Certificate(NamedTuple):
    """A certificate that was checked: where it came from, the data as in the file, and its lanes."""

    file: str
    data: dict[str, Any]
    lanes: tuple[LaneResults, ...]


def make_certificate(
    rows: Mapping[str, Sequence[Cell]],
    lanes: Iterable[Lane],
    vectors: Mapping[str, Vectors] | None = None,
    lane_flags: Mapping[str, Mapping[str, Flag]] | None = None,
) -> dict[str, Any]:
    """The certificate of a run on this host, as it is written to a file.

    Args:
        rows: The cells of each lane, by the lane's name, as `run_lanes` gives them.
        lanes: The lanes of this host, among them those that ran.
        vectors: The vectors that ran, by balancer; those of this library by default.
        lane_flags: The flags where each lane ran, by its name, as `run_lanes` gives them; those of this process by default.
    """
    of_process = flags()
    ran = installed_vectors() if vectors is None else vectors
    by_name = {lane.name: lane for lane in lanes}
    inputs = {(balancer, case.name): case for balancer in ran for case in cases(ran[balancer].groups)}
    return {
        "schema": SCHEMA,
        "library": version("loss-balancers"),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": host(),
        "frameworks": frameworks(),
        "flags": of_process,
        "vectors": {balancer: ran[balancer].hash for balancer in ran},
        "lanes": [
            {
                "framework": by_name[name].framework,
                "device": by_name[name].device,
                "device_kind": device_kind(by_name[name].framework, by_name[name].device),
                "mode": by_name[name].mode,
                "flags": {flag: value for flag, value in (lane_flags or {}).get(name, {}).items() if of_process.get(flag) != value},
                "balancers": {
                    balancer: {cell.label: _cell(cell, inputs) for cell in cells if cell.balancer == balancer} for balancer in ran
                },
            }
            for name, cells in rows.items()
        ],
    }


def _cell(cell: Cell, inputs: Mapping[tuple[str, str], Case]) -> dict[str, Any]:
    if cell.absent is not None:
        return {"absent": clean(cell.absent)}
    by_case: dict[str, list[Difference]] = {}
    for difference in cell.differences:
        by_case.setdefault(difference.case, []).append(difference)
    return {
        "vectors": cell.vectors,
        "identical": cell.identical,
        "digest": cell.digest,
        "differences": [_case(inputs[cell.balancer, name], found) for name, found in by_case.items()],
    }


def _case(case: Case, found: Sequence[Difference]) -> dict[str, Any]:
    return {
        "case": case.name,
        **stated_inputs(case),
        "values": [
            {
                "what": difference.what,
                "format": difference.format,
                "expected": from_bits(difference.expected, difference.format).hex(),
                "actual_format": difference.actual_format,
                "actual": from_bits(difference.actual, difference.actual_format).hex(),
                "bits": hex_bits(difference.actual, difference.actual_format),
            }
            for difference in found
        ],
    }


def stated_inputs(case: Case) -> dict[str, Any]:
    """What went into a case, in hex floats."""
    return {"inputs": {name: value.hex() for name, value in case.inputs.items()}, "cotangent": case.cotangent.hex()}


def hex_bits(bits: int, fmt: str) -> str:
    """Bits in hex, with as many digits as the format has."""
    return f"0x{bits:0{_HEX_DIGITS[fmt]}x}"
