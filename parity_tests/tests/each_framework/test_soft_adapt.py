"""`SoftAdaptLossBalancer`: the paper's weights, in each variant, and what says nothing."""

import math

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec.soft_adapt import DIFFERENCES

NAMES = ("KL_0", "MSE_1", "student_loss")


@pytest.fixture
def make_soft(framework):
    """Makes a balancer of three losses."""
    return lambda **settings: framework.balancers.SoftAdaptLossBalancer(NAMES, **settings)


def of(framework, row):
    return {name: framework.array(x) for name, x in zip(NAMES, row, strict=True)}


def weights_after(framework, balancer, rows):
    """The weights of the last row's call, after steps with the rows before."""
    *before, last = rows
    for row in before:
        balancer(of(framework, row))
        balancer.step()
    given = balancer.weights(of(framework, last))
    return np.array([float(given[name]) for name in NAMES])


def drawn(steps, seed):
    return np.random.default_rng(seed).uniform(0.1, 3.0, (steps, len(NAMES))).astype(np.float32)


def papers(rows, variant, beta, order):
    """The weights in float64, of the last ``order + 1`` rows."""
    rows = rows[-order - 1 :].astype(np.float64)
    slopes = np.array([float(x) for x in DIFFERENCES[order]]) @ rows
    if variant == "ratio":
        slopes = rows[1] / rows[0]
    if variant == "normalized":
        slopes = slopes / np.abs(slopes).sum()
    powers = np.exp(beta * slopes) * (rows.mean(0) if variant == "loss_weighted" else 1.0)
    return powers / powers.sum() * (len(NAMES) if variant == "ratio" else 1.0)


@pytest.mark.parametrize(
    ("variant", "beta", "order"),
    [
        *[("slope", 0.1, 1), ("slope", -2.0, 4), ("normalized", 1.5, 3)],
        *[("loss_weighted", 0.5, 2), ("loss_weighted", 0.1, 5), ("ratio", 1.0, 1)],
    ],
)
def test_the_weights_are_the_paper_s(framework, make_soft, variant, beta, order):
    for seed in range(12):
        rows = drawn(order + 2, seed)
        balancer = make_soft(variant=variant, beta=beta, order=order)
        np.testing.assert_allclose(weights_after(framework, balancer, rows), papers(rows, variant, beta, order), rtol=2e-5)


def test_lagged_weights_are_those_of_the_last_commit(framework, make_soft):
    rows = drawn(4, 1)
    lagged = weights_after(framework, make_soft(lagged=True, beta=1.0), rows)
    np.testing.assert_array_equal(lagged, weights_after(framework, make_soft(beta=1.0), rows[:-1]))


def test_until_a_slope_is_known_all_weights_are_equal(framework, make_soft):
    for steps in (1, 2, 3):
        weights = weights_after(framework, make_soft(order=3, total_weight="K"), drawn(steps, 2))
        assert weights.tolist() == [1.0, 1.0, 1.0]
    assert len(set(weights_after(framework, make_soft(order=3), drawn(4, 2)))) == 3


@pytest.mark.parametrize("variant", ["slope", "normalized", "loss_weighted", "ratio"])
@pytest.mark.parametrize("silent", [0.0, 2.0**-130, -0.0])
def test_a_zero_loss_silences_nothing(framework, make_soft, variant, silent):
    """PhysicsNeMo's aggregate is 0 then, without a gradient."""
    weights = weights_after(framework, make_soft(variant=variant), [[silent] * 3, [2.0, 1.0, 1.0]])
    assert (weights > 0).all()
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("variant", ["slope", "normalized", "loss_weighted", "ratio"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight_and_no_state(framework, make_soft, variant, wrong):
    rows = drawn(3, 3)
    balancer, other = make_soft(variant=variant), make_soft(variant=variant)
    expected = weights_after(framework, other, rows)
    balancer(of(framework, rows[0]))
    balancer.step()
    balancer(of(framework, [1.0, wrong, 1.0]))
    balancer.step()
    assert_same_bits(weights_after(framework, balancer, rows[1:]), expected)
    assert all(np.isfinite(np.asarray(value)).all() for value in balancer.export_state()["state"].values())
    held = weights_after(framework, balancer, [[wrong, 1.0, 1.0]])
    assert np.isfinite(held).all()


@pytest.mark.parametrize(("variant", "beta"), [("slope", 1e38), ("normalized", 1e38), ("loss_weighted", -1e38), ("ratio", 1e38)])
def test_weights_are_finite_whatever_the_scale(framework, make_soft, variant, beta):
    rows = [[2.0**-100, 1.0, 3e38], [3e38, 1.0, 2.0**-100], [3e38, 3e38, 3e38]]
    for end in (2, 3):
        assert np.isfinite(weights_after(framework, make_soft(variant=variant, beta=beta), rows[:end])).all()


@pytest.mark.parametrize("variant", ["slope", "normalized", "loss_weighted", "ratio"])
@pytest.mark.parametrize(("total_weight", "total"), [("paper", 1.0), ("K", 3.0), ("one", 1.0)])
def test_the_total_weight(framework, make_soft, variant, total_weight, total):
    total = 3.0 if (variant, total_weight) == ("ratio", "paper") else total
    for steps in (1, 3):
        weights = weights_after(framework, make_soft(variant=variant, total_weight=total_weight), drawn(steps, 4))
        assert weights.sum() == pytest.approx(total, rel=1e-6)
