"""TorchJD's scalarizers as witnesses of the reference steps: 300 drawn traces each, in float64, to 1e-12 of the value.

The reference is exact float32. Here its steps compute with doubles instead (`Doubles`), so that what is compared is the method and
not the rounding. Settings are such that float32 holds them.
"""

import math
from unittest.mock import patch

import pytest
import torch
from doubles import COUNTS, Doubles, assert_close, call_of, drawn_traces, names_of
from torchjd import scalarization

from loss_balancers import spec
from loss_balancers.spec import random_bits
from loss_balancers.spec.call import Call
from loss_balancers.spec.state import initial_state


def theirs(scalarizer, losses):
    """The value and the gradient."""
    x = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    value = scalarizer(x)
    return value.item(), torch.autograd.grad(value, x)[0].tolist()


@pytest.fixture(params=COUNTS)
def traces(request):
    """Traces of positive losses of scales that are apart."""
    return drawn_traces(request.param)


def test_dwa(traces):
    for trace in traces:
        settings = spec.DWALossBalancerSettings(names_of(len(trace[0])), epoch_steps=3)
        state, peer = initial_state(settings.state), scalarization.DWA(2.0)
        for step, losses in enumerate(trace, 1):
            value, gradient = settings.exact_aggregate(call_of(losses), 1.0, state)
            assert_close((value, *gradient), [(got := theirs(peer, losses))[0], *got[1]], sum(losses))
            state |= settings.exact_committed(state, losses, (True,) * len(losses), Doubles())
            state["steps"] += 1
            if step % 3 == 0:
                peer.step()


def test_geometric_mean(traces):
    for trace in traces:
        settings = spec.GeometricLossBalancerSettings(names_of(len(trace[0])))
        for losses in trace[:2]:
            value, gradient = settings.exact_aggregate(call_of(losses), 1.0, {})
            assert_close((value, *gradient), [(got := theirs(scalarization.GeometricMean(), losses))[0], *got[1]])


@pytest.mark.parametrize("mu", [0.25, 1.0, 8.0])
def test_stch(traces, mu):
    for trace in traces:
        settings = spec.STCHLossBalancerSettings(names_of(len(trace[0])), mu)
        for losses in trace[:2]:
            value, gradient = settings.exact_aggregate(call_of(losses), 1.0, {})
            assert_close((value, *gradient), [(got := theirs(scalarization.STCH(mu), losses))[0], *got[1]])


def test_random_weights_of_the_same_draw(traces):
    for seed, trace in enumerate(traces):
        count = len(trace[0])
        settings = spec.RandomLossBalancerSettings(names_of(count), seed=seed)
        for step, losses in enumerate(trace[:2]):
            drawn = torch.tensor(random_bits.normals(seed, step, random_bits.WEIGHTS, count), dtype=torch.float64)
            with (
                patch.object(torch, "randn", lambda *args, drawn=drawn, **kwargs: drawn),
                patch.object(torch, "randn_like", lambda *args, drawn=drawn, **kwargs: drawn),
            ):
                wanted, weights = theirs(scalarization.Random(), losses)
            value, gradient = settings.exact_aggregate(call_of(losses), 1.0, {"steps": step})
            assert_close((value, *gradient), (wanted, *weights))


def test_a_loss_of_zero_before_gives_nan_there_and_the_ratio_1_here():
    """A departure on purpose (docs/spec B2)."""
    settings = spec.DWALossBalancerSettings(names_of(2), epoch_steps=1)
    state, peer = initial_state(settings.state), scalarization.DWA(2.0)
    for losses in ([0.0, 1.0], [1.0, 1.0]):
        peer(torch.tensor(losses))
        peer.step()
        state |= settings.exact_committed(state, losses, (True, True))
        state["steps"] += 1
    assert math.isnan(theirs(peer, [1.0, 1.0])[0])
    assert settings.exact_factors(state, Call.of(dict.fromkeys(settings.names, ("f32", 1.0)))) == [1.0, 1.0]
