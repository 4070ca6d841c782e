"""What the tests of certificates share: a few vectors, small certificates of real lanes, and one that was doctored with care."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from typing import Any

from loss_balancers.parity.bits import from_bits
from loss_balancers.parity.certificate import make_certificate
from loss_balancers.parity.lanes import LABELS, find_lanes
from loss_balancers.parity.run import run_lane
from loss_balancers.parity.vectors import Value, Vectors, cases, columns, digest, installed_vectors
from loss_balancers.spec import load_golden

BALANCER = "StaticLossBalancer"


@cache
def few_vectors() -> dict[str, Vectors]:
    """Two groups of each column; of each group zeros, minus zeros, an infinity, a NaN, and two draws."""
    chosen = [group for found in columns(load_golden(), LABELS).values() for group in found[2:4]]
    groups = tuple(group._replace(sequences=(*group.sequences[:4], *group.sequences[-4:-2])) for group in chosen)
    return {BALANCER: Vectors(hashlib.sha256(repr(groups).encode()).hexdigest(), groups)}


@cache
def few_sequences() -> dict[str, Vectors]:
    """Of each balancer that changes over time a group of the first and the last column: two steps of two sequences."""
    found = {}
    for balancer, vectors in installed_vectors().items():
        if balancer != BALANCER:
            groups = tuple(
                group._replace(sequences=tuple(sequence[2:4] for sequence in group.sequences[1:3]))
                for label in (LABELS[0], LABELS[-1])
                for group in columns(vectors.groups, [label])[balancer, label][:1]
            )
            found[balancer] = Vectors(hashlib.sha256(repr(groups).encode()).hexdigest(), groups)
    return found


@cache
def _certificate(names: tuple[str, ...]) -> dict[str, Any]:
    vectors = few_vectors()
    lanes = [lane for lane in find_lanes() if lane.name in names]
    return make_certificate({lane.name: run_lane(lane, vectors[BALANCER].groups) for lane in lanes}, lanes, vectors)


def torch_certificate() -> dict[str, Any]:
    """What torch's eager lane really gives for the few vectors."""
    return copy.deepcopy(_certificate(("torch-cpu-eager",)))


def jax_certificate() -> dict[str, Any]:
    """What two lanes of JAX really give for the few vectors."""
    return copy.deepcopy(_certificate(("jax-cpu-eager", "jax-cpu-vmap")))


def doctored(
    data: dict[str, Any], label: str = "f32", index: int = 10, bit: int = 0, what: str = "the aggregate"
) -> dict[str, Any]:
    """The certificate with one bit flipped in one value of its last lane, and all that follows from it made to fit."""
    data = copy.deepcopy(data)
    case = cases(columns(few_vectors()[BALANCER].groups, [label])[BALANCER, label])[index]
    values = {value.what: value for value in case.values}
    right = values[what]
    wrong = Value(what, right.format, right.bits ^ (1 << bit))
    cell = data["lanes"][-1]["balancers"][BALANCER][label]
    cell["identical"] -= 1
    cell["digests"][index] = digest((values | {what: wrong}).values())
    cell["differences"].append(
        {
            "case": case.name,
            "inputs": {name: value.hex() for name, value in case.inputs.items()},
            "cotangent": case.cotangent.hex(),
            "values": [
                {
                    "what": what,
                    "format": right.format,
                    "expected": from_bits(right.bits, right.format).hex(),
                    "actual_format": wrong.format,
                    "actual": from_bits(wrong.bits, wrong.format).hex(),
                    "bits": f"0x{wrong.bits:0{ {'bf16': 4, 'f16': 4, 'f32': 8, 'f64': 16}[right.format] }x}",
                }
            ],
        }
    )
    return data
