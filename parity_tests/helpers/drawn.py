"""Drawn runs of every balancer whose weights follow from the losses: every step, in five ways, against the exact reference.

Both `test_sequences.py` and `make drawn-runs` draw here: the test a few sequences, the program as many as are promised. The
first sequences are the same in both. Aggregates, gradients, weights and state are compared after each step, as bits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from loss_balancers.parity.golden.comparison import differences
from loss_balancers.parity.golden.vectors import case_name, cases, values_of
from loss_balancers.spec import Amounts, Group, Settings, Vector, reference, registry, result_format, round_weight
from loss_balancers.spec.golden.draws import draw, later
from loss_balancers.spec.keys import EXAMPLE_NAMES

SEED = 20261201
STEPS = 50
#: So many sequences of each balancer, shared out among its examples; with ``count=`` and with ``share=`` half as many.
SEQUENCES = 52
KEYWORDS = ("", "count", "share")
#: The order that the caller's dict has: not the canonical one.
NAMES = EXAMPLE_NAMES[::-1]
HARD = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 2.0**-126, 2.0**-130, 2.0**100, -1.0]

#: The framework and the mode of its lanes.
WAYS = ("torch-eager", "torch-compiled", "jax-eager", "jax-jit", "jax-scan")


def follows_losses(settings: Any) -> bool:
    """Whether the weights follow from losses, those of the call or of earlier steps; or change although there is no schedule."""
    unscheduled = settings.can_change and (settings.table is None or len(settings.table) == 1)
    return unscheduled or registry.observes(settings) or (settings.weights_are != "constants" and settings.sees_losses)


#: The balancers that are run: each with the examples of the registry whose weights follow from losses.
BALANCERS: dict[str, dict[str, Settings]] = {
    balancer: chosen
    for balancer, settings in registry.SETTINGS.items()
    if (chosen := {name: example for name, example in settings.examples().items() if follows_losses(example)})
}


def shared_out(sequences: int, balancer: str, keyword: str) -> int:
    """How many sequences each example gets, of so many of the balancer; with a keyword of half as many."""
    return -(-sequences // (len(BALANCERS[balancer]) * (2 if keyword else 1)))


def groups(balancer: str, keyword: str, sequences: int) -> list[Group]:
    """So many sequences of each example of a balancer: a group for each example."""
    return [_group(name, settings, keyword, sequences) for name, settings in BALANCERS[balancer].items()]


def beginning(of: Sequence[Group], sequences: int, steps: int = STEPS) -> list[Group]:
    """The first steps of the first sequences of each group."""
    return [group._replace(sequences=tuple(sequence[:steps] for sequence in group.sequences[:sequences])) for group in of]


def _group(name: str, settings: Settings, keyword: str, count: int) -> Group:
    # Seeded by a text: a new balancer changes no other's draws.
    rng = random.Random(f"{SEED} {name} {keyword}")
    formats: dict[str, str] = {loss: "f32" for loss in NAMES}  # noqa: C420
    sequences = tuple(_sequence(rng, settings, keyword) for _ in range(count))
    result = result_format(formats.values())
    of = f"{name}-{keyword}" if keyword else name
    return Group(of, settings.balancer, settings.as_json(), "f32", formats, result, {}, sequences, keyword)


def _sequence(rng: random.Random, settings: Settings, keyword: str) -> tuple[Vector, ...]:
    scales = {name: rng.randint(-20, 20) for name in NAMES}
    rows = [_row(rng, scales) for _ in range(STEPS)]
    backs = [draw(rng, "f32", -8, 8) for _ in range(STEPS)]
    given = [_amounts(rng, keyword) for _ in range(STEPS)]
    learned = _learned(rng, settings)
    afters = [_after(rng, row) if settings.updates else {} for row in rows]
    columns = (given, learned, afters)
    steps = [
        reference.Step(
            {name: ("f32", x) for name, x in row.items()},
            back,
            Amounts(tuple(amounts[name] for name in EXAMPLE_NAMES), keyword == "share") if keyword else None,
            parameter,
            {name: ("f32", x) for name, x in after.items()} or None,
        )
        for row, back, amounts, parameter, after in zip(rows, backs, *columns, strict=True)
    ]
    return tuple(
        Vector(row, back, a.aggregate, a.gradients, a.weights, a.state, amounts, parameter, dict(a.learned), after)
        for row, back, amounts, parameter, after, a in zip(rows, backs, *columns, reference.run(settings, steps), strict=True)
    )


def _learned(rng: random.Random, settings: Settings) -> list[dict[str, tuple[float, ...]]]:
    """A parameter at each step: it walks from its start, at times far, and one in sixteen numbers is a hard one."""
    steps: list[dict[str, tuple[float, ...]]] = [{} for _ in range(STEPS)]
    for entry in settings.learned:
        values = list(entry.start)
        for step in steps:
            step[entry.name] = tuple(rng.choice(HARD) if rng.random() < 1 / 16 else x for x in values)
            values = [round_weight(x + draw(rng, "f32", -6, 1) * rng.choice((-1, 1)), "f32") for x in values]
    return steps


def _after(rng: random.Random, row: dict[str, float]) -> dict[str, float]:
    """The losses after the optimizer's step; one in eight steps has a hard one among them."""
    after = later(rng, row, dict.fromkeys(row, "f32"))
    return {**after, rng.choice(NAMES): rng.choice(HARD)} if rng.random() < 1 / 8 else after


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


def run(way: str, of: Sequence[Group]) -> Iterator[Any]:
    """What a way gives for each step of each sequence: a result for each group."""
    # Imported here, because the lanes take a second, and the list of balancers is read without them.
    framework, mode = way.split("-")
    if framework == "torch":
        from loss_balancers.parity.lanes.torch_modes import run_in_torch

        return run_in_torch("cpu", mode, of)
    from loss_balancers.parity.lanes.jax_modes import run_in_jax

    return run_in_jax("cpu", mode, of)


class Compared(NamedTuple):
    """How many results were compared with the reference's, and those that differ, in words."""

    results: int
    different: list[str]


def compared(of: Sequence[Group], given: Iterator[Any]) -> Compared:
    """What a way gives, against the exact reference. Every step of every sequence must have come."""
    wanted = {(group.id, case.name): case for group in of for case in cases([group])}
    different, results = [], 0
    for index, step in enumerate(given):
        for group, result in zip(of, step, strict=True):
            case = wanted.pop((group.id, case_name(group, index)))
            different += map(str, differences(case, values_of(result)))
            results += len(case.values)
    if wanted:
        raise RuntimeError(f"{len(wanted)} steps are missing, such as {next(iter(wanted))}.")
    return Compared(results, different)
