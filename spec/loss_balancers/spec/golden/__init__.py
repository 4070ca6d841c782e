"""Golden vectors: what every balancer must give, to the bit, computed by the exact reference alone.

One JSON file a balancer, hex floats. ``python -m loss_balancers.spec.golden`` writes them again; a test fails if they
drift from the reference.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any, NamedTuple


class Vector(NamedTuple):
    """One call: losses in, aggregate and gradients out. Values are floats that their format represents."""

    losses: dict[str, float]
    cotangent: float
    aggregate: float
    gradients: dict[str, float]


class Group(NamedTuple):
    """Vectors that share settings, names and formats, so that one compiled function serves them all.

    ``formats`` has the names in the shuffled order in which the losses are to be given; ``label`` is the column of the
    parity matrix: a format, or ``mixed``.
    """

    id: str
    balancer: str
    settings: dict[str, Any]
    label: str
    formats: dict[str, str]
    result: str
    weights: dict[str, float]
    vectors: tuple[Vector, ...]


def golden_text(balancer: str = "static") -> str:
    """The JSON text of one balancer's vectors."""
    return (files(__name__) / f"{balancer}.json").read_text("ascii")


def golden_hash(balancer: str = "static") -> str:
    """SHA-256 of the vectors, by which two hosts know that they ran the same ones."""
    return hashlib.sha256(golden_text(balancer).encode("ascii")).hexdigest()


def load_golden(balancer: str = "static") -> tuple[Group, ...]:
    """The groups of one balancer's vectors."""
    data = json.loads(golden_text(balancer))
    return tuple(_group(data["balancer"], group) for group in data["groups"])


def _group(balancer: str, group: dict[str, Any]) -> Group:
    return Group(
        id=group["id"],
        balancer=balancer,
        settings=group["settings"],
        label=group["label"],
        formats=group["formats"],
        result=group["result"],
        weights=_floats(group["weights"]),
        vectors=tuple(
            Vector(
                losses=_floats(vector["losses"]),
                cotangent=float.fromhex(vector["cotangent"]),
                aggregate=float.fromhex(vector["aggregate"]),
                gradients=_floats(vector["gradients"]),
            )
            for vector in group["vectors"]
        ),
    )


def _floats(values: dict[str, str]) -> dict[str, float]:
    return {name: float.fromhex(value) for name, value in values.items()}
