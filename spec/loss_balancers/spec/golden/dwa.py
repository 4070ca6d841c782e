"""The sequences of `DWALossBalancer`: each setting at its ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.dwa import DWALossBalancerSettings
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY

SEED = 31_374_609


def dwa_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, DWALossBalancerSettings(names, **settings), names, formats, keyword)

    weights = {"MSELoss_0": schedules.linear(0.0, 2.0, 4), STUDENT_LOSS_KEY: 0.75}
    return sequence_vectors(
        [
            form("each-2", 2, ["f32"], epoch_steps=1),
            form("weights-1", 1, ["bf16"], weights=weights, epoch_steps=2, temperature=0.25),
            form("one-1", 1, ["f64"], epoch_steps=1, total_weight="one", max_ratio=3.0),
            form("cold-2", 2, ["f16"], epoch_steps=1, temperature=2.0**-100),
            form("never-3", 3, ["mixed-wide"]),
            form("count-2", 2, ["f32"], "count", epoch_steps=2),
            form("share-1", 1, ["bf16"], "share", epoch_steps=1),
        ],
        SEED,
    )
