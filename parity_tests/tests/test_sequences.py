"""Drawn runs of the balancers whose weights follow from the losses: every step, in five ways, against the exact reference.

Of each balancer 52 sequences of 50 steps, drawn by Python's generator with the seed 20261201: two settings of 26 sequences each.
With ``count=`` and with ``share=`` half as many.
Aggregates, gradients, weights and state after each step, as bits.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.golden.comparison import differences
from loss_balancers.parity.golden.vectors import case_name, cases, values_of
from loss_balancers.parity.lanes.jax_modes import run_in_jax
from loss_balancers.parity.lanes.torch_modes import run_in_torch
from loss_balancers.spec import (
    Amounts,
    EMANormalizedLossBalancerSettings,
    Group,
    LogitsAndIntermediatesLossBalancerSettings,
    RandomLossBalancerSettings,
    ReLoBRaLoLossBalancerSettings,
    Settings,
    Vector,
    canonical_order,
    reference,
    result_format,
    schedules,
)
from loss_balancers.spec.golden.draws import draw

SEED = 20261201
SEQUENCES, STEPS = 26, 50
KEYWORDS = ("", "count", "share")
NAMES = ("student_loss", "MSELoss_1", "LogitsLoss_0")
RAMP = schedules.warmup_cosine(2.0, 10, 0.1, 45)
HARD = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 2.0**-126, 2.0**-130, 2.0**100, -1.0]

BALANCERS: dict[str, list[Settings]] = {
    "EMANormalizedLossBalancer": [
        EMANormalizedLossBalancerSettings(NAMES, {"MSELoss_1": RAMP}, beta=0.9, target="student_loss"),
        EMANormalizedLossBalancerSettings(NAMES, beta=0.5, eps=0.125, lagged=True),
    ],
    "LogitsAndIntermediatesLossBalancer": [
        LogitsAndIntermediatesLossBalancerSettings(RAMP),
        LogitsAndIntermediatesLossBalancerSettings(0.3, False, "MSELoss_1"),
    ],
    "RandomLossBalancer": [
        RandomLossBalancerSettings(NAMES),
        RandomLossBalancerSettings(NAMES, {"MSELoss_1": RAMP}, seed=2**63 - 1, total_weight="K"),
    ],
    "ReLoBRaLoLossBalancer": [
        ReLoBRaLoLossBalancerSettings(NAMES, {"MSELoss_1": RAMP}, beta=0.5, max_ratio=8.0),
        ReLoBRaLoLossBalancerSettings(NAMES, alpha=0.5, beta=0.9, temperature=0.25, lagged=True, seed=1, total_weight="one"),
    ],
}
WAYS: dict[str, Callable[[list[Group]], Iterator[Any]]] = {
    "torch-eager": lambda groups: run_in_torch("cpu", "eager", groups),
    "torch-compiled": lambda groups: run_in_torch("cpu", "compiled", groups),
    "jax-eager": lambda groups: run_in_jax("cpu", "eager", groups),
    "jax-jit": lambda groups: run_in_jax("cpu", "jit", groups),
    "jax-scan": lambda groups: run_in_jax("cpu", "scan", groups),
}


def _row(rng: random.Random, scales: dict[str, int]) -> dict[str, float]:
    """Positive losses of scales that are far apart; one in eight steps has a hard one among them."""
    row = {name: draw(rng, "f32", scale - 2, scale + 2) for name, scale in scales.items()}
    if rng.random() < 1 / 8:
        row[rng.choice(NAMES)] = rng.choice(HARD)
    return row


def _amounts(rng: random.Random, keyword: str) -> dict[str, float]:
    """Numbers of items or parts of a step; one in four times a loss is absent."""
    if not keyword:
        return {}
    amounts = {name: float(rng.randint(1, 4096)) / (1 if keyword == "count" else 4096) for name in NAMES}
    return {**amounts, rng.choice(NAMES): 0.0} if rng.random() < 1 / 4 else amounts


def _sequence(rng: random.Random, settings: Settings, keyword: str) -> tuple[Vector, ...]:
    scales = {name: rng.randint(-20, 20) for name in NAMES}
    rows = [_row(rng, scales) for _ in range(STEPS)]
    backs = [draw(rng, "f32", -8, 8) for _ in range(STEPS)]
    given = [_amounts(rng, keyword) for _ in range(STEPS)]
    order = canonical_order(NAMES)
    steps = [
        reference.Step(
            {name: ("f32", x) for name, x in row.items()},
            back,
            Amounts(tuple(amounts[name] for name in order), keyword == "share") if keyword else None,
        )
        for row, back, amounts in zip(rows, backs, given, strict=True)
    ]
    return tuple(
        Vector(row, back, a.aggregate, a.gradients, a.weights, a.state, amounts)
        for row, back, amounts, a in zip(rows, backs, given, reference.run(settings, steps), strict=True)
    )


def _group(index: int, settings: Settings, keyword: str) -> Group:
    rng = random.Random(SEED + index)
    formats: dict[str, str] = {name: "f32" for name in NAMES}  # noqa: C420
    sequences = tuple(_sequence(rng, settings, keyword) for _ in range(SEQUENCES // (2 if keyword else 1)))
    result = result_format(formats.values())
    return Group(f"drawn-{index}", settings.balancer, settings.as_json(), "f32", formats, result, {}, sequences, keyword)


@pytest.fixture(scope="module", params=[(balancer, keyword) for balancer in BALANCERS for keyword in KEYWORDS], ids="-".join)
def groups(request: pytest.FixtureRequest) -> list[Group]:
    """As many sequences as promised of one balancer."""
    balancer, keyword = request.param
    found = [_group(index, settings, keyword) for index, settings in enumerate(BALANCERS[balancer])]
    assert sum(len(group.sequences) for group in found) >= (26 if keyword else 50)
    assert STEPS >= 50
    return found


def _different(groups: list[Group], given: Iterator[Any]) -> tuple[list[str], int]:
    """Every value that is not the reference's, and how many were compared."""
    wanted = {(group.id, case.name): case for group in groups for case in cases([group])}
    found, compared = [], 0
    for index, results in enumerate(given):
        for group, result in zip(groups, results, strict=True):
            case = wanted.pop((group.id, case_name(group, index)))
            found += map(str, differences(case, values_of(result)))
            compared += len(case.values)
    assert not wanted
    return found, compared


