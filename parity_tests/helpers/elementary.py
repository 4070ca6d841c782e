"""What the tests of `exp`, `log`, `sqrt` and `softmax` draw, and what is exact. Needs neither framework.

Exact are the hardest inputs of `spec.hard_inputs`, by the spec's decimals. At all other numbers that is NumPy's float64 function,
rounded to float32: a result there is 8 units in the last place of float64 or more from where the rounding changes, and NumPy is not
that far off.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from quotients import edges, keep

from loss_balancers.spec import elementary, hard_inputs

NAMES = ("exp", "log", "sqrt")
TINY = np.finfo(np.float32).tiny
#: Where results of each change their kind: the greatest x with a finite e^x, and the numbers around the one where e^x underflows.
CORNERS = (88.72283, 88.72284, -87.33654, -87.33655, -87.3366, -87.5, -103.97208, -104.0, 128.0, -128.0, 2.0**-24, -(2.0**-25))


def floats(bits: object) -> np.ndarray:
    """float32 numbers by their bits."""
    return np.asarray(bits, np.uint32).view(np.float32)


@cache
def _hardest(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the hardest inputs, ascending, and their results."""
    bits = np.sort(np.array({"exp": hard_inputs.EXP, "log": hard_inputs.LOG, "sqrt": ()}[name], np.uint32))
    return bits, np.array([getattr(elementary, name)(x) for x in floats(bits).tolist()], np.float32)


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The results of spec A13."""
    with np.errstate(all="ignore"):
        results = keep(getattr(np, name)(keep(x).astype(np.float64)).astype(np.float32))
    bits, known = _hardest(name)
    if len(bits):
        at = np.minimum(np.searchsorted(bits, x.view(np.uint32)), len(bits) - 1)
        results = np.where(bits[at] == x.view(np.uint32), known[at], results)
    return results


def exact_gradient(name: str, x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """The gradients of spec A14."""
    from quotients import exact as quotient
    from quotients import exact_product

    y = exact(name, x)
    with np.errstate(all="ignore"):
        return exact_product(cotangent, y) if name == "exp" else quotient(cotangent, x if name == "log" else y + y)


@cache
def drawn(name: str) -> np.ndarray:
    """1,000,000 and more: the hardest inputs, corners, a binade of every exponent; then ordinary numbers and any bits."""
    rng = np.random.default_rng(11)
    hard = floats([*hard_inputs.EXP, *hard_inputs.LOG])
    binade = floats(np.arange(0x3F800000, 0x40000000, 17))  # [1, 2): each 17th of 2^23
    ordinary = rng.uniform(-90, 90, 150_000) if name == "exp" else rng.lognormal(0, 8, 150_000)
    small = rng.choice([-1, 1], 100_000) * 2.0 ** rng.uniform(-27, 0, 100_000) + (name != "exp")
    wild = floats(rng.integers(0, 2**32, 260_000))
    parts = [hard, edges("f32"), np.array(CORNERS), binade, ordinary, small, wild]
    return np.concatenate([part.astype(np.float32) for part in parts])


@cache
def rows() -> np.ndarray:
    """Rows of five numbers for `softmax`: ordinary ones, far ones, ones near zero, equal ones, and special values anywhere."""
    rng = np.random.default_rng(12)
    scales = 10.0 ** rng.uniform(-3, 2, (40_000, 1))
    x = (rng.normal(0, 1, (40_000, 5)) * scales).astype(np.float32)
    x[:100] = x[:100, :1]
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, TINY, -TINY / 2, 3.4e38, -3.4e38], np.float32)
    where = rng.random((4000, 5)) < 0.4
    x[100:4100][where] = rng.choice(special, int(where.sum()))
    x[4100:4102] = -np.inf
    return x


def exact_sum(powers: np.ndarray) -> np.ndarray:
    """RN(2^-40 times the sum of floor(2^40 e)) along the last axis: the integers in float64, where it holds them, rounded once."""
    units = np.floor(powers.astype(np.float64) * elementary.UNIT)
    assert powers.shape[-1] < 2**13  # their sum is below 2^53
    return (units.sum(-1, keepdims=True) / elementary.UNIT).astype(np.float32)


def exact_softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`softmax` and `logsumexp` of spec A15."""
    from quotients import exact as quotient

    with np.errstate(all="ignore"):
        x = keep(x)
        most = x.max(-1, keepdims=True)
        powers = exact("exp", x - most)
        valid = np.isfinite(most) & (x < np.inf).all(-1, keepdims=True)
        total = np.where(valid, exact_sum(powers), np.float32(np.nan))
        return quotient(powers, np.broadcast_to(total, x.shape)), (most + exact("log", total))[..., 0]
