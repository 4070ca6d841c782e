"""Steps of the spec that are no single float operation: quotients, and choices among values. Here as functions on words.

A compiler may rearrange integers and selects at will, so an emitted step is recognised by what it computes and from what.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from loss_balancers.audit.expressions.words import EXACT, Words, floats, words

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
    return _kept(EXACT["neg"](x))


def _finite(x: Words) -> Words:
    return words(np.isfinite(floats(x)))


def _every(*truths: Words) -> Words:
    return reduce(EXACT["i.and"], truths)


#: By the names of the operations of the reference, in `nodes`. A truth is 0 or 1.
STEPS: dict[str, Callable[..., Words]] = {
    "div": quotient,
    "negate": _negated,
    "above": EXACT["cmp.gt"],
    "equal": EXACT["cmp.eq"],
    "finite": _finite,
    "every": _every,
    "choose": EXACT["select"],
}
#: Those whose result `keep` does not change.
KEPT = ("div", "negate")
