"""Golden vectors: what every balancer must give, to the bit, computed by the exact reference alone.

One JSON file a balancer, hex floats, one step a line. ``python -m loss_balancers.spec.golden`` writes them again; a test fails
if they drift from the reference.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple


class Vector(NamedTuple):
    """One step: losses in, aggregate and gradients out. Values are floats that their format represents.

    Unless the weights are constants, also the weights; and the state after the step, if there is state: a number or a tuple of
    them by entry.
    ``amounts`` are the float32 numbers by name that a group's keyword, ``count`` or ``share``, is given. ``learned`` has the
    parameter at this step by its name, if there is one, and ``learned_gradients`` the gradient to it.
    ``after`` are the losses that `update()` is given before the commit, with the same amounts; empty where there is no `update()`.
    """

    losses: dict[str, float]
    cotangent: float
    aggregate: float
    gradients: dict[str, float]
    weights: dict[str, float]
    state: dict[str, Any]
    amounts: dict[str, float] = {}  # noqa: RUF012  # of a NamedTuple, and never changed
    learned: dict[str, tuple[float, ...]] = {}  # noqa: RUF012
    learned_gradients: dict[str, tuple[float, ...]] = {}  # noqa: RUF012
    after: dict[str, float] = {}  # noqa: RUF012


class Group(NamedTuple):
    """Sequences of steps that share settings, names and formats, so that one compiled function serves them all.

    Each sequence begins with a new balancer. All groups of one balancer and label have the same number of sequences, each of the
    same number of steps (1 if the balancer has no state). ``formats`` has the names in the shuffled order in which losses are to be
    given; ``label`` is the column of the parity matrix: a format, or ``mixed``. ``weights`` are the weights that are constants.
    ``keyword`` is ``count`` or ``share`` if every call is given that, else empty.
    """

    id: str
    balancer: str
    settings: dict[str, Any]
    label: str
    formats: dict[str, str]
    result: str
    weights: dict[str, float]
    sequences: tuple[tuple[Vector, ...], ...]
    keyword: str = ""

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """The steps of all sequences, one sequence after the other."""
        return tuple(vector for sequence in self.sequences for vector in sequence)


def _folder() -> Any:
    from importlib import resources  # here, since it brings in archives and temporary files, and balancers need no vectors

    return resources.files(__name__)


def stems() -> list[str]:
    """The names of the files of vectors, without their suffix: each is named like the module of its balancer."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def golden_text(stem: str = "static") -> str:
    """The JSON text of one balancer's vectors."""
    return (_folder() / f"{stem}.json").read_text("ascii")


def golden_hash(stem: str = "static") -> str:
    """SHA-256 of the vectors, by which two hosts know that they ran the same vectors.

    The hash is of the values in their order, written as JSON with one value a line. The layout of the file does not matter.
    """
    values = json.dumps(json.loads(golden_text(stem)), indent=0) + "\n"
    return hashlib.sha256(values.encode("ascii")).hexdigest()


def load_golden(stem: str = "static") -> tuple[Group, ...]:
    """The groups of one balancer's vectors."""
    data = json.loads(golden_text(stem))
    return tuple(_group(data["balancer"], group) for group in data["groups"])


def _group(balancer: str, group: dict[str, Any]) -> Group:
    # Without state, a file has vectors in place of sequences of one step.
    sequences = group["sequences"] if "sequences" in group else [[vector] for vector in group["vectors"]]
    return Group(
        id=group["id"],
        balancer=balancer,
        settings=group["settings"],
        label=group["label"],
        formats=group["formats"],
        result=group["result"],
        weights=_floats(group.get("weights", {})),
        sequences=tuple(tuple(map(_vector, sequence)) for sequence in sequences),
        keyword=group.get("keyword", ""),
    )


def _vector(vector: dict[str, Any]) -> Vector:
    return Vector(
        losses=_floats(vector["losses"]),
        cotangent=float.fromhex(vector["cotangent"]),
        aggregate=float.fromhex(vector["aggregate"]),
        gradients=_floats(vector["gradients"]),
        weights=_floats(vector.get("weights", {})),
        state={
            name: tuple(map(float.fromhex, value)) if isinstance(value, list) else value
            for name, value in vector.get("state", {}).items()
        },
        amounts=_floats(vector.get("amounts", {})),
        learned=_vectors(vector.get("learned", {})),
        learned_gradients=_vectors(vector.get("learned_gradients", {})),
        after=_floats(vector.get("after", {})),
    )


def _floats(values: dict[str, str]) -> dict[str, float]:
    return {name: float.fromhex(value) for name, value in values.items()}


def _vectors(values: dict[str, list[str]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(float.fromhex, value)) for name, value in values.items()}
