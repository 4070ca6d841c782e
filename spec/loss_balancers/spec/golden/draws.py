"""What the inputs of all golden vectors are drawn with."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from loss_balancers.spec.formats import FORMATS, round_to

#: The formats of the losses in turn. What follows a dash tells apart sets of one column of the parity matrix.
FORMAT_SETS = {
    "bf16": ["bf16"],
    "f16": ["f16"],
    "f32": ["f32"],
    "f64": ["f64"],
    "mixed": ["f32", "bf16"],
    "mixed-narrow": ["bf16", "f16"],
    "mixed-wide": ["f64", "f32", "bf16", "f16"],
}
KINDS = ("MSELoss", "KLDivLoss", "CosineEmbeddingLoss", "LogitsDistillationLoss")


def label_of(format_set: str) -> str:
    """The column of the parity matrix: a format, or ``mixed``."""
    return format_set.split("-", maxsplit=1)[0]


def indexed(count: int) -> list[str]:
    """Names as ModelOpt makes them."""
    return [f"{KINDS[i % len(KINDS)]}_{i}" for i in range(count)]


def cotangent(rng: random.Random, index: int, result: str) -> float:
    """1 as `backward()` has it, a loss scale, one whose products underflow, and draws."""
    special = (1.0, 1024.0, FORMATS[result].tiny * 2, -1.0)  # type: ignore[index]
    return special[index] if index < len(special) else draw(rng, result, -6, 6)


def draw(rng: random.Random, fmt: str, low: int, high: int) -> float:
    """A positive number of the format with a random significand and an exponent from ``low`` to ``high``."""
    return round_to((1 + Fraction(rng.getrandbits(53), 2**53)) * Fraction(2) ** rng.randint(low, high), fmt)


def later(rng: random.Random, row: dict[str, float], formats: Mapping[str, str]) -> dict[str, float]:
    """The losses of a row after an optimizer's step: each between a half and twice what it was; NaN, infinity and zero stay."""
    return {
        name: round_to(Fraction(x) * Fraction(draw(rng, "f32", -1, 0)), formats[name]) if math.isfinite(x) and x else x
        for name, x in row.items()
    }


def largest(fmt: Any) -> float:
    """The largest finite number of a format."""
    return math.ldexp(2 - 2.0 ** (1 - fmt.precision), fmt.max_exponent)
