"""The inputs on which emitted code is executed beside the spec: the same at every run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from loss_balancers.audit.expressions.words import Words, words
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


def state(entries: Sequence[StateEntry]) -> list[Words]:
    """State of a balancer: what it has seen of a loss is positive, or all 0 in some draws."""
    rng = np.random.default_rng(3)
    seen = [rng.random(COUNT) < 0.9 for _ in range(max((entry.shape[0] for entry in entries), default=0))]
    return [words((_ordinary(rng, COUNT) * there).astype(np.float32)) for entry in entries for there in seen[: entry.shape[0]]]


def _ordinary(rng: np.random.Generator, count: int) -> Any:
    return rng.lognormal(0, 6, count).astype(np.float32)


def hard_operands(name: str) -> list[Words]:
    """x"""
    return operands(2)


def exponents(count: int) -> list[Words]:
    """x"""
    return losses(count)
