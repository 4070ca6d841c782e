"""The sequences of `SoftAdaptLossBalancer`: each variant, slopes over one step to five, from two losses to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.soft_adapt import SoftAdaptLossBalancerSettings

SEED = 20_261_127


def soft_adapt_vectors() -> str:
    """The whole file as text."""

    def form(name: str, count: int, formats: list[str], keyword: str = "", **settings: Any) -> Form:
        names = [*indexed(count), STUDENT_LOSS_KEY]
        return Form(name, SoftAdaptLossBalancerSettings(names, **settings), names, formats, keyword)

    weights = {"MSELoss_0": schedules.linear(0.0, 2.0, 4), STUDENT_LOSS_KEY: 0.75}
    return sequence_vectors(
        [
            form("slope-2", 2, ["f32"]),
            form("normalized-2", 2, ["f32"], variant="normalized", order=3, weights=weights, beta=1.5),
            form("loss-weighted-1", 1, ["bf16"], variant="loss_weighted", order=2, lagged=True),
            form("ratio-1", 1, ["f64"], variant="ratio"),
            form("ratio-2", 2, ["f16"], variant="ratio", lagged=True, total_weight="one", max_ratio=3.0),
            form("slope-3", 3, ["mixed-wide"], order=5, beta=-0.3, total_weight="K"),
            form("count-2", 2, ["f32"], "count", variant="loss_weighted", beta=0.01),
            form("share-1", 1, ["bf16"], "share", variant="normalized"),
        ],
        SEED,
    )
