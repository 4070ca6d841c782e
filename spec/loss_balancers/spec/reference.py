"""The exact reference of a training run: every balancer, step after step, in fractions.

Each settings class has ``exact_weights`` and ``exact_aggregate``. If its balancer's weights are tensors, it also has
``weight_format``; if it keeps more state than counters, ``exact_committed``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from loss_balancers.spec.amounts import Amounts
from loss_balancers.spec.call import Call, Losses
from loss_balancers.spec.state import ReferenceState, advance, initial_state, observe, pending_mean


class Step(NamedTuple):
    """One step of a run: the losses of its forward, the cotangent in the aggregate's format, and `count=` or `share=`.

    ``amounts`` are in the canonical order of the losses. ``after`` are the losses of `update()`, with the same amounts; None if it
    is not called.
    """

    losses: Losses
    cotangent: float
    amounts: Amounts | None = None
    after: Losses | None = None


class Answer(NamedTuple):
    """What one step gives: the aggregate, gradients and weights of its forward, by name, and the state after its commit."""

    aggregate: float
    gradients: dict[str, float]
    weights: dict[str, float]
    state: ReferenceState


def run(settings: Any, steps: Iterable[Step | tuple[Losses, float]]) -> Iterator[Answer]:
    """A run from the beginning: at each step one forward in training mode, its gradient, `update()` if it is given, and `step()`.

    Args:
        settings: The settings of any balancer.
        steps: What each step is given: `Step`, or its first two fields.
    """
    state = initial_state(settings.state)
    for step in steps:
        losses, cotangent, amounts, after = Step(*step)
        call = Call.of(losses, amounts)
        weights = settings.exact_weights(call, state)
        aggregate, gradients = settings.exact_aggregate(call, cotangent, state)
        if state:
            state = observe(state, call)
            if after is not None:
                state = observe(state, Call.of(after, amounts), after=True)
            state = committed(settings, state)
        yield Answer(aggregate, dict(zip(call.names, gradients, strict=True)), dict(zip(call.names, weights, strict=True)), state)


def committed(settings: Any, state: ReferenceState) -> ReferenceState:
    """The state after `step()` (spec T4)."""
    mean, present = pending_mean(state["pending"])
    own = settings.exact_committed(state, mean, present) if any(present) else {}
    return advance({**state, **own})