@pytest.mark.parametrize("way", WAYS)
def test_no_bit_differs(way: str, groups: list[Group]) -> None:
    found, compared = _different(groups, WAYS[way](groups))
    assert compared >= sum(len(group.sequences) for group in groups) * STEPS * 10
    assert not found, f"{len(found)} of {compared}, first {found[0]}"


def test_hard_losses_are_among_them_and_are_left_out_of_the_state(groups: list[Group]) -> None:
    vectors = [vector for group in groups for vector in group.vectors]
    assert sum(x != x for vector in vectors for x in vector.losses.values()) >= 10
    if groups[0].balancer == "EMANormalizedLossBalancer":
        assert sum(sequence[-1].state["skipped"] for group in groups for sequence in group.sequences) >= 10
        assert all(abs(x) < float("inf") for vector in vectors for x in vector.state["total"])


def test_one_bit_in_one_step_is_found(groups: list[Group]) -> None:
    def off_by_one() -> Iterator[Any]:
        for index, results in enumerate(WAYS["torch-eager"](groups)):
            fmt, bits = results[0].weights["student_loss"]
            weights = results[0].weights | {"student_loss": (fmt, bits ^ 1)}
            yield [results[0]._replace(weights=weights), *results[1:]] if index == 7 else results

    found, _ = _different(groups, off_by_one())
    assert len(found) == 1
    assert found[0].startswith("drawn-0[0.7], the weight of student_loss")


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
