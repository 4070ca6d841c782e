"""TorchJD's scalarizers as witnesses of the reference steps: 300 drawn traces each, in float64, to 1e-12 of the value.

The reference is exact float32. Here its steps compute with doubles instead (`Doubles`), so that what is compared is the method and
not the rounding. Settings are such that float32 holds them.
"""

import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from doubles import COUNTS, Doubles, assert_close, call_of, drawn_traces, names_of
from torchjd import scalarization

from loss_balancers import spec
from loss_balancers.spec import famo, random_bits
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.call import Call
from loss_balancers.spec.state import initial_state


def exact_call(losses):
    """The same in the exact arithmetic of the spec, which knows what the logarithm of a negative number is."""
    return call_of(losses)._replace(ops=EXACT)


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


def learned(settings, losses, parameter):
    """The value, the gradient to each loss, and that to the parameter, which is not at its start."""
    value, to_losses, to_parameter = settings.exact_call(call_of(losses), 1.0, {settings.parameter: parameter})
    return (value, *to_losses, *to_parameter)


def theirs_learned(scalarizer, losses, parameter):
    """The same of a scalarizer with one parameter."""
    (own,) = scalarizer.double().parameters()
    with torch.no_grad():
        own.copy_(torch.tensor(parameter, dtype=torch.float64))
    x = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    value = scalarizer(x)
    return [value.item(), *(g for gradient in torch.autograd.grad(value, (x, own)) for g in gradient.tolist())]


@pytest.mark.parametrize(
    ("settings", "scalarizer"),
    [(spec.UncertaintyLossBalancerSettings, scalarization.UW), (spec.IMTLLossBalancerSettings, scalarization.IMTLL)],
)
def test_learned(traces, settings, scalarizer):
    for trace in traces:
        count = len(trace[0])
        for losses, shift in zip(trace[:4], trace[4:8], strict=True):
            parameter = [math.log(x) for x in shift]
            ours, wanted = (
                learned(settings(names_of(count)), losses, parameter),
                theirs_learned(scalarizer(count), losses, parameter),
            )
            assert_close(ours, wanted, sum(map(abs, wanted)))


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


@pytest.mark.parametrize(("lr", "weight_decay", "least"), [(0.025, 1e-3, 0.0), (0.5, 0.1, -1.0)])
def test_famo(traces, lr, weight_decay, least):
    """Value, gradient and logits over eight updates, each with the losses of the next step. Constants as the settings have them."""
    with patch.object(famo, "round_weight", lambda weight, name: weight):
        for trace in traces:
            names = names_of(len(trace[0]))
            settings = spec.FAMOLossBalancerSettings(names, lr, weight_decay, dict.fromkeys(names, least))
            least_of_each = torch.full((len(names),), least, dtype=torch.float64)
            state = initial_state(settings.state)
            peer = scalarization.FAMO(len(names), least_of_each, lr, weight_decay).double()
            for before, after in itertools.pairwise(trace):
                value, gradient = settings.exact_aggregate(call_of(before), 1.0, state)
                wanted, of_losses = theirs(peer, before)
                # The logarithms that it adds up may cancel.
                assert_close(value, wanted, max(abs(math.log(x - least)) for x in before) * max(before))
                assert_close(gradient, of_losses)
                state |= settings.exact_committed(state, [*before, *after], (True,) * (2 * len(names)), Doubles())
                peer.update(torch.tensor(after, dtype=torch.float64))
                assert_close(state["logits"], peer._w.tolist(), lr)  # steps of about lr may cancel


def test_a_loss_at_its_least_value_moves_no_logit_here():
    """Departures on purpose (docs/spec Q3, Q4): of a loss that is not above its least value nothing follows."""
    settings = spec.FAMOLossBalancerSettings(names_of(2))
    state, peer = initial_state(settings.state), scalarization.FAMO(2)
    peer(torch.tensor([1.0, 2.0]))
    peer.update(torch.tensor([0.0, 2.0]))
    assert peer._w.tolist()[0] == pytest.approx(-0.025)
    assert settings.exact_committed(state, [1.0, 2.0, 0.0, 2.0], (True,) * 4)["logits"] == (0.0, 0.0)
    value, gradient = theirs(peer, [-1.0, 2.0])
    assert math.isnan(value)
    assert np.isfinite(gradient).all()  # of the first loss, which it would push up
    value, gradient = settings.exact_aggregate(exact_call([-1.0, 2.0]), 1.0, state)
    assert np.isnan([value, *gradient]).all()


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
