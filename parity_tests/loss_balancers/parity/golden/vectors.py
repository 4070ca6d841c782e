"""Golden vectors as the kit compares them: cases, each with the named values that it must give, and their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from loss_balancers.parity.bits import FORMAT_OF_DTYPE, array_bits, from_bits, to_bits
from loss_balancers.parity.golden.result import Bits, Result
from loss_balancers.spec import Group, canonical_order, golden, golden_hash, load_golden
from loss_balancers.spec.registry import SETTINGS, make

#: The columns of the matrix.
LABELS = ("bf16", "f16", "f32", "f64", "mixed")
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
    found = (Vectors(golden_hash(stem), load_golden(stem)) for stem in golden.stems())
    by_name = {vectors.groups[0].balancer: vectors for vectors in found}
    return {balancer: by_name[balancer] for balancer in SETTINGS if balancer in by_name}


def columns(groups: Iterable[Group], labels: Sequence[str]) -> dict[tuple[str, str], list[Group]]:
    """The groups by balancer and label, in the order of the balancers, then of ``labels``; columns without vectors are left out."""
    chosen = list(groups)
    asked = [(balancer, label) for balancer in dict.fromkeys(group.balancer for group in chosen) for label in labels]
    by_column = {column: [group for group in chosen if (group.balancer, group.label) == column] for column in asked}
    return {column: found for column, found in by_column.items() if found}


def shape(group: Group) -> tuple[int, int]:
    """How many sequences a group has, and of how many steps each."""
    return len(group.sequences), len(group.sequences[0])


def balancer_of(group: Group, framework: Any) -> Any:
    """A new balancer of a group's settings: ``framework`` is `loss_balancers.torch` or `loss_balancers.jax`."""
    return make(SETTINGS[group.balancer].from_json(group.settings), framework)


def state_bits(state: Mapping[str, Any]) -> dict[str, Bits]:
    """Each number of a state as a `Result` has them; its entries are arrays of either framework."""
    found: dict[str, Bits] = {}
    for name, array in state.items():
        fmt, bits = FORMAT_OF_DTYPE[str(array.dtype).removeprefix("torch.")], array_bits(array)
        found |= {f"{name}[{i}]": (fmt, int(one)) for i, one in enumerate(bits)} if bits.ndim else {name: (fmt, int(bits))}
    return found


def case_name(group: Group, index: int) -> str:
    """The name of a step of a group, counted through all sequences: ``GROUP[SEQUENCE.STEP]``; ``GROUP[INDEX]`` without state."""
    _, steps = shape(group)
    return f"{group.id}[{index}]" if steps == 1 else f"{group.id}[{index // steps}.{index % steps}]"


def cases(groups: Iterable[Group]) -> list[Case]:
    """Every vector of the groups, group by group: the order in which a certificate takes them."""
    return [case for group in groups for case in _cases(group)]


def _cases(group: Group) -> Iterator[Case]:
    settings = SETTINGS[group.balancer].from_json(group.settings)
    entries = {entry.name: FORMAT_OF_DTYPE[entry.dtype] for entry in settings.state}
    weight_formats = _weight_formats(settings, group.formats)
    for index, vector in enumerate(group.vectors):
        result = Result(
            (group.result, to_bits(vector.aggregate, group.result)),
            _bits(vector.gradients, group.formats),
            _bits(vector.weights, weight_formats),
            {what: bits for name, value in vector.state.items() for what, bits in _entry(name, value, entries[name])},
            {what: bits for name, value in vector.learned_gradients.items() for what, bits in _entry(name, value, "f32")},
        )
        yield Case(case_name(group, index), vector.losses, vector.cotangent, values_of(result))


def _weight_formats(settings: Any, formats: dict[str, str]) -> dict[str, str]:
    """The format of the weight that each loss gets at a call; empty if weights are constants, which no lane gives."""
    match settings.weights_are:
        case "constants":
            return {}
        case "tensors":
            weight_format: str = settings.weight_format(formats.values())
            return dict.fromkeys(formats, weight_format)
        case "derivatives":
            return formats
        case other:
            raise RuntimeError(f"The weights of {settings.balancer} are {other!r}, for which no lane is written.")


def _bits(values: Mapping[str, float], formats: Mapping[str, str]) -> dict[str, Bits]:
    return {name: (formats[name], to_bits(value, formats[name])) for name, value in values.items()}


def _entry(name: str, value: Any, fmt: str) -> Iterator[tuple[str, Bits]]:
    """Each number of an entry of the state, which is one or a tuple of them."""
    numbers = [(f"{name}[{i}]", x) for i, x in enumerate(value)] if isinstance(value, tuple) else [(name, value)]
    yield from ((what, (fmt, to_bits(float(x), fmt))) for what, x in numbers)


def values_of(result: Result) -> tuple[Value, ...]:
    """What a lane gave for one case: the aggregate, the gradients and the weights in canonical order, the rest by name."""
    names = canonical_order(tuple(result.gradients))
    weighted = canonical_order(tuple(result.weights)) if result.weights else ()
    return (
        Value("the aggregate", *result.aggregate),
        *(Value(f"the gradient to {name}", *result.gradients[name]) for name in names),
        *(Value(f"the weight of {name}", *result.weights[name]) for name in weighted),
        *(Value(f"the state's {name}", *bits) for name, bits in sorted(result.state.items())),
        *(Value(f"the gradient to {name}", *bits) for name, bits in sorted(result.learned.items())),
    )


def digest(values: Iterable[Value]) -> str:
    """A short hash over names, formats and bits of values, in their order. Every NaN counts as the same one."""
    # As JSON, because a name may hold any character.
    rows = [(value.what, value.format, hex(_one_nan(value))) for value in values]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()[:DIGEST_DIGITS]


def column_digest(digests: Iterable[str]) -> str:
    """A short hash over the digests of a column's cases, in the order of the vectors."""
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:DIGEST_DIGITS]


def _one_nan(value: Value) -> int:
    return to_bits(math.nan, value.format) if math.isnan(from_bits(value.bits, value.format)) else value.bits
