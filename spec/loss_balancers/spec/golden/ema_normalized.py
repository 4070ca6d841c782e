"""The sequences of `EMANormalizedLossBalancer`: each setting at its ends and between, from one loss to four."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.ema_normalized import EMANormalizedLossBalancerSettings
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY

SEED = 20_261_103


def ema_normalized_vectors() -> str:
    """The whole file as text."""
    student = [STUDENT_LOSS_KEY]
    weights = {"MSELoss_0": schedules.linear(0.0, 2.0, 4), STUDENT_LOSS_KEY: 0.75}

    def form(name: str, names: list[str], formats: list[str], keyword: str = "", **settings: Any) -> Form:
        return Form(name, EMANormalizedLossBalancerSettings(names, **settings), names, formats, keyword)

    return sequence_vectors(
        [
            form("target-3", [*indexed(2), *student], ["f32"], target="MSELoss_0", weights=weights, beta=0.9),
            form("lagged-2", [*indexed(1), *student], ["bf16"], target=STUDENT_LOSS_KEY, lagged=True, beta=0.7),
            form("current-2", [*indexed(1), *student], ["f64"], beta=0.0, eps=0.0, target=STUDENT_LOSS_KEY),
            form("all-1", indexed(1), ["f16"], beta=1.0, eps=0.25),
            form("one-4", [*indexed(3), *student], ["mixed-wide"]),
            form("count-3", [*indexed(2), *student], ["f32"], "count", target=STUDENT_LOSS_KEY, beta=0.75),
            form("share-2", [*indexed(1), *student], ["bf16"], "share", beta=0.5),
            form("bounded-2", [*indexed(1), *student], ["mixed-wide"], max_ratio=0.75, beta=0.5),
        ],
        SEED,
    )
