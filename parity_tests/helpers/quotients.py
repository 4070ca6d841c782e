"""What the tests of `div` and `rmul` draw, and what is exact. Needs neither framework, but for `x64`.

That is NumPy's float64 quotient, rounded to float32 for float32. The processor's float64 division is correctly rounded, and
rounding it again does no harm: it has 53 bits, and 2 * 24 + 2 suffice for a quotient (where that is subnormal in float32, both are
flushed). A test holds the spec's fractions against it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np

from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import FORMATS
from loss_balancers.spec.formats import FormatName

DTYPES: dict[str, Any] = {"f32": np.float32, "f64": np.float64}
HARDEST = 20_000
WORDS: dict[str, Any] = {"f32": np.uint32, "f64": np.uint64}


def x64(fmt: str) -> AbstractContextManager[Any]:
    """float64 in JAX, where the format needs it."""
    return enable_x64(fmt == "f64")


def edges(fmt: FormatName) -> np.ndarray:
    """Numbers at which a definition has corners, of both signs."""
    tiny, ulp, top = FORMATS[fmt].tiny, 2.0 ** (1 - FORMATS[fmt].precision), 2.0 ** FORMATS[fmt].max_exponent
    small = [tiny * x for x in (ulp, 0.5, 1 - ulp, 1, 1 + ulp, 2 - ulp, 2, 2 + 2 * ulp, 4)]
    large = [top * x for x in (0.25, 0.5, 1 - ulp / 2, 1, 2 - ulp)]
    ordinary = [0.5, 1 - ulp / 2, 1, 1 + ulp, 1.5, 2 - ulp, 2, 3, 7, 10, 1 / tiny]
    values = [0.0, *small, *ordinary, *large, np.inf, np.nan]
    return np.array([*values, *(-x for x in values)], DTYPES[fmt])


@cache
def hardest(fmt: FormatName) -> tuple[np.ndarray, np.ndarray]:
    """Pairs with a quotient as near as any to the middle of two neighbours: 2**p * m = (an odd number) * n +- 1."""
    p = FORMATS[fmt].precision
    rng = np.random.default_rng(5)
    pairs = []
    while len(pairs) < HARDEST:
        n = int(rng.integers(2 ** (p - 1), 2**p)) | 1
        sign = int(rng.choice([-1, 1]))
        odd = 2**p + -sign * pow(n, -1, 2**p) % 2**p
        m = (odd * n + sign) >> p
        if m < 2**p or m % 2 == 0:  # the format has it
            pairs.append((m * 2.0 ** int(rng.integers(-40, 40)), n * 2.0 ** int(rng.integers(-40, 40))))
    a, b = np.array(pairs, DTYPES[fmt]).T
    return a.copy(), b.copy()


def with_exponents(fmt: FormatName, exponents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers with these exponent fields, and any sign and fraction."""
    word, bits = WORDS[fmt], np.dtype(WORDS[fmt]).itemsize * 8
    width = FORMATS[fmt].precision - 1
    sign = rng.integers(0, 2, len(exponents), dtype=word) << word(bits - 1)
    return (sign | exponents.astype(word) << word(width) | rng.integers(0, 2**width, len(exponents), dtype=word)).view(DTYPES[fmt])


@cache
def drawn(fmt: FormatName) -> tuple[np.ndarray, np.ndarray]:
    """The hard ones first: corners, hardest; then quotients of exponents about 1, the smallest and the largest; then any bits."""
    rng = np.random.default_rng(4)
    pairs = [tuple(side.ravel() for side in np.meshgrid(edges(fmt), edges(fmt))), hardest(fmt)]
    bias = FORMATS[fmt].max_exponent
    for low, high, count in [(-3, 4, 300_000), (-bias - 1, -bias + 4, 100_000), (bias - 3, bias + 3, 100_000)]:
        difference = rng.integers(low, high, count)
        of_b = rng.integers(np.maximum(1, 1 - difference), np.minimum(2 * bias, 2 * bias - difference) + 1)
        pairs.append((with_exponents(fmt, of_b + difference, rng), with_exponents(fmt, of_b, rng)))
    highest = np.iinfo(WORDS[fmt]).max
    pairs.append(tuple(rng.integers(0, highest, 500_000, WORDS[fmt], endpoint=True).view(DTYPES[fmt]) for _ in "ab"))
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return a, b


def keep(x: np.ndarray) -> np.ndarray:
    """Spec A4."""
    return np.where(np.abs(x) <= np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotients of spec A10."""
    with np.errstate(all="ignore"):
        return keep((keep(a).astype(np.float64) / keep(b).astype(np.float64)).astype(a.dtype))


def exact_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products of spec A11."""
    with np.errstate(all="ignore"):
        return keep(keep(a) * keep(b))
