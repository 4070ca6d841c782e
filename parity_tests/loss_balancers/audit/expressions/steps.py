"""Steps of the spec that are no single float operation: quotients, and choices among values. Here as functions on words.

A compiler may rearrange integers and selects at will, so an emitted step is recognised by what it computes and from what.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from loss_balancers.audit.expressions.words import EXACT, Words, floats, words
from loss_balancers.spec.elementary import UNIT
from loss_balancers.spec.hard_inputs import NEAREST_LOG

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


def _elementary(name: str) -> Callable[[Words], Words]:
    """A13: NumPy's float64 function, rounded, but for the numbers whose logarithm lies too near to where the rounding changes."""
    listed = {np.uint32(x): np.uint32(y) for x, y in (NEAREST_LOG if name == "log" else {}).items()}

    def result(x: Words) -> Words:
        x = _kept(x)
        with np.errstate(all="ignore"):
            y = _kept(words(getattr(np, name)(floats(x).astype(np.float64)).astype(np.float32)))
        for near, known in listed.items():
            y = np.where(x == near, known, y)
        return y

    return result


def _total(*powers: Words) -> Words:
    """The sum of A15, exact in float64 for fewer than 2^13 numbers, then rounded once."""
    with np.errstate(all="ignore"):
        units = np.sum([np.floor(floats(e).astype(np.float64) * UNIT) for e in powers], axis=0)
        return words((units / UNIT).astype(np.float32))


def _greatest(*numbers: Words) -> Words:
    """Whatever it is of NaN: the spec does not say, and `undefined` says where."""
    return reduce(EXACT["maximum"], numbers)


#: By the names of the operations of the reference, in `nodes`. A truth is 0 or 1.
STEPS: dict[str, Callable[..., Words]] = {
    "div": quotient,
    "negate": _negated,
    "above": EXACT["cmp.gt"],
    "equal": EXACT["cmp.eq"],
    "finite": _finite,
    "every": _every,
    "choose": EXACT["select"],
    **{name: _elementary(name) for name in ("exp", "log", "sqrt")},
    "total": _total,
    "greatest": _greatest,
}
#: Those whose result `keep` does not change.
KEPT = ("div", "negate", "exp", "log", "sqrt")
#: Those that code works out in integers of 64 bits or in float64, or on TPU in pairs of words.
IN_64_BITS = ("exp", "log", "sqrt", "total")
