"""The sequences of `FAMOLossBalancer`: each setting at its ends and between, from two losses to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec.famo import FAMOLossBalancerSettings
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY

SEED = 23_060_379


def famo_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, FAMOLossBalancerSettings(names, **settings), names, formats, keyword)

    return sequence_vectors(
        [
            form("plain-2", 2, ["f32"]),
            form("least-2", 2, ["f32"], lr=1.0, weight_decay=1.0, min_losses={"MSELoss_0": -1.0, STUDENT_LOSS_KEY: 0.1}, eps=1e-3),
            form("still-1", 1, ["f16"], lr=0.0, eps=0.0),
            form("fast-1", 1, ["bf16"], lr=0.5, weight_decay=0.0, total_weight="K"),
            form("three-3", 3, ["mixed"], lr=0.1, min_losses={"MSELoss_0": -(2.0**100)}),
            form("narrow-2", 2, ["mixed-narrow"], lr=0.3, total_weight="one"),
            form("count-2", 2, ["f32"], "count", lr=0.25),
            form("share-2", 2, ["f32"], "share", lr=0.25, min_losses={"MSELoss_0": -0.5, "KLDivLoss_1": 0.3}),
            form("share-1", 1, ["bf16"], "share", lr=0.5, total_weight="K"),
        ],
        SEED,
    )
