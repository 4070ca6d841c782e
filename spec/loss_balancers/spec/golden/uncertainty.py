"""The sequences of `UncertaintyLossBalancer`: each setting, and parameters near their start and far from it."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.uncertainty import UncertaintyLossBalancerSettings

SEED = 44_171_902


def uncertainty_vectors() -> str:
    """The whole file as text."""

    def form(group: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(group, UncertaintyLossBalancerSettings(names, **settings), names, formats, keyword)

    return sequence_vectors(
        [
            form("one", 1, ["f32"], total_weight="K"),
            form("two", 2, ["bf16"], initial=-0.5),
            form("three", 3, ["f32", "mixed"]),
            form("initial", 3, ["f16"], initial={"MSELoss_0": 2.5, "KLDivLoss_1": -1.0}, total_weight="one"),
            form("twelve", 12, ["mixed-narrow"], total_weight="one"),
            form("regularized", 2, ["f32", "mixed"], form="regularized"),
            form("regularized-initial", 3, ["bf16"], form="regularized", initial={"MSELoss_0": 0.375}, total_weight="K"),
            form("count", 2, ["f32"], "count", total_weight="K"),
            form("count-regularized", 2, ["f32"], "count", form="regularized"),
            form("share", 2, ["bf16"], "share", initial=0.25),
        ],
        SEED,
    )
