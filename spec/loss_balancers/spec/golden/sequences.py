"""Draws sequences of training steps for a balancer that changes over time, and has the exact reference answer them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from loss_balancers.spec.amounts import Amounts
from loss_balancers.spec.formats import FORMATS, Format, result_format, round_to, round_weight
from loss_balancers.spec.golden.draws import FORMAT_SETS, cotangent, draw, label_of, later
from loss_balancers.spec.golden.layout import laid_out
from loss_balancers.spec.keys import canonical_order
from loss_balancers.spec.reference import Answer, Step, run
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.state import StateEntry

#: Steps of a sequence: the same number in every group, so that lanes can run all sequences of a column side by side.
STEPS = 8


class Form(NamedTuple):
    """Settings, the names of the losses that they get, and the sets of formats of those losses.

    ``keyword`` is given at every call: ``count`` or ``share``, or neither.
    """

    id: str
    settings: Settings
    names: Sequence[str]
    formats: Sequence[str]
    keyword: str = ""


def sequence_vectors(forms: Sequence[Form], seed: int) -> str:
    """The file of one balancer as text, the same on every machine."""
    rng = random.Random(seed)
    groups = [_group(rng, form, formats) for formats in FORMAT_SETS for form in forms if formats in form.formats]
    return laid_out(2, forms[0].settings.balancer, groups)


def _group(rng: random.Random, form: Form, format_set: str) -> dict[str, Any]:
    in_turn = FORMAT_SETS[format_set]
    of = {name: in_turn[i % len(in_turn)] for i, name in enumerate(form.names)}
    formats = {name: of[name] for name in rng.sample(form.names, len(form.names))}  # the order that the caller's dict has
    result = result_format(formats.values())
    sequences = []
    for rows in _sequences(_Inputs(rng, formats)):
        cotangents = [cotangent(rng, (index + len(sequences)) % STEPS, result) for index in range(STEPS)]
        amounts = [_amounts(rng, form.keyword, (index + len(sequences)) % STEPS, row) for index, row in enumerate(rows)]
        learned = [_learned(rng, form.settings, (index + len(sequences)) % STEPS) for index in range(STEPS)]
        afters = [_after(rng, formats, rows, index) if form.settings.updates else {} for index in range(STEPS)]
        columns = (amounts, learned, afters)
        steps = [_step(formats, *given, form.keyword) for given in zip(rows, cotangents, *columns, strict=True)]
        answers = run(form.settings, steps)
        sequences.append([_vector(*given) for given in zip(rows, cotangents, answers, *columns, strict=True)])
    return {
        "id": f"{form.id}-{format_set}",
        "settings": form.settings.as_json(),
        "label": label_of(format_set),
        "formats": formats,
        "result": result,
        **({"keyword": form.keyword} if form.keyword else {}),
        "sequences": sequences,
    }


def _amounts(rng: random.Random, keyword: str, index: int, row: dict[str, float]) -> dict[str, float]:
    """Equal ones; draws; draws with an absent loss, one that is not finite if there is one; no loss at all."""
    if not keyword:
        return {}
    low, high = (0, 9) if keyword == "count" else (-6, 0)
    drawn = {name: draw(rng, "f32", low, high) for name in row}
    if keyword == "count":
        drawn = {name: float(int(x)) for name, x in drawn.items()}
    absent = rng.choice(list(row))
    if index == 0:
        return dict.fromkeys(row, 4.0 if keyword == "count" else 0.25)
    if index in (1, 7):
        return {**drawn, absent: 0.0}
    if index == 5:
        return {**drawn, next((name for name, x in row.items() if not math.isfinite(x)), absent): 0.0}
    return dict.fromkeys(row, 0.0) if index == 2 else drawn


def _after(rng: random.Random, formats: dict[str, str], rows: Sequence[dict[str, float]], index: int) -> dict[str, float]:
    """The losses after the optimizer's step: near those before it, or those of the next step, whatever they are."""
    return rows[(index + 1) % STEPS] if index % 4 == 3 else later(rng, rows[index], formats)


def _learned(rng: random.Random, settings: Settings, index: int) -> dict[str, tuple[float, ...]]:
    """What an optimizer may have made of a parameter: its start, numbers near it, far from it, the ends of the range, and zero."""

    def values(entry: StateEntry) -> tuple[float, ...]:
        if index == 0:
            return entry.start
        near = [x + draw(rng, "f32", -6, 1) * rng.choice((-1, 1)) for x in entry.start]
        if index in (2, 6):
            near = [x * 2.0 ** (5 if index == 2 else 7) for x in near]
        if index in (3, 7):
            near[rng.randrange(len(near))] = rng.choice((0.0, -0.0, 2.0**-126, 2.0**-130, 2.0**100, -(2.0**127)))
        return tuple(round_weight(x, "f32") for x in near)

    return {entry.name: values(entry) for entry in settings.learned}


