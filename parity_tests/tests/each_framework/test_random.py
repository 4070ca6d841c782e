"""`RandomLossBalancer`: weights are shares of normal draws, one draw a step, whatever else happens."""

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec.random_bits import WEIGHTS, normals

NAMES = ("KL_0", "MSE_1", "student_loss")


@pytest.fixture
def make_random(framework):
    """Makes a balancer of three losses."""
    return lambda **settings: framework.balancers.RandomLossBalancer(NAMES, **settings)


@pytest.fixture
def losses(framework):
    return {name: framework.array(x) for name, x in zip(NAMES, (1.0, 2.0, 4.0), strict=True)}


def weights_of(balancer, losses):
    given = balancer.weights(losses)
    return np.array([float(given[name]) for name in NAMES])


def papers(seed, step):
    """The softmax of the draw, in float64."""
    powers = np.exp(normals(seed, step, WEIGHTS, len(NAMES)))
    return powers / powers.sum()


@pytest.mark.parametrize(("total_weight", "total"), [("paper", 1.0), ("K", 3.0), ("one", 1.0)])
def test_the_weights_are_shares_of_the_draw(make_random, losses, total_weight, total):
    balancer = make_random(seed=9, total_weight=total_weight)
    for step in range(10):
        np.testing.assert_allclose(weights_of(balancer, losses), total * papers(9, step), rtol=1e-6)
        balancer(losses)
        balancer.step()


def test_static_weights_multiply_the_shares(make_random, losses):
    balancer = make_random(weights={"KL_0": 0.0, "student_loss": 0.5})
    np.testing.assert_allclose(weights_of(balancer, losses), [0.0, 1.0, 0.5] * papers(0, 0), rtol=1e-6)


def test_a_draw_lasts_until_the_commit_and_the_next_is_another(framework, make_random, losses):
    balancer = make_random()
    seen = []
    for _ in range(5):
        before = weights_of(balancer, losses)
        for factor in (1.0, 3.0):  # micro-batches
            balancer({name: x * factor for name, x in losses.items()})
            assert weights_of(balancer, losses).tolist() == before.tolist()
        balancer.eval()
        aggregate = balancer(losses)
        assert float(aggregate) == pytest.approx(float((before * [1.0, 2.0, 4.0]).sum()), rel=1e-6)
        assert weights_of(balancer, losses).tolist() == before.tolist()
        balancer.train()
        balancer.step()
        seen.append(tuple(before))
    assert len(set(seen)) == 5


def test_a_state_takes_its_draws_along(make_random, losses):
    balancer, other = make_random(seed=3), make_random(seed=3)
    for _ in range(4):
        balancer(losses)
        balancer.step()
    assert weights_of(other, losses).tolist() != weights_of(balancer, losses).tolist()
    other.load_state(balancer.export_state())
    for _ in range(3):
        assert_same_bits(other(losses), balancer(losses))
        for each in (balancer, other):
            each.step()


def test_another_seed_gives_other_weights(make_random, losses):
    seen = {tuple(weights_of(make_random(seed=seed), losses)) for seed in (0, 1, 2**32, 2**63 - 1)}
    assert len(seen) == 4


def test_an_absent_loss_has_the_weight_0_and_the_others_keep_theirs(make_random, losses):
    balancer = make_random()
    present = balancer.weights(losses)
    absent = balancer.weights(losses, count={"KL_0": 1, "MSE_1": 0, "student_loss": 1})
    assert float(absent["MSE_1"]) == 0.0
    for name in ("KL_0", "student_loss"):
        assert_same_bits(absent[name], present[name])


def test_losses_of_any_shape(framework, make_random):
    balancer = make_random()
    aggregate = balancer({name: framework.array(np.full((2, 3), 1.0, np.float32)) for name in NAMES})
    np.testing.assert_allclose(np.asarray(aggregate), np.ones((2, 3)), rtol=1e-6)
