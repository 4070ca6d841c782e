"""neuraloperator's classes as witnesses of SoftAdapt by ratios and of ReLoBRaLo: 300 drawn traces each, in float64.

They stand in `neuralop.losses.meta_losses`, and come from NVIDIA PhysicsNeMo with almost no changes. As in `test_torchjd.py`, the
steps of the reference compute with doubles, and agree to 1e-12 of the value. neuraloperator brings two dozen packages, so it is not
among the extras: these tests run where it is installed, and are skipped elsewhere.
"""

from unittest.mock import patch

import pytest
import torch
from doubles import COUNTS, Doubles, assert_close, call_of, drawn_traces, names_of

from loss_balancers import spec
from loss_balancers.spec import random_bits
from loss_balancers.spec.state import initial_state

peers = pytest.importorskip("neuralop.losses.meta_losses", reason="pip install -c constraints.txt neuraloperator")


@pytest.fixture(params=COUNTS)
def traces(request):
    """Traces of positive losses of scales that are apart."""
    return drawn_traces(request.param)


@pytest.fixture(params=[None, 0.5], ids=["unweighted", "weighted"])
def weights(request):
    """The static weights: of both kinds."""
    return None if request.param is None else {names_of(1)[0]: request.param}


def peer_of(kind, count, weights=None, **settings):
    """One of their classes in float64. Without eps, unless it is asked for: we have none."""
    made = kind(
        [torch.zeros((), dtype=torch.float64)], count, weights=dict(weights) if weights else None, **{"eps": 0.0, **settings}
    )
    made.init_loss = made.init_loss.double()  # not a buffer, so that `double` leaves it
    return made.double()


def theirs(peer, losses, step):
    """The value and the gradient."""
    x = [torch.tensor(loss, dtype=torch.float64, requires_grad=True) for loss in losses]
    value, _ = peer(dict(zip(names_of(len(losses)), x, strict=True)), step)
    return value.item(), [g.item() for g in torch.autograd.grad(value, x)]


def assert_same_traces(settings, peer, trace, flip=lambda step: None):
    """Holds each step of a trace against theirs; `flip` makes their draw ours."""
    state = initial_state(settings.state)
    for step, losses in enumerate(trace):
        value, gradient = settings.exact_aggregate(call_of(losses), 1.0, state)
        with patch.object(torch, "bernoulli", lambda p, step=step: torch.full_like(p, flip(step))):
            wanted, wanted_gradient = theirs(peer, losses, step)
        assert_close((value, *gradient), (wanted, *wanted_gradient), sum(losses))
        state |= settings.exact_committed(state, losses, (True,) * len(losses), Doubles())
        state["steps"] += 1


def test_soft_adapt_by_ratios(traces, weights):
    for trace in traces:
        count = len(trace[0])
        settings = spec.SoftAdaptLossBalancerSettings(names_of(count), weights, "ratio")
        assert_same_traces(settings, peer_of(peers.SoftAdapt, count, weights), trace)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.75, 1.0), (0.5, 0.25)])
def test_relobralo_of_the_same_draw(traces, weights, alpha, temperature):
    for seed, trace in enumerate(traces):
        count = len(trace[0])
        settings = spec.ReLoBRaLoLossBalancerSettings(names_of(count), weights, alpha, 0.5, temperature, seed=seed)
        peer = peer_of(peers.Relobralo, count, weights, alpha=alpha, tau=temperature)
        flips = [random_bits.happens(seed, step, random_bits.LOOK_BACK, 0.5) for step in range(len(trace))]
        assert_same_traces(settings, peer, trace, lambda step, flips=flips: float(flips[step]))


@pytest.mark.parametrize("kind", ["SoftAdapt", "Relobralo"])
def test_a_loss_of_zero_before_silences_gradients_there_and_has_the_ratio_1_here(kind):
    """A departure on purpose (docs/spec B2). With their eps."""
    settings = {
        "SoftAdapt": spec.SoftAdaptLossBalancerSettings(names_of(2), None, "ratio"),
        "Relobralo": spec.ReLoBRaLoLossBalancerSettings(names_of(2), alpha=0.0),
    }[kind]
    peer = peer_of(getattr(peers, kind), 2, eps=1e-8, **({"alpha": 0.0} if kind == "Relobralo" else {}))
    state = initial_state(settings.state)
    theirs(peer, [0.0, 1.0], 0)
    state |= settings.exact_committed(state, [0.0, 1.0], (True, True))
    state["steps"] += 1
    _, silenced = theirs(peer, [1.0, 1.0], 1)
    assert silenced == [0.0, 0.0]
    _, gradient = settings.exact_aggregate(call_of([1.0, 1.0]), 1.0, state)
    assert gradient == [1.0, 1.0]
