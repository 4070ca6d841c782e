"""The state of balancers: what it holds, and how it is observed and committed.

State is observed in the forward and committed by ``step()``, once per optimizer step:

- ``pending``, float32 ``(2 n + 2,)``: the sums of the n observed losses since the last commit, in canonical order; how many items
  (or what share of the step) each sum stands for; how many calls they add; how many calls were left out because a sum would not
  have been finite.
- ``steps`` and ``skipped``, int32 ``()``: commits so far, and calls left out so far.

A balancer with `update()` observes each loss before the optimizer's step and after it: n is then two times the number of losses.

and what a method adds. Every entry starts at zero. The reference holds numbers as Python floats and ints. How state moves is in
`moving.py` and `state_files.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from loss_balancers.spec import arithmetic
from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import MOST_CALLS, MOST_LEFT_OUT, MOST_STEPS, flush


class StateEntry(NamedTuple):
    """One entry of a balancer's state.

    The first ``blocks * named`` of its elements belong to the losses: a block is one element per loss, in canonical order.
    ``start`` has what the elements are at the beginning; if it is empty, they are zero.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    named: int = 0
    blocks: int = 1
    start: tuple[float, ...] = ()


#: From entry to value: a float or an int, or a tuple of them for a vector.
ReferenceState = dict[str, Any]


class Pending(NamedTuple):
    """The parts of ``pending``."""

    sums: tuple[float, ...]
    amounts: tuple[float, ...]
    calls: float
    left_out: float

    @classmethod
    def of(cls, pending: Sequence[float]) -> Pending:
        """The parts of the vector."""
        n = len(pending) // 2 - 1
        return cls(tuple(pending[:n]), tuple(pending[n : 2 * n]), *pending[2 * n :])

    def vector(self) -> tuple[float, ...]:
        """The vector of the parts."""
        return (*self.sums, *self.amounts, self.calls, self.left_out)


def base_entries(observed: int) -> tuple[StateEntry, ...]:
    """The entries that every balancer with state has; ``observed`` says how many losses it observes."""
    return (
        StateEntry("steps", "int32", ()),
        StateEntry("skipped", "int32", ()),
        StateEntry("pending", "float32", (2 * observed + 2,), observed, 2),
    )


def initial_state(entries: Sequence[StateEntry]) -> ReferenceState:
    """The entries as they are at the beginning."""
    zero: dict[str, Any] = {"float32": 0.0, "int32": 0}
    return {e.name: e.start or (zero[e.dtype],) * e.shape[0] if e.shape else zero[e.dtype] for e in entries}


def observe(state: ReferenceState, call: Call, after: bool = False) -> ReferenceState:
    """Adds a call to the pending sums, in float32; leaves it out if a sum would not be finite (spec T3).

    ``after`` says that it is an `update()`, whose sums are the second half, and which is no call more (spec Q4).
    """
    pending = Pending.of(state["pending"])
    losses = call.in_format("f32")[: len(pending.sums)]  # empty if the balancer keeps counters alone
    amounts = ((1.0,) * len(call.names) if call.amounts is None else call.amounts)[: len(losses)]
    if not call.shares:
        losses = [arithmetic.rmul(x, amount, "f32") for x, amount in zip(losses, amounts, strict=True)]
    if others := (0.0,) * (len(pending.sums) - len(losses)):
        losses, amounts = ((*others, *half) if after else (*half, *others) for half in (losses, amounts))
    taken = Pending(_added(pending.sums, losses), _added(pending.amounts, amounts), pending.calls, pending.left_out)
    if all(map(math.isfinite, taken.vector())):
        (calls,) = _added([pending.calls], [0.0 if after else 1.0])
        return {**state, "pending": taken._replace(calls=calls).vector()}
    (left_out,) = _added([pending.left_out], [1.0])
    return {**state, "pending": pending._replace(left_out=left_out).vector()}


def _added(pending: Sequence[float], more: Sequence[float]) -> tuple[float, ...]:
    return tuple(flush(arithmetic.add(a, b, "f32"), "f32") for a, b in zip(pending, more, strict=True))


def pending_mean(pending: Sequence[float]) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """The mean of each observed loss, and whether it is valid: 0 and False if there is nothing to commit (spec T4)."""
    sums, amounts, calls, _ = Pending.of(pending)
    informative = calls < MOST_CALLS and all(map(math.isfinite, (*sums, *amounts)))
    present = tuple(informative and amount > 0 for amount in amounts)
    pairs = zip(sums, amounts, present, strict=True)
    return tuple(arithmetic.div(total, amount, "f32") if there else 0.0 for total, amount, there in pairs), present


def advance(state: ReferenceState) -> ReferenceState:
    """The counters after a commit, and the pending sums cleared (spec T4)."""
    _, _, calls, left_out = Pending.of(state["pending"])
    if calls >= MOST_CALLS:
        left_out = arithmetic.add(left_out, calls, "f32")
    return {
        **state,
        "steps": min(state["steps"] + 1, MOST_STEPS),
        "skipped": min(state["skipped"] + int(min(left_out, MOST_LEFT_OUT)), MOST_STEPS),
        "pending": (0.0,) * len(state["pending"]),
    }