def _step(
    formats: dict[str, str],
    row: dict[str, float],
    back: float,
    amounts: dict[str, float],
    learned: dict[str, tuple[float, ...]],
    after: dict[str, float],
    keyword: str,
) -> Step:
    losses, again = ({name: (formats[name], x) for name, x in given.items()} for given in (row, after))
    values = tuple(amounts[name] for name in canonical_order(tuple(row))) if keyword else ()
    return Step(losses, back, Amounts(values, keyword == "share") if keyword else None, learned, again or None)


def _vector(
    row: dict[str, float],
    back: float,
    answer: Answer,
    amounts: dict[str, float],
    learned: dict[str, tuple[float, ...]],
    after: dict[str, float],
) -> dict[str, Any]:
    return {
        "losses": _hex(row),
        "cotangent": back.hex(),
        "aggregate": answer.aggregate.hex(),
        "gradients": _hex(answer.gradients),
        "weights": _hex(answer.weights),
        "state": {name: [x.hex() for x in value] if isinstance(value, tuple) else value for name, value in answer.state.items()},
        **({"amounts": _hex(amounts)} if amounts else {}),
        **({"learned": _hex_vectors(learned), "learned_gradients": _hex_vectors(answer.learned)} if learned else {}),
        **({"after": _hex(after)} if after else {}),
    }


def _hex(values: dict[str, float]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _hex_vectors(values: Mapping[str, tuple[float, ...]]) -> dict[str, list[str]]:
    return {name: [x.hex() for x in value] for name, value in values.items()}


class _Inputs:
    """Rows of losses of given formats."""

    def __init__(self, rng: random.Random, formats: dict[str, str]) -> None:
        self.rng, self.formats = rng, formats

    def all_of(self, make: Callable[[Format, int], float | Fraction]) -> dict[str, float]:
        """A value for each loss: rounded to its format."""
        row = {}
        for i, (name, fmt) in enumerate(self.formats.items()):
            value = make(FORMATS[fmt], i)  # type: ignore[index]
            row[name] = round_to(Fraction(value), fmt) if math.isfinite(value) and value != 0 else float(value)
        return row

    def drawn(self, low: int, high: int, signs: Sequence[int] = (1,)) -> dict[str, float]:
        """Drawn values, with exponents of this range."""
        return self.all_of(lambda fmt, i: draw(self.rng, fmt.name, low, high) * self.rng.choice(signs))

    def one(self, value: float) -> dict[str, float]:
        """Ordinary values, but for one of them."""
        return {**self.drawn(-2, 2), self.rng.choice(list(self.formats)): value}


def _sequences(inputs: _Inputs) -> Iterator[list[dict[str, float]]]:
    """What training gives; zeros, NaN and infinity; the ends of the range; both signs, and scales far apart."""
    both = (1, -1)

    def tiny(times: Callable[[int], Fraction]) -> dict[str, float]:
        return inputs.all_of(lambda fmt, i: Fraction(fmt.tiny) * times(i))

    def apart(fmt: Format, i: int) -> float:
        """Alternately large and small: quotients overflow, and underflow."""
        return math.ldexp(1.0 + i / 8, (1 if i % 2 else -1) * (fmt.max_exponent - (1 if fmt.name == "f16" else 27)))

    yield [
        *(inputs.drawn(-3, 3) for _ in range(4)),
        inputs.all_of(lambda fmt, i: 1.0),  # equal losses
        *(inputs.drawn(-8, -2) for _ in range(3)),
    ]
    yield [
        inputs.all_of(lambda fmt, i: 0.0),  # before any state
        inputs.all_of(lambda fmt, i: -0.0),
        inputs.drawn(-2, 2),
        inputs.one(math.nan),
        inputs.one(math.inf),
        inputs.all_of(lambda fmt, i: math.inf if i % 2 else -math.inf),
        inputs.one(0.0),
        inputs.drawn(-2, 2),
    ]
    yield [
        tiny(lambda i: Fraction(i % 7 + 1) * Fraction(3, 4)),
        tiny(lambda i: Fraction(i % 5 + 1, 8)),  # subnormal losses
        inputs.all_of(apart),
        inputs.all_of(lambda fmt, i: -apart(fmt, i + 1)),
        inputs.all_of(lambda fmt, i: 1 + (i % 2) * Fraction(2) ** (1 - fmt.precision)),  # neighbours, and ties
        inputs.all_of(lambda fmt, i: 2 if i == 0 else Fraction(2) ** (1 - fmt.precision) * (2 * i - 1)),
        inputs.drawn(6, 12),
        inputs.drawn(-12, -6),
    ]
    yield [
        inputs.all_of(lambda fmt, i: draw(inputs.rng, fmt.name, 0, 0) * (-1) ** i),  # cancellation
        *(inputs.drawn(-4, 4, both) for _ in range(3)),
        *(inputs.drawn(-12, 12) for _ in range(2)),
        inputs.one(math.nan),
        inputs.drawn(-12, 12, both),
    ]
