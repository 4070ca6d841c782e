"""`DWALossBalancer`: what an epoch is, the paper's weights, and ratios that say nothing."""

import math

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits

NAMES = ("KL_0", "MSE_1", "student_loss")


@pytest.fixture
def make_dwa(framework):
    """Makes a balancer of three losses."""
    return lambda **settings: framework.balancers.DWALossBalancer(NAMES, **settings)


@pytest.fixture
def train(framework):
    """Trains for a step on these losses."""

    def step(balancer, losses):
        balancer({name: framework.array(x) for name, x in zip(NAMES, losses, strict=True)})
        balancer.step()

    return step


def weights_of(balancer, framework):
    given = balancer.weights({name: framework.array(1.0) for name in NAMES})
    return np.array([float(given[name]) for name in NAMES])


def drawn(steps, seed=0):
    return np.random.default_rng(seed).lognormal(0, 2, (steps, len(NAMES))).astype(np.float32)


def papers(losses, epoch, temperature):
    """The weights of equation 7 in float64, after epochs of so many steps."""
    *_, before, last = losses.astype(np.float64).reshape(-1, epoch, len(NAMES)).mean(1)
    powers = np.exp(last / before / temperature - np.max(last / before / temperature))
    return len(NAMES) * powers / powers.sum()


@pytest.mark.parametrize("epoch", [1, 4])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_weights_are_the_paper_s(framework, make_dwa, train, epoch, temperature):
    for seed in range(20):
        balancer, losses = make_dwa(epoch_steps=epoch, temperature=temperature), drawn(3 * epoch, seed)
        for row in losses:
            train(balancer, row)
        # A ratio of float32, of several hundred at most, is an exponent here.
        np.testing.assert_allclose(weights_of(balancer, framework), papers(losses, epoch, temperature), rtol=2e-4, atol=1e-12)


def test_in_the_first_two_epochs_the_aggregate_is_the_plain_sum(framework, make_dwa, train):
    balancer, plain = make_dwa(epoch_steps=2), framework.balancers.WeightedSumLossBalancer({"KL_0": 1.0, "MSE_1": 1.0}, 1.0)
    for row in drawn(4):
        losses = {name: framework.array(x) for name, x in zip(NAMES, row, strict=True)}
        assert_same_bits(balancer(losses), plain(losses))
        balancer.step()
    assert (weights_of(balancer, framework) != 1.0).all()


def test_pure_functions_have_end_epoch(framework, make_dwa, train, values):
    balancer, form = make_dwa(), framework.balancers.functional_form(make_dwa())
    state = form.init()
    for row in drawn(4):
        train(balancer, row)
        balancer.end_epoch()
        _, state = form.apply(state, {name: framework.array(x) for name, x in zip(NAMES, row, strict=True)})
        state = form.end_epoch(form.commit(state))
    for name, value in values(balancer).items():
        assert_same_bits(form.export_state(state)["state"][name], value)
    by_itself = framework.balancers.functional_form(make_dwa(epoch_steps=2))
    with pytest.raises(RuntimeError, match="where `epoch_steps` is set"):
        by_itself.end_epoch(by_itself.init())
    with pytest.raises(TypeError, match=r"A `StaticLossBalancer` has no epochs. Received `end_epoch\(\)`"):
        framework.balancers.functional_form(framework.balancers.StaticLossBalancer(0.5)).end_epoch({})


def test_end_epoch_is_what_epoch_steps_does(make_dwa, train, values):
    by_steps, by_call = make_dwa(epoch_steps=3), make_dwa()
    for step, row in enumerate(drawn(10), 1):
        for balancer in (by_steps, by_call):
            train(balancer, row)
        if step % 3 == 0:
            by_call.end_epoch()
        for name, value in values(by_steps).items():
            assert_same_bits(values(by_call)[name], value)


def test_an_epoch_without_a_step_changes_nothing(make_dwa, train, values, assert_same_state):
    balancer = make_dwa()
    for row in drawn(3):
        train(balancer, row)
        balancer.end_epoch()
    before = values(balancer)
    balancer.end_epoch()
    assert_same_state(balancer, before)


def test_a_loss_that_was_absent_for_an_epoch_keeps_its_averages(framework, make_dwa, train, values):
    balancer = make_dwa(epoch_steps=1)
    for row in drawn(2):
        train(balancer, row)
    before = values(balancer)
    balancer({name: framework.array(3.0) for name in NAMES}, count={"KL_0": 2, "MSE_1": 0, "student_loss": 2})
    balancer.step()
    for name in ("last", "before"):
        assert values(balancer)[name][1] == before[name][1]
        assert values(balancer)[name][0] != before[name][0]


@pytest.mark.parametrize("silent", [0.0, 2.0**-130, -0.0])
def test_an_average_that_says_nothing_gives_the_ratio_1(framework, make_dwa, train, silent):
    balancer = make_dwa(epoch_steps=1)
    train(balancer, [silent, 1.0, 1.0])
    train(balancer, [5.0, 1.0, 1.0])
    assert weights_of(balancer, framework).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_never_enters_the_state(make_dwa, train, values, wrong):
    balancer = make_dwa(epoch_steps=1)
    for row in ([1.0, 2.0, 3.0], [2.0, wrong, 1.0], [wrong, 1.0, 1.0], [3.0, 1.0, 2.0]):
        train(balancer, row)
    assert all(np.isfinite(np.asarray(value)).all() for value in values(balancer).values())
    assert values(balancer)["before"].tolist() == [1.0, 2.0, 3.0]
    assert values(balancer)["last"].tolist() == [3.0, 1.0, 2.0]


def test_a_bound_caps_the_ratios(framework, make_dwa, train):
    balancers = make_dwa(epoch_steps=1, max_ratio=2.0), make_dwa(epoch_steps=1)
    for balancer in balancers:
        train(balancer, [1.0, 1.0, 1.0])
        train(balancer, [1e6, 1.0, 1.0])
    capped, free = (weights_of(balancer, framework) for balancer in balancers)
    assert free.tolist() == [3.0, 0.0, 0.0]
    np.testing.assert_allclose(capped, 3 * np.exp([1, 0.5, 0.5]) / np.exp([1, 0.5, 0.5]).sum(), rtol=1e-6)


@pytest.mark.parametrize(("total_weight", "total"), [("paper", 3.0), ("K", 3.0), ("one", 1.0)])
def test_the_total_weight(framework, make_dwa, train, total_weight, total):
    balancer = make_dwa(epoch_steps=1, total_weight=total_weight)
    for row in drawn(3):
        assert weights_of(balancer, framework).sum() == pytest.approx(total, rel=1e-6)
        train(balancer, row)


def test_the_greatest_exponents_are_finite(framework, make_dwa, train):
    balancer = make_dwa(epoch_steps=1, temperature=2.0**-120)
    train(balancer, [2.0**-100, 2.0**-100, -(2.0**-100)])
    train(balancer, [2.0**100, 1.0, 2.0**100])
    assert weights_of(balancer, framework).tolist() == [1.5, 1.5, 0.0]
