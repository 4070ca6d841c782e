"""The exact reference of a training run: every balancer, step after step, in fractions.

Each settings class has ``exact_weights`` and ``exact_aggregate``. If its balancer's weights are tensors, it also has
``weight_format``; if it keeps more state than counters, ``exact_committed``; if it has a parameter, ``exact_learned``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from loss_balancers.spec.amounts import Amounts
from loss_balancers.spec.call import Call, Losses
from loss_balancers.spec.state import ReferenceState, advance, initial_state, observe, pending_mean


class Step(NamedTuple):
    """One step of a run: the losses of its forward, the cotangent in the aggregate's format, and `count=` or `share=`.

    ``amounts`` are in the canonical order of the losses. ``learned`` has the parameter of the balancer, if it has one: what an
    optimizer has made of it until then.
    ``after`` are the losses of `update()`, with the same amounts; None if it is not called.
    """

    losses: Losses
    cotangent: float
    amounts: Amounts | None = None
    learned: Mapping[str, tuple[float, ...]] = {}  # of a NamedTuple, and never changed
    after: Losses | None = None


class Answer(NamedTuple):
    """What one step gives: the aggregate, gradients and weights of its forward, by name, and the state after its commit.

    ``learned`` is the gradient to the parameter, if there is one.
    """

    aggregate: float
    gradients: dict[str, float]
    weights: dict[str, float]
    state: ReferenceState
    learned: Mapping[str, tuple[float, ...]] = {}


def run(settings: Any, steps: Iterable[Step | tuple[Losses, float]]) -> Iterator[Answer]:
    """A run from the beginning: at each step one forward in training mode, its gradient, `update()` if it is given, and `step()`.

    Args:
        settings: The settings of any balancer.
        steps: What each step is given: `Step`, or its first two fields.
    """
    state = initial_state(settings.state)
    for step in steps:
        losses, cotangent, amounts, learned, after = step if isinstance(step, Step) else Step(step[0], step[1])
        call, held = Call.of(losses, amounts), {**state, **learned}
        weights = settings.exact_weights(call, held)
        aggregate, gradients = settings.exact_aggregate(call, cotangent, held)
        to_learned = settings.exact_learned(call, cotangent, held) if learned else {}
        if state:
            state = observe(state, call)
            if after is not None:
                state = observe(state, Call.of(after, amounts), after=True)
            state = committed(settings, state)
        to_losses, of_losses = (dict(zip(call.names, given, strict=True)) for given in (gradients, weights))
        yield Answer(aggregate, to_losses, of_losses, state, to_learned)


def committed(settings: Any, state: ReferenceState) -> ReferenceState:
    """The state after `step()` (spec T4)."""
    mean, present = pending_mean(state["pending"])
    own = settings.exact_committed(state, mean, present) if any(present) else {}
    return advance({**state, **own})
