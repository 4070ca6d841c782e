"""The sequences of `ReLoBRaLoLossBalancer`: each setting at its ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.relobralo import ReLoBRaLoLossBalancerSettings

SEED = 86_216_307


def relobralo_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, ReLoBRaLoLossBalancerSettings(names, **settings), names, formats, keyword)

    weights = {"MSELoss_0": schedules.linear(0.0, 2.0, 4), STUDENT_LOSS_KEY: 0.75}
    return sequence_vectors(
        [
            form("half-2", 2, ["f32"], beta=0.5),
            form("weights-1", 1, ["bf16"], weights=weights, alpha=0.5, beta=0.25, temperature=4.0, seed=1),
            form("back-1", 1, ["f64"], alpha=1.0, beta=0.0, max_ratio=3.0, total_weight="one"),
            form("last-2", 2, ["f16"], alpha=0.0, beta=1.0, temperature=2.0**-100),
            form("lagged-3", 3, ["mixed-wide"], alpha=0.7, beta=0.5, lagged=True, seed=2),
            form("count-2", 2, ["f32"], "count", beta=0.5, seed=3),
            form("share-1", 1, ["bf16"], "share", beta=0.5, seed=4),
        ],
        SEED,
    )
