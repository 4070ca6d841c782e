"""An exported state: one that does not fit changes nothing, and what is exported is a copy."""

import copy

import pytest
from with_state import train


def test_an_exported_state_that_does_not_fit_changes_nothing(framework, make, draw, values, assert_same_state):
    balancer = train(make(), draw)
    before = values(balancer)
    good = train(make(), draw, steps=5).export_state()
    state = good["state"]
    for bad, kind in [
        (None, TypeError),
        ({**good, "schema": "loss-balancers-state/0"}, ValueError),
        (framework.balancers.EMANormalizedLossBalancer(("Logits_0", "student_loss")).export_state(), ValueError),
        ({**good, "state": {**state, "steps": state["steps"] - 99}}, ValueError),
        ({**good, "state": {**state, "pending": state["pending"].astype("float64")}}, ValueError),
        ({**good, "state": {**state, "more": state["steps"]}}, ValueError),
    ]:
        with pytest.raises(kind):
            balancer.load_state(bad)
        assert_same_state(balancer, before)
    balancer.load_state(good)
    assert_same_state(balancer, state)


def test_an_exported_state_is_a_copy(make, draw, assert_same_state):
    balancer = train(make(), draw)
    exported = balancer.export_state()
    before = copy.deepcopy(exported["state"])
    train(balancer, draw)
    balancer.load_state(exported)
    train(balancer, draw)
    assert_same_state(exported["state"], before)
    balancer.load_state(exported)
    for array in exported["state"].values():
        array[...] = 7
    assert_same_state(balancer, before)
