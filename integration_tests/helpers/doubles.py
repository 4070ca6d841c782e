"""The steps of the reference in float64: to hold a method, and not its rounding, against another package."""

import math
from collections.abc import Sequence

import numpy as np

from loss_balancers.spec.call import Call
from loss_balancers.spec.ops import Ops

TRACES = 300
COUNTS = (2, 4, 8)  # of which float32 holds the reciprocals


class Doubles(Ops):
    """The operations of the spec in float64: nothing is rounded to float32, and nothing flushed."""

    def multiply(self, a: float, b: float, fmt: str) -> float:
        return a * b

    def add(self, a: float, b: float, fmt: str) -> float:
        return a + b

    def div(self, a: float, b: float, fmt: str) -> float:
        return a / b

    def round(self, a: float, fmt: str) -> float:
        return a

    def flush(self, a: float, fmt: str) -> float:
        return a

    def negate(self, a: float, fmt: str) -> float:
        return -a

    def exp(self, a: float) -> float:
        return math.exp(a)

    def log(self, a: float) -> float:
        return math.log(a)

    def sqrt(self, a: float) -> float:
        return math.sqrt(a)

    def total(self, powers: Sequence[float]) -> float:
        return math.fsum(powers)

    def magnitude(self, a: float) -> float:
        return abs(a)

    def above(self, a: float, b: float) -> bool:
        return a > b

    def equal(self, a: float, b: float) -> bool:
        return a == b

    def finite(self, a: float) -> bool:
        return math.isfinite(a)

    def every(self, truths: Sequence[bool]) -> bool:
        return all(truths)

    def choose(self, truth: bool, yes: float, no: float) -> float:
        return yes if truth else no


def names_of(count):
    return tuple(f"Loss_{k}" for k in range(count))


def call_of(losses):
    return Call(names_of(len(losses)), ("f32",) * len(losses), tuple(losses), ops=Doubles())


def assert_close(ours, given, scale=1.0):
    np.testing.assert_allclose(ours, given, rtol=1e-12, atol=1e-12 * scale)


def drawn_traces(count, steps=9):
    """A third of the traces: of this many positive losses, whose scales are apart."""
    rng = np.random.default_rng(count)
    return [np.exp(rng.normal(0, 1.5, (steps, count))).tolist() for _ in range(TRACES // len(COUNTS))]
