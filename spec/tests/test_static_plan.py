"""Which weight goes to which loss."""

import re

import pytest

from loss_balancers.spec import StaticLossBalancerSettings, canonical_order, static_plan

STUDENT = "student_loss"


def plan_of(kd_loss_weight, *names):
    return static_plan(StaticLossBalancerSettings(kd_loss_weight), canonical_order(names))


@pytest.mark.parametrize(
    ("kd_loss_weight", "names", "weights"),
    [
        pytest.param(0.25, [STUDENT, "A"], {"A": 0.25, STUDENT: 0.75}, id="number"),
        pytest.param(0.25, ["B", STUDENT, "A"], {"A": 0.25, "B": 0.25, STUDENT: 0.75}, id="number-shared"),
        pytest.param([0.5], ["no idx", STUDENT], {"no idx": 0.5, STUDENT: 0.5}, id="one-weight-needs-no-idx"),
        pytest.param([0.1, 0.2], ["M_10", "M_9"], {"M_9": 0.1, "M_10": 0.2}, id="sequence-by-idx"),
        pytest.param({"M_10": 0.5, "M_9": 0.25}, ["M_9", "M_10"], {"M_9": 0.25, "M_10": 0.5}, id="mapping"),
        pytest.param({"x": 0.5, STUDENT: 0.5}, [STUDENT, "x"], {"x": 0.5, STUDENT: 0.5}, id="mapping-with-student"),
    ],
)
def test_weights(kd_loss_weight, names, weights):
    plan = plan_of(kd_loss_weight, *names)
    assert dict(zip(plan.names, plan.weights, strict=True)) == weights
    assert list(plan.names) == list(weights)


def test_only_a_shared_weight_is_applied_to_the_sum():
    assert plan_of(0.25, "A", "B", STUDENT).factors == (0.25, 0.75)
    assert plan_of(0.5, "A", "B").factors == (0.5,)
    assert plan_of(0.25, "A", STUDENT).factors == (0.25, 0.75)  # one loss: nothing to add first
    assert plan_of([0.5, 0.25], "A_0", "A_1").factors == (0.5, 0.25)
    assert plan_of({"A": 0.5, "B": 0.25}, "A", "B").factors == (0.5, 0.25)


@pytest.mark.parametrize(
    ("kd_loss_weight", "names", "dropped"),
    [
        pytest.param(0.25, ["A"], 0.75, id="dropped"),
        pytest.param(0.25, ["A", STUDENT], 0.0, id="there"),
        pytest.param(1.0, ["A"], 0.0, id="weight-zero"),
        pytest.param({"A": 0.25, STUDENT: 0.75}, ["A"], 0.75, id="named"),
    ],
)
def test_dropped_weight(kd_loss_weight, names, dropped):
    assert plan_of(kd_loss_weight, *names).dropped == dropped


@pytest.mark.parametrize(
    ("kd_loss_weight", "names", "words"),
    [
        pytest.param(
            [0.5, 0.25], ["A_0"], ["one weight per KD loss", "2 weights [0.5, 0.25]", "1 KD losses ['A_0']"], id="too-few"
        ),
        pytest.param(
            [0.5],
            ["A_1", "A_0", STUDENT],
            ["one weight per KD loss", "1 weights [0.5]", "2 KD losses ['A_0', 'A_1']"],
            id="too-many",
        ),
        pytest.param({"A": 0.5}, ["B"], ["name the KD losses exactly", "names ['A']", "KD losses ['B']"], id="other-name"),
        pytest.param({"A": 0.5, "B": 0.1}, ["A"], ["names ['A', 'B']", "KD losses ['A']"], id="name-missing"),
        pytest.param({"A": 0.5}, ["A", "B"], ["names ['A']", "KD losses ['A', 'B']"], id="name-unknown"),
        pytest.param([0.5, 0.25], ["A", "B"], ["distinct `_{idx}`", "['A', 'B']", "mapping from loss name"], id="no-idx"),
        pytest.param([0.5, 0.25], ["A_1", "B_01"], ["distinct `_{idx}`", "['A_1', 'B_01']"], id="same-idx"),
        pytest.param([0.5, 0.25], ["A_1", "B"], ["distinct `_{idx}`", "['A_1', 'B']"], id="one-without-idx"),
    ],
)
def test_errors(kd_loss_weight, names, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        plan_of(kd_loss_weight, *names)
    for word in words:
        assert word in str(caught.value)
