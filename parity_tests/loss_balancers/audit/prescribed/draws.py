"""The inputs on which emitted code is executed beside the spec: the same at every run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from loss_balancers.audit.expressions.words import Words, words
from loss_balancers.spec.hard_inputs import EXP, LOG
from loss_balancers.spec.state import StateEntry

COUNT = 8192
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, -(2.0**-126), 2.0**-127, 2.0**-149, 3.4e38, -3.4e38, 1.0, -1.0, 2.0)


def operands(count: int) -> list[Words]:
    """Operands of a quotient: a quarter of any bits, a quarter ordinary, a quarter next to ties, and all pairs of `SPECIAL`."""
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 2**32, COUNT, np.uint32) for _ in range(count)]
    part = COUNT // 4
    for x in drawn:
        x[part : 2 * part] = words(_ordinary(rng, part))
    for x in drawn[::2]:
        x[2 * part : 3 * part], drawn[1][2 * part : 3 * part] = _next_to_ties(part)
    pairs = np.array(np.meshgrid(*[np.array(SPECIAL, np.float32)] * count)).reshape(count, -1)[:, :part]
    for x, special in zip(drawn, pairs, strict=True):
        x[-len(special) :] = words(np.ascontiguousarray(special))
    return drawn


@cache
def _next_to_ties(count: int) -> tuple[Words, Words]:
    """Dividends and divisors whose quotient is as near to the middle between two floats as one can be, above it or below.

    With significands m and n, n <= m < 2n, n an odd number times k = 1, 2 or 4: m * 2**24 = (2q + 1) * n + d for a d of k or -k,
    or of little more.
    """
    rng = random.Random(4)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < count:
        k = rng.choice((1, 2, 4))
        odd = rng.randrange(2**23 // k + 1, 2**24 // k, 2)
        n, d = k * odd, k * rng.choice((1, -1, 3, -3, 5, -5))
        m = (n + d) // 2 // k * pow(2**23 // k, -1, odd) % odd
        m += n + odd * rng.randrange(k)
        if m < 2**24 or m % 2 == 0:
            pairs.append((math.ldexp(m, rng.randrange(-40, 40)), math.ldexp(n, rng.randrange(-40, 40)) * rng.choice((1, -1))))
    a, b = np.array(pairs, np.float32).T
    return words(a.copy()), words(b.copy())


def losses(count: int) -> list[Words]:
    """Losses of scales far apart, some negative, some special: in a quarter of the draws one, in the rest none."""
    rng = np.random.default_rng(2)
    drawn = [np.where(rng.random(COUNT) < 0.1, -1, 1) * _ordinary(rng, COUNT) for _ in range(count)]
    which = rng.integers(0, 4 * count, COUNT)
    for i, x in enumerate(drawn):
        x[which == i] = rng.choice(np.array(SPECIAL, np.float32), int((which == i).sum()))
    return [words(x.astype(np.float32)) for x in drawn]


#: State that is a number of means: the blocks of another entry, at most.
COUNTED = "held"


def state(entries: Sequence[StateEntry]) -> list[Words]:
    """State of a balancer: what it has seen of a loss is positive, or all 0 in some draws; a number of means is whole."""
    rng = np.random.default_rng(3)
    most = max((entry.blocks for entry in entries), default=1)
    seen = [rng.random(COUNT) < 0.9 for _ in range(max((entry.shape[0] for entry in entries), default=0))]
    return [
        words((rng.integers(0, most + 1, COUNT) if entry.name == COUNTED else _ordinary(rng, COUNT) * there).astype(np.float32))
        for entry in entries
        for there in seen[: entry.shape[0]]
    ]


def _ordinary(rng: np.random.Generator, count: int) -> Any:
    return rng.lognormal(0, 6, count).astype(np.float32)


def hard_operands(function: str) -> list[Words]:
    """Operands of `exp`, `log` or `sqrt`, and a cotangent for each.

    They are the numbers that are hardest to round, many that are hard, those next to the special ones, and any of all sizes.
    """
    rng = np.random.default_rng(5)
    x, cotangent = (rng.integers(0, 2**32, COUNT, np.uint32) for _ in range(2))
    part = COUNT // 4
    low, high = {"exp": (-87.3, 88.7), "log": (0.5, 2.0), "sqrt": (1.0, 4.0)}[function]
    x[part : 2 * part] = _nearest_to_middles(function, rng.uniform(low, high, 128 * part).astype(np.float32), part)
    x[2 * part : 3 * part] = _next_to_squares(rng, part) if function == "sqrt" else words(_ordinary(rng, part))
    special = words(np.array(SPECIAL, np.float32)).astype(np.int64)
    near = np.concatenate([special + by for by in range(-4, 5)]) % 2**32
    hardest = np.array([*EXP, *LOG, *near], np.uint32)
    x[-len(hardest) :] = hardest
    cotangent[:part] = words(_ordinary(rng, part))
    return [x, cotangent]


def _nearest_to_middles(function: str, x: Any, count: int) -> Words:
    """Those of the numbers whose result is nearest to the middle between two floats: hard to round, though not the hardest."""
    y = getattr(np, function)(x.astype(np.float64))
    with np.errstate(over="ignore"):
        nearest = y.astype(np.float32)
        off = np.abs(y - nearest) / np.spacing(np.abs(nearest))
    return words(x[np.argsort(np.nan_to_num(off))[-count:]].copy())


def _next_to_squares(rng: np.random.Generator, count: int) -> Words:
    """Numbers whose roots are nearest to a float, and to the middle between two."""
    q = rng.integers(2**23, 2**24, count).astype(np.float64) + rng.choice([0.0, 0.5], count)
    return words((np.ldexp(q * q, -46)).astype(np.float32)) + rng.integers(-1, 2, count).astype(np.uint32)


def exponents(count: int) -> list[Words]:
    """Operands of `softmax`: losses; the hardest of `exp` and numbers of its range below a 0; all nearly equal; special ones."""
    rng = np.random.default_rng(6)
    drawn, part = losses(count), COUNT // 4
    below = [-np.abs(rng.uniform(0, 40, part)).astype(np.float32) for _ in range(count)]
    hard = np.array([bits for bits in EXP if bits >> 31], np.uint32).view(np.float32)
    for x in below:
        x[: 4 * len(hard)] = rng.choice(hard, 4 * len(hard))
    greatest = rng.integers(0, count, part)
    for i, (x, low) in enumerate(zip(drawn, below, strict=True)):
        x[part : 2 * part] = words(np.where(greatest == i, np.float32(0), low))
        x[2 * part : 3 * part] = words((1 + rng.uniform(-1e-3, 1e-3, part)).astype(np.float32))
        x[3 * part : 3 * part + 512] = words(rng.choice(np.array(SPECIAL, np.float32), 512))
    return drawn
