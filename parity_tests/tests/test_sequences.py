"""Drawn runs of every balancer whose weights follow from the losses: a sample of those of `make drawn-runs`.

Of each example a sequence of 50 steps without a keyword, with ``count=`` and with ``share=``; where a step or a
compilation is slow, one of the three, in turn. Aggregates, gradients, weights and state after each step, as bits.
"""

import math
from collections.abc import Iterator
from typing import Any

import drawn
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import EMANormalizedLossBalancerSettings, Group, reference, registry

NAMES = ("student_loss", "MSELoss_1", "LogitsLoss_0")
SEQUENCES = 1


@pytest.fixture(scope="module", params=drawn.BALANCERS)
def groups(request: pytest.FixtureRequest) -> list[Group]:
    """Each example of a balancer with each keyword."""
    return sequences(request.param, SEQUENCES)


def sequences(balancer: str, count: int) -> list[Group]:
    """So many of each example with each keyword."""
    return [group for keyword in drawn.KEYWORDS for group in drawn.groups(balancer, keyword, count)]


def sample(way: str, groups: list[Group]) -> list[Group]:
    """What is run in a way: JAX's eager mode calls XLA for each operation, Inductor and a scan take seconds for each group."""
    if way in ("torch-eager", "jax-jit"):
        return groups
    chosen = in_turn(groups, drawn.WAYS.index(way))
    return drawn.beginning(chosen, 1, 20) if way == "jax-eager" else chosen


def in_turn(groups: list[Group], turn: int) -> list[Group]:
    """One group of each example: without a keyword, with ``count`` and with ``share`` in turn, the next balancer one further."""
    examples = len(groups) // len(drawn.KEYWORDS)
    place = list(drawn.BALANCERS).index(groups[0].balancer) + turn
    return [groups[(i + place) % len(drawn.KEYWORDS) * examples + i] for i in range(examples)]


def test_balancers_whose_weights_follow_from_losses_are_run() -> None:
    assert set(drawn.BALANCERS) >= {"EMANormalizedLossBalancer", "LogitsAndIntermediatesLossBalancer"}
    assert {"StaticLossBalancer", "ScheduledLossBalancer", "WeightedSumLossBalancer"}.isdisjoint(drawn.BALANCERS)
    assert all(registry.observes(settings) <= drawn.follows_losses(settings) for settings in registry.examples().values())


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("way", drawn.WAYS)
def test_no_bit_differs(way: str, groups: list[Group]) -> None:
    chosen = sample(way, groups)
    assert {str(group.settings) for group in chosen} == {str(group.settings) for group in groups}
    found = drawn.compared(chosen, drawn.run(way, chosen))
    vectors = [vector for group in chosen for vector in group.vectors]
    assert found.results >= sum(1 + len(each.gradients) + len(each.weights) + len(each.state) for each in vectors)
    assert not found.different, f"{len(found.different)} of {found.results}, first {found.different[0]}"


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("balancer", drawn.BALANCERS)
def test_hard_losses_are_among_them_and_are_left_out_of_the_state(balancer: str) -> None:
    groups = sequences(balancer, 3)
    vectors = [vector for group in groups for vector in group.vectors]
    losses = [x for vector in vectors for x in vector.losses.values()]
    assert {repr(x) for x in drawn.HARD} <= {repr(x) for x in losses}
    assert sum(not math.isfinite(x) for x in losses) >= 10
    observing = [group for group in groups if registry.observes(registry.SETTINGS[group.balancer].from_json(group.settings))]
    for group in observing:
        assert sum(sequence[-1].state["skipped"] for sequence in group.sequences) > 0
        numbers = [x for vector in group.vectors for value in vector.state.values() for x in np.ravel(value)]
        assert all(map(math.isfinite, numbers))


@pytest.mark.in_turn(3)
def test_one_bit_in_one_step_is_found(groups: list[Group]) -> None:
    few = drawn.beginning(groups, 1, 20)
    # A NaN with another bit is as good as before.
    at = next(i for i, vector in enumerate(few[0].vectors) if i >= 7 and math.isfinite(vector.weights["student_loss"]))

    def off_by_one() -> Iterator[Any]:
        for index, results in enumerate(drawn.run("torch-eager", few)):
            fmt, bits = results[0].weights["student_loss"]
            weights = results[0].weights | {"student_loss": (fmt, bits ^ 1)}
            yield [results[0]._replace(weights=weights), *results[1:]] if index == at else results

    found = drawn.compared(few, off_by_one())
    assert len(found.different) == 1
    assert found.different[0].startswith(f"{few[0].id}[0.{at}], the weight of student_loss")


def test_a_step_that_is_missing_is_found(groups: list[Group]) -> None:
    few = drawn.beginning(groups, 1, 2)
    with pytest.raises(RuntimeError, match=r"are missing, such as .*0\.1"):
        drawn.compared(few, iter(list(drawn.run("torch-eager", few))[:1]))


def test_a_running_sum_that_would_overflow_stays_as_it_was() -> None:
    """In the exact reference and in both twins: finite losses too may not bring an infinity into the state (spec M2)."""
    settings = EMANormalizedLossBalancerSettings(NAMES, beta=1.0)
    twins = [part.EMANormalizedLossBalancer(NAMES, beta=1.0) for part in (loss_balancers.torch, loss_balancers.jax)]
    huge = dict.fromkeys(NAMES, 3e38)
    losses = {name: ("f32", float(np.float32(value))) for name, value in huge.items()}
    answers = list(reference.run(settings, [(losses, 1.0)] * 3))
    for answer in answers:
        twins[0]({name: torch.tensor(value) for name, value in huge.items()})
        twins[1]({name: jnp.float32(value) for name, value in huge.items()})
        for twin in twins:
            twin.step()
            state = twin.export_state()["state"]
            for entry in ("total", "fix"):
                assert_same_bits(state[entry], np.array(answer.state[entry], np.float32))
    assert answers[-1].state["total"] == answers[0].state["total"]
    assert answers[-1].state["fix"] == (1.0,) * len(NAMES)
