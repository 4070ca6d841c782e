"""What the tests of certificates share: a few vectors, small certificates of real lanes, and one that was doctored with care."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from loss_balancers.parity.bits import from_bits
from loss_balancers.parity.certificates.certificate import make_certificate
from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.golden.vectors import LABELS, Value, Vectors, cases, column_digest, columns, digest, installed_vectors
from loss_balancers.parity.lanes.known import find_lanes
from loss_balancers.parity.run import run_lane
from loss_balancers.spec import Group, load_golden

BALANCER = "StaticLossBalancer"


@cache
def few_vectors() -> dict[str, Vectors]:
    """Two groups of each column; of each group zeros, minus zeros, an infinity, a NaN, and two draws."""
    chosen = [group for found in columns(load_golden(), LABELS).values() for group in found[2:4]]
    groups = tuple(group._replace(sequences=(*group.sequences[:4], *group.sequences[-4:-2])) for group in chosen)
    return {BALANCER: Vectors(hashlib.sha256(repr(groups).encode()).hexdigest(), groups)}


@cache
def few_sequences() -> dict[str, Vectors]:
    """Two steps of a balancer that changes over time, in the first column and in the last."""
    balancer = "EMANormalizedLossBalancer"
    found = columns(installed_vectors()[balancer].groups, (LABELS[0], LABELS[-1]))
    groups = tuple(group._replace(sequences=(group.sequences[1][2:4],)) for chosen in found.values() for group in chosen[:1])
    return {balancer: Vectors(hashlib.sha256(repr(groups).encode()).hexdigest(), groups)}


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


@cache
def _sequences_certificate() -> dict[str, Any]:
    vectors = few_sequences()
    eager = next(lane for lane in find_lanes() if lane.name == "torch-cpu-eager")

    def run(groups: Sequence[Group]) -> Iterator[list[Result]]:
        for index, results in enumerate(eager.run(groups)):
            yield [_a_weight_and_a_count_off(result) if index == 1 else result for result in results]

    lane = eager._replace(mode="deviating", run=run)
    groups = [group for of_balancer in vectors.values() for group in of_balancer.groups]
    return make_certificate({lane.name: run_lane(lane, groups)}, [lane], vectors)


def _a_weight_and_a_count_off(result: Result) -> Result:
    weights = {name: (fmt, bits ^ 1) for name, (fmt, bits) in result.weights.items()}
    return result._replace(weights=weights, state={**result.state, "steps": ("i32", 7)})


def sequences_certificate() -> dict[str, Any]:
    """Of the few sequences, by a lane of which one step of each group has other weights and another count."""
    return copy.deepcopy(_sequences_certificate())


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
    cell["digest"] = fitting_digest(cell, label)
    return data


def fitting_digest(cell: dict[str, Any], label: str) -> str:
    """The digest of a column of the few vectors that gave what its cell lists as different, and else what the reference gives."""
    listed = {entry["case"]: entry["values"] for entry in cell["differences"]}
    digests = []
    for case in cases(columns(few_vectors()[BALANCER].groups, [label])[BALANCER, label]):
        given = {value.what: value for value in case.values}
        for value in listed.get(case.name, ()):
            given[value["what"]] = Value(value["what"], value["actual_format"], int(value["bits"], 16))
        digests.append(digest(given.values()))
    return column_digest(digests)
