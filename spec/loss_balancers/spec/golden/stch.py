"""The sequences of `STCHLossBalancer`: each setting at its ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.stch import STCHLossBalancerSettings

SEED = 10_084_588


def stch_vectors() -> str:
    """The whole file as text."""

    def form(group: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(group, STCHLossBalancerSettings(names, **settings), names, formats, keyword)

    return sequence_vectors(
        [
            form("one", 1, ["f32"], total_weight="K"),
            form("two", 2, ["bf16"], mu=0.1),
            form("three", 3, ["f32", "mixed"]),
            form("reference", 3, ["f16"], mu=0.3, weights={"MSELoss_0": 2.0}, reference={"MSELoss_0": 0.5, "KLDivLoss_1": -1.0}),
            form("twelve", 12, ["mixed-narrow"], mu=2.0, total_weight="one"),
            form("log", 2, ["f32"], mu=0.25, form="log", reference={"MSELoss_0": 3.0}, total_weight="one"),
            form("log-narrow", 2, ["bf16"], form="log"),
            form("count", 2, ["f32"], "count", mu=0.5, reference={"MSELoss_0": 0.25}),
            form("count-log", 2, ["f32"], "count", mu=0.5, form="log"),
            form("share", 2, ["bf16"], "share"),
        ],
        SEED,
    )
