"""The four floating-point formats, and exact rounding into each of them.

A value of any of the formats is held as a Python ``float``: float64 represents every one of them exactly. Rounding takes
an exact ``Fraction`` and is written out in integers, so that it depends neither on a library nor on a processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, NamedTuple, cast

FormatName = Literal["bf16", "f16", "f32", "f64"]


class Format(NamedTuple):
    """A binary floating-point format: ``precision`` significant bits, exponents ``min_exponent`` to ``max_exponent``."""

    name: FormatName
    dtype: str
    precision: int
    min_exponent: int
    max_exponent: int

    @property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return math.ldexp(1.0, self.min_exponent)


FORMATS: dict[FormatName, Format] = {
    "bf16": Format("bf16", "bfloat16", 8, -126, 127),
    "f16": Format("f16", "float16", 11, -14, 15),
    "f32": Format("f32", "float32", 24, -126, 127),
    "f64": Format("f64", "float64", 53, -1022, 1023),
}

#: dtype name, as NumPy, torch and JAX spell it, to format name.
FORMAT_OF_DTYPE: dict[str, FormatName] = {f.dtype: f.name for f in FORMATS.values()}

#: The largest int32: a counter stays there.
MOST_STEPS = 2**31 - 1
#: The largest float32 below `MOST_STEPS`.
MOST_LEFT_OUT = 2**31 - 128
#: From this number of pending calls on, float32 cannot count them, and a commit takes in none of them.
MOST_CALLS = 2**24

#: After how many training forwards without a `step()`, or without an `update()`, a balancer warns.
PATIENCE = 100


def compute_format(formats: Iterable[str]) -> FormatName:
    """The format that losses of these formats are balanced in: f64 if any of them is, else f32 (spec A1)."""
    return "f64" if "f64" in set(formats) else "f32"


def result_format(formats: Iterable[str]) -> FormatName:
    """The format of the aggregate: the common type of the losses; bf16 with f16 gives f32 (spec A2)."""
    distinct = set(formats)
    if len(distinct) == 1:
        return cast(FormatName, distinct.pop())
    return compute_format(distinct)


def round_to(value: Fraction, name: str) -> float:
    """``value`` rounded to nearest, ties to even, with gradual underflow and overflow to infinity (IEEE 754)."""
    fmt = FORMATS[cast(FormatName, name)]
    above, below = abs(value.numerator), value.denominator
    if above == 0:
        return 0.0
    # The spacing of the format's numbers around value; below the normal range it stops shrinking.
    ulp_exponent = max(_floor_log2(above, below), fmt.min_exponent) - (fmt.precision - 1)
    above, below = above << max(-ulp_exponent, 0), below << max(ulp_exponent, 0)
    count, rest = divmod(above, below)
    if 2 * rest > below or (2 * rest == below and count % 2 == 1):
        count += 1
    overflows = count.bit_length() + ulp_exponent > fmt.max_exponent + 1
    rounded = math.inf if overflows else math.ldexp(count, ulp_exponent)
    return -rounded if value.numerator < 0 else rounded


def _floor_log2(above: int, below: int) -> int:
    """The exponent of the largest power of two that is at most ``above / below``."""
    estimate = above.bit_length() - below.bit_length()
    return estimate if below << max(estimate, 0) <= above << max(-estimate, 0) else estimate - 1


def flush(value: float, name: str) -> float:
    """``keep`` of the spec (A4): +0 where ``|value|`` is at most the smallest normal of the format, else ``value``."""
    return 0.0 if abs(value) <= FORMATS[cast(FormatName, name)].tiny else value


def round_weight(weight: float, name: str) -> float:
    """A weight as the arithmetic uses it: rounded to the compute format and flushed (spec A3)."""
    return flush(round_to(Fraction(weight), name) if math.isfinite(weight) else weight, name)
