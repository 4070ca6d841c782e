"""The sequences of `RandomLossBalancer`: seeds at their ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.random import RandomLossBalancerSettings
from loss_balancers.spec.random_bits import MOST_SEED

SEED = 73_021_397


def random_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, RandomLossBalancerSettings(names, **settings), names, formats, keyword)

    weights = {"MSELoss_0": schedules.linear(0.0, 2.0, 4), STUDENT_LOSS_KEY: 0.75}
    return sequence_vectors(
        [
            form("zero-2", 2, ["f32"]),
            form("weights-1", 1, ["bf16"], weights=weights, seed=1 << 32),
            form("one-1", 1, ["f16"], seed=0xFFFFFFFF, total_weight="one"),
            form("most-3", 3, ["mixed-wide"], seed=MOST_SEED, total_weight="K"),
            form("count-2", 2, ["f64"], "count", seed=20261201),
        ],
        SEED,
    )
