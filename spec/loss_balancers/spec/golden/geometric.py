"""The sequences of `GeometricLossBalancer`: each setting at its ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec.geometric import GeometricLossBalancerSettings
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY

SEED = 33_497_936


def geometric_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, GeometricLossBalancerSettings(names, **settings), names, formats, keyword)

    return sequence_vectors(
        [
            form("one", 1, ["f32"], total_weight="K"),
            form("two", 2, ["bf16"], weights={STUDENT_LOSS_KEY: 0.3}),
            form("three", 3, ["f32", "mixed"]),
            form("three-weights", 3, ["f16"], weights={"MSELoss_0": 7.0, "KLDivLoss_1": 0.1}, total_weight="K"),
            form("twelve", 12, ["mixed-narrow"]),
            form("count", 2, ["f32"], "count", weights={"MSELoss_0": 0.7}),
            form("share", 2, ["bf16"], "share"),
        ],
        SEED,
    )
