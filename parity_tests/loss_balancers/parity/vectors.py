"""Golden vectors as the kit compares them: cases, each with the named values that it must give, and their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

from loss_balancers.parity.bits import from_bits, to_bits
from loss_balancers.parity.lanes import Result
from loss_balancers.spec import Group, canonical_order, golden, golden_hash, load_golden

#: Hex digits of a digest: 64 bits tell results apart; nobody is kept from forging by them.
DIGEST_DIGITS = 16


class Value(NamedTuple):
    """One number that a case gives: what it is, such as "the aggregate", its format and its bits."""

    what: str
    format: str
    bits: int


class Case(NamedTuple):
    """One golden vector under its name: what goes in, and what the exact reference makes of it."""

    name: str
    inputs: dict[str, float]
    cotangent: float
    values: tuple[Value, ...]


class Vectors(NamedTuple):
    """The vectors of one balancer, and the hash by which two hosts know that they ran the same ones."""

    hash: str
    groups: tuple[Group, ...]


def installed_vectors() -> dict[str, Vectors]:
    """The vectors that come with this library, by balancer: one JSON file each."""
    stems = sorted(file.name.removesuffix(".json") for file in files(golden).iterdir() if file.name.endswith(".json"))
    found = (Vectors(golden_hash(stem), load_golden(stem)) for stem in stems)
    return {vectors.groups[0].balancer: vectors for vectors in found}


def columns(groups: Iterable[Group], labels: Sequence[str]) -> dict[tuple[str, str], list[Group]]:
    """The groups by balancer and label, in the order of the balancers, then of ``labels``; pairs without vectors are left out."""
    chosen = list(groups)
    pairs = [(balancer, label) for balancer in dict.fromkeys(group.balancer for group in chosen) for label in labels]
    by_pair = {pair: [group for group in chosen if (group.balancer, group.label) == pair] for pair in pairs}
    return {pair: found for pair, found in by_pair.items() if found}


def case_name(group: Group, index: int) -> str:
    """The name of the vector ``index`` of a group."""
    return f"{group.id}[{index}]"


def cases(groups: Iterable[Group]) -> list[Case]:
    """Every vector of the groups, group by group: the order of the digests in a certificate."""
    return [
        Case(case_name(group, index), vector.losses, vector.cotangent, _reference(group, index))
        for group in groups
        for index, vector in enumerate(group.vectors)
    ]


def _reference(group: Group, index: int) -> tuple[Value, ...]:
    vector = group.vectors[index]
    gradients = {name: (group.formats[name], to_bits(value, group.formats[name])) for name, value in vector.gradients.items()}
    return values_of(Result((group.result, to_bits(vector.aggregate, group.result)), gradients))


def values_of(result: Result) -> tuple[Value, ...]:
    """What a lane gave for one case, in canonical order: the aggregate, then the gradients."""
    names = canonical_order(tuple(result.gradients))
    return (
        Value("the aggregate", *result.aggregate),
        *(Value(f"the gradient to {name}", *result.gradients[name]) for name in names),
    )


def digest(values: Iterable[Value]) -> str:
    """A short hash over names, formats and bits of values, in their order. Every NaN counts as the same one."""
    # As JSON, because a name may hold any character.
    rows = [(value.what, value.format, hex(_one_nan(value))) for value in values]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()[:DIGEST_DIGITS]


def _one_nan(value: Value) -> int:
    return to_bits(math.nan, value.format) if math.isnan(from_bits(value.bits, value.format)) else value.bits
