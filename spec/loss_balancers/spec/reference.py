"""The exact reference of a training run: every balancer, step after step, in fractions.

Each settings class has ``exact_weights`` and ``exact_aggregate``; if its balancer keeps state, ``weight_format``; if that is more
than counters, ``exact_committed`` too. The table of settings classes here is what all others derive from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from loss_balancers.spec.ema_normalized import EMANormalizedLossBalancerSettings
from loss_balancers.spec.keys import canonical_order
from loss_balancers.spec.logits_and_intermediates import LogitsAndIntermediatesLossBalancerSettings
from loss_balancers.spec.scheduled import ScheduledLossBalancerSettings, WeightedSumLossBalancerSettings
from loss_balancers.spec.state import ReferenceState, advance, as_observed, initial_state, observe, pending_mean
from loss_balancers.spec.static import StaticLossBalancerSettings

#: Every balancer by its class's name: the settings that it has.
SETTINGS: dict[str, Any] = {
    settings.balancer: settings
    for settings in (
        StaticLossBalancerSettings,
        ScheduledLossBalancerSettings,
        WeightedSumLossBalancerSettings,
        EMANormalizedLossBalancerSettings,
        LogitsAndIntermediatesLossBalancerSettings,
    )
}

#: From name to format and value.
Losses = Mapping[str, tuple[str, float]]


class Answer(NamedTuple):
    """What one step gives: of its forward the aggregate, the gradients and the weights, by name; the state after its commit."""

    aggregate: float
    gradients: dict[str, float]
    weights: dict[str, float]
    state: ReferenceState


def run(settings: Any, steps: Iterable[tuple[Losses, float]]) -> Iterator[Answer]:
    """A run from the beginning: at each step one forward in training mode, its gradient, and `step()`.

    Args:
        settings: Those of any balancer.
        steps: The losses of each step, and the cotangent in the aggregate's format.
    """
    state = initial_state(settings.state)
    for losses, cotangent in steps:
        names = canonical_order(tuple(losses))
        formats, values = [losses[name][0] for name in names], [losses[name][1] for name in names]
        weights = settings.exact_weights(names, values, formats, state)
        aggregate, gradients = settings.exact_aggregate(names, values, formats, cotangent, state)
        if state:
            state = committed(settings, observed(state, values, formats))
        yield Answer(aggregate, dict(zip(names, gradients, strict=True)), dict(zip(names, weights, strict=True)), state)


def observed(state: ReferenceState, values: list[float], formats: list[str]) -> ReferenceState:
    """The state after a forward in training mode. Balancers that keep counters alone observe that there was a call."""
    return observe(state, as_observed(values, formats) if len(state["pending"]) > 2 else [])


def committed(settings: Any, state: ReferenceState) -> ReferenceState:
    """The state after `step()` (spec T4)."""
    mean = pending_mean(state["pending"])
    own = settings.exact_committed(state, mean) if mean else {}  # none to commit, or of no loss
    return advance({**state, **own})


def arguments(settings: Any) -> dict[str, Any]:
    """The arguments by which either twin's class makes a balancer of these settings."""
    return {field.name: _as_given(getattr(settings, field.name)) for field in fields(settings) if field.init}


def _as_given(held: Any) -> Any:
    """A mapping is held as pairs."""
    return dict(held) if isinstance(held, tuple) and held and isinstance(held[0], tuple) else held
