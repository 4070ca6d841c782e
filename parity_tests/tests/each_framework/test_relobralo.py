"""`ReLoBRaLoLossBalancer`: the paper's balance, its random look back, and ratios that say nothing."""

import math

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec.random_bits import LOOK_BACK, happens

NAMES = ("KL_0", "MSE_1", "student_loss")


@pytest.fixture
def make_relobralo(framework):
    """Makes a balancer of three losses."""
    return lambda **settings: framework.balancers.ReLoBRaLoLossBalancer(NAMES, **settings)


@pytest.fixture
def of(framework):
    """Losses of these numbers."""
    return lambda row: {name: framework.array(x) for name, x in zip(NAMES, row, strict=True)}


@pytest.fixture
def train(of):
    """Trains for a step on these losses."""

    def step(balancer, row):
        balancer(of(row))
        balancer.step()

    return step


def weights_of(balancer, losses):
    given = balancer.weights(losses)
    return np.array([float(given[name]) for name in NAMES])


def drawn(steps, seed=0):
    return np.random.default_rng(seed).lognormal(0, 1, (steps, len(NAMES))).astype(np.float32)


def papers(losses, alpha, beta, temperature, seed):
    """The balance of each step in float64, as PhysicsNeMo has it, with the draws of the spec."""
    losses = losses.astype(np.float64)
    balance, found = np.ones(len(NAMES)), [np.ones(len(NAMES))]

    def relative(now, reference):
        powers = np.exp(now / reference / temperature - np.max(now / reference / temperature))
        return len(NAMES) * powers / powers.sum()

    for step in range(1, len(losses)):
        stays = happens(seed, step, LOOK_BACK, float(np.float32(beta)))
        before = balance if stays else relative(losses[step], losses[0])
        balance = alpha * before + (1 - alpha) * relative(losses[step], losses[step - 1])
        found.append(balance)
    return np.array(found)


SETTINGS = [(0.95, 0.99, 1.0), (0.5, 0.5, 2.0), (0.0, 1.0, 1.0), (1.0, 0.0, 4.0), (0.999, 0.9, 0.5)]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("alpha", "beta", "temperature"), SETTINGS)
def test_the_balance_is_the_paper_s(make_relobralo, of, train, alpha, beta, temperature):
    for seed in range(4):
        losses = drawn(30, seed)
        expected = papers(losses, alpha, beta, temperature, seed)
        now, lagged = (
            make_relobralo(alpha=alpha, beta=beta, temperature=temperature, seed=seed, lagged=late) for late in (False, True)
        )
        before = np.ones(len(NAMES))
        for row, balance in zip(losses, expected, strict=True):
            # A ratio of float32, of a hundred at most, is an exponent here.
            np.testing.assert_allclose(weights_of(now, of(row)), balance, rtol=5e-5, atol=1e-7)
            np.testing.assert_allclose(weights_of(lagged, of(row)), before, rtol=5e-5, atol=1e-7)
            for balancer in (now, lagged):
                train(balancer, row)
            before = balance


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("lagged", [False, True])
def test_in_the_first_step_the_aggregate_is_the_plain_sum(framework, make_relobralo, of, alpha, lagged):
    plain = framework.balancers.WeightedSumLossBalancer({"KL_0": 1.0, "MSE_1": 1.0}, 1.0)
    for row in drawn(5):
        assert_same_bits(make_relobralo(alpha=alpha, beta=0.5, lagged=lagged)(of(row)), plain(of(row)))


def test_micro_batches_commit_what_the_whole_batch_does(make_relobralo, of, values):
    """Sums are exact here, so the state has the same bits."""
    whole, split = make_relobralo(beta=0.5), make_relobralo(beta=0.5)
    for row in np.random.default_rng(0).integers(1, 64, (20, len(NAMES))) * 4.0:
        whole(of(row))
        for part in (0.5, 1.5, 1.0, 1.0):
            split(of(row * part))
        for balancer in (whole, split):
            balancer.step()
        for name, value in values(whole).items():
            assert_same_bits(values(split)[name], value)


