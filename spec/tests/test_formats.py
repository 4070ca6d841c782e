"""Rounding into each format, against NumPy's conversions, Python's own division, and the integer definition of bfloat16."""

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

from loss_balancers.spec import FORMAT_OF_DTYPE, FORMATS, compute_format, result_format, round_to, round_weight
from loss_balancers.spec.formats import FormatName, flush

DRAWS = 3_000


def same(a: float, b: float) -> bool:
    return struct.pack("<d", a) == struct.pack("<d", b)


def bfloat16(x: float) -> float:
    """A float32 to bfloat16 by its bits: add just under half, or half if the kept part is odd, and drop 16 bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    (rounded,) = struct.unpack("<f", struct.pack("<I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))
    return rounded


def witness(value: Fraction, fmt: str) -> float:
    """What somebody else's conversion gives. ``value`` is a float64 for f16 and f32, a float32 for bf16."""
    with np.errstate(over="ignore"):
        match fmt:
            case "bf16":
                return bfloat16(float(value))
            case "f16":
                return float(np.float16(float(value)))
            case "f32":
                return float(np.float32(float(value)))
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def random_bits(rng: random.Random, fmt: str) -> Fraction:
    """A random bit pattern of the format that ``witness`` converts from; a longer fraction for f64."""
    if fmt == "f64":
        return Fraction((-1) ** rng.getrandbits(1) * rng.getrandbits(90)) * Fraction(2) ** rng.randint(-1170, 940)
    code, bits = ("<f", 32) if fmt == "bf16" else ("<d", 64)
    while True:
        (x,) = struct.unpack(code, rng.getrandbits(bits).to_bytes(bits // 8, "little"))
        if math.isfinite(x):
            return Fraction(x)


def near_the_range(rng: random.Random, fmt: FormatName) -> Fraction:
    """With an exponent in the range of the format, and a little beyond at both ends; most patterns of f64 are far outside."""
    f = FORMATS[fmt]
    significand = Fraction(2**23 + rng.getrandbits(23), 2**23) if fmt == "bf16" else Fraction(2**52 + rng.getrandbits(52), 2**52)
    lowest = f.min_exponent - (0 if fmt == "bf16" else f.precision + 2)  # keep the float32 that is rounded to bf16 exact
    return (-1) ** rng.getrandbits(1) * significand * Fraction(2) ** rng.randint(lowest, f.max_exponent)


@pytest.mark.parametrize("draw", [random_bits, near_the_range], ids=lambda f: f.__name__)
@pytest.mark.parametrize("fmt", FORMATS)
def test_rounds_as_others_do(fmt, draw):
    rng = random.Random(f"{fmt} {draw.__name__}")
    for _ in range(DRAWS):
        value = draw(rng, fmt)
        assert same(round_to(value, fmt), witness(value, fmt) if value else 0.0), (fmt, value)


@pytest.mark.parametrize("fmt", FORMATS)
def test_ties_go_to_even(fmt):
    f = FORMATS[fmt]
    rng = random.Random(fmt)
    for _ in range(500):
        exponent = rng.randint(f.min_exponent, f.max_exponent - 1)
        count = rng.randrange(2 ** (f.precision - 1), 2**f.precision)
        ulp = Fraction(2) ** (exponent - f.precision + 1)
        tie = (count + Fraction(1, 2)) * ulp
        assert Fraction(round_to(tie, fmt)) == (count + count % 2) * ulp
        assert Fraction(round_to(tie + ulp / 2**60, fmt)) == (count + 1) * ulp
        assert Fraction(round_to(tie - ulp / 2**60, fmt)) == count * ulp
        assert round_to(-tie, fmt) == -round_to(tie, fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_ends_of_the_range(fmt):
    f = FORMATS[fmt]
    smallest = Fraction(2) ** (f.min_exponent - f.precision + 1)
    ulp = Fraction(2) ** (f.max_exponent - f.precision + 1)
    largest = Fraction(2) ** (f.max_exponent + 1) - ulp
    assert Fraction(round_to(smallest, fmt)) == smallest  # gradual underflow
    assert round_to(smallest / 2, fmt) == 0.0  # a tie, and 0 is even
    assert Fraction(round_to(smallest * Fraction(3, 4), fmt)) == smallest
    assert Fraction(round_to(smallest * Fraction(3, 2), fmt)) == 2 * smallest
    assert Fraction(round_to(Fraction(f.tiny) - smallest / 2, fmt)) == Fraction(f.tiny)
    assert Fraction(round_to(largest, fmt)) == largest
    assert Fraction(round_to(largest + ulp / 2 - ulp / 2**60, fmt)) == largest
    assert round_to(largest + ulp / 2, fmt) == math.inf
    assert round_to(-largest - ulp / 2, fmt) == -math.inf
    assert same(round_to(-smallest / 2, fmt), -0.0)


@pytest.mark.parametrize("fmt", FORMATS)
def test_tiny_is_the_smallest_normal(fmt):
    assert FORMATS[fmt].tiny == {"bf16": 2.0**-126, "f16": 2.0**-14, "f32": 2.0**-126, "f64": 2.0**-1022}[fmt]


@pytest.mark.parametrize("fmt", FORMATS)
def test_flush_takes_tiny_and_below_to_positive_zero(fmt):
    tiny = FORMATS[fmt].tiny
    above = math.nextafter(tiny, math.inf)
    for x in (tiny, -tiny, tiny / 2, -tiny / 2, 0.0, -0.0):
        assert same(flush(x, fmt), 0.0)
    for x in (above, -above, 1.0, math.inf, -math.inf):
        assert same(flush(x, fmt), x)
    assert math.isnan(flush(math.nan, fmt))


def test_weights_are_rounded_and_flushed():
    assert round_weight(0.1, "f32") == float(np.float32(0.1)) != 0.1
    assert round_weight(0.1, "f64") == 0.1
    assert round_weight(2.0**-126, "f32") == 0.0
    assert round_weight(2.0**-126, "f64") == 2.0**-126


@pytest.mark.parametrize(
    ("formats", "compute", "result"),
    [
        (["bf16"], "f32", "bf16"),
        (["f16", "f16"], "f32", "f16"),
        (["f32"], "f32", "f32"),
        (["f64", "f64"], "f64", "f64"),
        (["bf16", "f16"], "f32", "f32"),
        (["bf16", "f32", "bf16"], "f32", "f32"),
        (["f16", "f64"], "f64", "f64"),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, list) else x,
)
def test_formats_of_a_sum(formats, compute, result):
    assert compute_format(formats) == compute
    assert result_format(formats) == result


def test_dtype_names():
    assert FORMAT_OF_DTYPE == {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
