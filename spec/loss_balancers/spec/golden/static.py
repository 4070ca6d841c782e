"""Draws the inputs of the golden vectors of `StaticLossBalancer` and has the exact reference answer them."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

from loss_balancers.spec.formats import FORMATS, compute_format, result_format, round_to, round_weight
from loss_balancers.spec.golden.draws import FORMAT_SETS, cotangent, draw, indexed, label_of, largest
from loss_balancers.spec.golden.layout import laid_out
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order
from loss_balancers.spec.static import StaticLossBalancerSettings, static_plan, static_reference

SEED = 20_240_601
#: The forms of each set of formats. Each is compiled on each lane, so float32 has most of them, the others those that differ most.
FORMS_OF = {
    "f32": (
        *("number-1-alone", "number-3", "sequence-2", "sequence-2-dropped", "mapping-3", "mapping-student"),
        "sequence-40",
    ),
    "f64": ("number-1-alone", "number-8-dropped", "sequence-5", "mapping-student"),
    "bf16": ("number-1-alone", "number-3", "sequence-2", "mapping-student"),
    "f16": ("number-1-alone", "number-3", "sequence-2", "mapping-student"),
    "mixed": ("mapping-3", "sequence-5"),
    "mixed-narrow": ("sequence-2",),
    "mixed-wide": ("sequence-5",),
}


def static_vectors() -> str:
    """The whole file as text, the same on every machine."""
    rng = random.Random(SEED)
    groups = [
        _group(rng, f"{form}-{label}", settings, names, label, formats)
        for label, formats in FORMAT_SETS.items()
        for form, settings, names in _forms()
        if form in FORMS_OF[label]
    ]
    return laid_out(1, "StaticLossBalancer", groups)


def _forms() -> list[tuple[str, Any, list[str]]]:
    student = [STUDENT_LOSS_KEY]
    return [
        ("number-1-alone", 1.0, indexed(1)),
        ("number-3", 0.6, [*indexed(3), *student]),
        ("number-8-dropped", 0.5, indexed(8)),
        ("sequence-2", [0.5, 0.25], [*indexed(2), *student]),
        ("sequence-2-dropped", [0.7, 0.2], indexed(2)),
        (
            "mapping-3",
            {"soft targets": 0.1, "Attention": 0.25, "hidden": 0.35},
            ["hidden", "soft targets", "Attention", *student],
        ),
        ("mapping-student", {"KL_3": 0.45, "MSE_11": 0.05, STUDENT_LOSS_KEY: 0.5}, ["MSE_11", "KL_3", *student]),
        ("sequence-5", [0.05, 0.3, 0.1, 0.2, 0.15], [*indexed(5), *student]),
        ("sequence-40", [1 / 41] * 40, [*indexed(40), *student]),
    ]


def _group(
    rng: random.Random, group_id: str, kd_loss_weight: Any, names: list[str], label: str, format_set: list[str]
) -> dict[str, Any]:
    formats = {name: format_set[i % len(format_set)] for i, name in enumerate(names)}
    given = rng.sample(names, len(names))  # the order that the caller's dict has
    settings = StaticLossBalancerSettings(kd_loss_weight)
    result = result_format(formats.values())
    plan = static_plan(settings, canonical_order(tuple(names)))
    vectors = []
    weights = dict(zip(plan.names, plan.weights, strict=True))
    for values in [*_rows(rng, names, formats), _just_below_tiny(weights, formats)]:
        given_back = cotangent(rng, len(vectors), result)
        losses = {name: (formats[name], values[name]) for name in given}
        aggregate, gradients = static_reference(settings, losses, given_back)
        vectors.append(
            {
                "losses": {name: values[name].hex() for name in given},
                "cotangent": given_back.hex(),
                "aggregate": aggregate.hex(),
                "gradients": {name: gradient.hex() for name, gradient in gradients.items()},
            }
        )
    return {
        "id": group_id,
        "settings": {"kd_loss_weight": kd_loss_weight},
        "label": label_of(label),
        "formats": {name: formats[name] for name in given},
        "result": result,
        "weights": {name: weight.hex() for name, weight in weights.items()},
        "vectors": vectors,
    }


def _rows(rng: random.Random, names: list[str], formats: dict[str, str]) -> list[dict[str, float]]:
    """Every hard input once, then draws."""

    def all_of(make: Any) -> dict[str, float]:
        return {name: make(FORMATS[formats[name]], i) for i, name in enumerate(names)}  # type: ignore[index]

    def one(value: float) -> dict[str, float]:
        row = all_of(lambda fmt, i: draw(rng, fmt.name, -2, 2))
        row[rng.choice(names)] = value
        return row

    def fit(value: Fraction | float, fmt: Any) -> float:
        return round_to(Fraction(value), fmt.name)

    rows = [
        all_of(lambda fmt, i: 0.0),
        all_of(lambda fmt, i: -0.0),
        one(math.inf),
        one(math.nan),
        all_of(lambda fmt, i: math.inf if i % 2 else -math.inf),  # inf - inf
        all_of(lambda fmt, i: fit(Fraction(fmt.tiny) * (i % 7 + 1) * Fraction(3, 4), fmt)),  # products below and above tiny
        all_of(lambda fmt, i: fit(Fraction(fmt.tiny) * Fraction(i % 5 + 1, 8), fmt)),  # subnormal losses
        all_of(lambda fmt, i: fit(Fraction(fmt.tiny) * 2 * (1 + (i % 2) * Fraction(2) ** (1 - fmt.precision)), fmt)),
        all_of(lambda fmt, i: largest(fmt)),  # overflow in the sum, or at the final rounding
        all_of(lambda fmt, i: fit(1 + (i % 2) * Fraction(2) ** (1 - fmt.precision), fmt)),  # ties
        all_of(lambda fmt, i: fit(2 if i == 0 else Fraction(2) ** (1 - fmt.precision) * (2 * i - 1), fmt)),  # ties in the sum
        all_of(lambda fmt, i: draw(rng, fmt.name, 0, 0) * (-1) ** i),  # cancellation
    ]
    rows += [all_of(lambda fmt, i: draw(rng, fmt.name, -3, 3)) for _ in range(4)]
    rows += [all_of(lambda fmt, i: draw(rng, fmt.name, -14, 14) * rng.choice((1, -1))) for _ in range(2)]
    return rows


def _just_below_tiny(weights: dict[str, float], formats: dict[str, str]) -> dict[str, float]:
    """Losses whose exact product with their weight is below the smallest normal number, and rounds up to it.

    Whether such a product underflows is where processors disagree (spec A4). Where a format has no such loss: twice tiny.
    """
    compute = compute_format(formats.values())
    return {name: _rounding_up(weight, formats[name], compute) for name, weight in weights.items()}


def _rounding_up(weight: float, fmt: str, compute: str) -> float:
    tiny, w = Fraction(FORMATS[compute].tiny), Fraction(round_weight(weight, compute))  # type: ignore[index]
    if w > 0:
        middle = tiny / w
        ulp = Fraction(2) ** (1 - FORMATS[fmt].precision) * middle  # type: ignore[index]
        for steps in range(-4, 5):
            loss = round_to(middle + steps * ulp / 2, fmt)
            if Fraction(loss) * w < tiny and round_to(Fraction(loss) * w, compute) == tiny:
                return loss
    return round_to(2 * tiny, fmt)
