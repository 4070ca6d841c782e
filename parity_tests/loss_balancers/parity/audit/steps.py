"""Steps of the spec that are no single float operation: quotients, and choices among values. Here as functions on words.

A compiler may rearrange integers and selects at will, so an emitted step is recognised by what it computes and from what.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loss_balancers.parity.audit.words import EXACT, Words, floats, words

#: The operation of a node that is one of these; its value says which.
STEP = "step"


def _kept(x: Words) -> Words:
    return EXACT["keep"](x)


def quotient(a: Words, b: Words) -> Words:
    """A10. NumPy's float32 division is the processor's, correctly rounded; a test holds this against the exact reference."""
    a, b = _kept(a), _kept(b)
    with np.errstate(all="ignore"):
        return _kept(words(floats(a) / floats(b)))


def _negated(x: Words) -> Words:
    return _kept(x ^ np.uint32(0x80000000))


def _taken_in(*args: Words) -> Words:
    """M2: the last but one if all the others are finite, else the last."""
    *totals, after, before = args
    return np.where(np.all([np.isfinite(floats(total)) for total in totals], axis=0), after, before)


def _positive_or_one(x: Words) -> Words:
    return np.where(floats(x) > 0, x, words(np.float32(1)))


def _where_known(mean: Words, unit: Words, eps: Words, x: Words) -> Words:
    """M3: x where both means are above eps, else 1."""
    known = (floats(mean) > floats(eps)) & (floats(unit) > floats(eps))
    return np.where(known, x, words(np.float32(1)))


def _ratio(ratio: Words, mean: Words) -> Words:
    """L2."""
    zero, one = np.uint32(0), words(np.float32(1))
    positive = np.where(np.isfinite(floats(ratio)), ratio, zero)
    return np.where(floats(mean) > 0, positive, np.where(floats(mean) == 0, zero, one))


def _phi(ratio: Words, distilled: Words, student: Words) -> Words:
    """L3."""
    counts = (floats(distilled) > 0) & (floats(student) > 0) & np.isfinite(floats(ratio))
    return np.where(counts, ratio, words(np.float32(1)))


STEPS: dict[str, Callable[..., Words]] = {
    "div": quotient,
    "-": _negated,
    "taken in": _taken_in,
    "positive or 1": _positive_or_one,
    "where known": _where_known,
    "ratio": _ratio,
    "phi": _phi,
}
#: Those whose result `keep` does not change.
KEPT = ("div", "-", "ratio", "phi")