def test_lagged_weights_do_not_depend_on_the_losses_of_the_call(make_relobralo, of, train):
    balancer = make_relobralo(lagged=True, beta=0.5)
    for row in drawn(5):
        train(balancer, row)
    assert weights_of(balancer, of([1.0, 2.0, 3.0])).tolist() == weights_of(balancer, of([7.0, 0.0, math.nan])).tolist()


def test_an_absent_loss_keeps_its_state(make_relobralo, of, train, values):
    balancer = make_relobralo(beta=0.5)
    for row in drawn(3):
        train(balancer, row)
    before, count = values(balancer), {"KL_0": 2, "MSE_1": 0, "student_loss": 2}
    assert float(balancer.weights(of([3.0, math.nan, 5.0]), count=count)["MSE_1"]) == 0.0
    balancer(of([3.0, math.nan, 5.0]), count=count)
    balancer.step()
    for name in ("initial", "previous", "balance"):
        assert values(balancer)[name][1] == before[name][1]
    for name in ("previous", "balance"):
        assert values(balancer)[name][0] != before[name][0]


@pytest.mark.parametrize("silent", [0.0, 2.0**-130, -0.0])
def test_a_mean_that_says_nothing_gives_the_ratio_1_and_is_no_first_mean(make_relobralo, of, train, values, silent):
    balancer = make_relobralo(beta=0.0)
    train(balancer, [silent, 1.0, 1.0])
    assert weights_of(balancer, of([5.0, 1.0, 1.0])).tolist() == [1.0, 1.0, 1.0]
    train(balancer, [5.0, 1.0, 1.0])
    assert values(balancer)["initial"].tolist() == [5.0, 1.0, 1.0]
    assert values(balancer)["previous"].tolist() == [5.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_not_finite_never_enters_the_state(make_relobralo, of, train, values, wrong, at):
    rows = drawn(6).tolist()
    with_it, without = make_relobralo(beta=0.5), make_relobralo(beta=0.5)
    for step, row in enumerate(rows):
        if step == at:
            assert np.isfinite(weights_of(with_it, of([wrong, *row[1:]]))).all()
            train(with_it, [wrong, *row[1:]])
            without.step()
        else:
            train(with_it, row)
            train(without, row)
    for name, value in values(without).items():
        if name != "skipped":
            assert_same_bits(values(with_it)[name], value)


def test_zero_and_negative_losses_are_finite(make_relobralo, of, train, values):
    balancer = make_relobralo(beta=0.5, temperature=0.01)
    for row in ([0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [2.0**100, 2.0**-100, -3.0], [2.0**-100, 2.0**100, 1.0], [-1.0, 0.0, 1.0]):
        assert np.isfinite(weights_of(balancer, of(row))).all()
        train(balancer, row)
        assert all(np.isfinite(np.asarray(value)).all() for value in values(balancer).values())
    assert values(balancer)["initial"].tolist() == [1.0, -1.0, -3.0]


def test_a_bound_caps_the_ratios(make_relobralo, of, train):
    free, capped = make_relobralo(alpha=0.0), make_relobralo(alpha=0.0, max_ratio=2.0)
    for balancer in (free, capped):
        train(balancer, [1.0, 1.0, 1.0])
    assert weights_of(free, of([1e6, 1.0, 1.0])).tolist() == [3.0, 0.0, 0.0]
    np.testing.assert_allclose(weights_of(capped, of([1e6, 1.0, 1.0])), 3 * np.exp([2, 1, 1]) / np.exp([2, 1, 1]).sum(), rtol=1e-6)


@pytest.mark.parametrize(("total_weight", "total"), [("paper", 3.0), ("K", 3.0), ("one", 1.0)])
def test_the_total_weight(make_relobralo, of, train, total_weight, total):
    balancer = make_relobralo(total_weight=total_weight, beta=0.5)
    for row in drawn(10):
        assert weights_of(balancer, of(row)).sum() == pytest.approx(total, rel=1e-5)
        train(balancer, row)


def test_a_seed_decides_when_it_looks_back(make_relobralo, of, train):
    weights = set()
    for seed in range(8):
        balancer = make_relobralo(seed=seed, beta=0.5, alpha=0.5)
        for row in drawn(4):
            train(balancer, row)
        weights.add(tuple(weights_of(balancer, of(drawn(5)[4]))))
    assert len(weights) > 4
