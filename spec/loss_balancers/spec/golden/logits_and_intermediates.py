"""The sequences of `LogitsAndIntermediatesLossBalancer`: with each role and without, its scale fixed and changing."""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.logits_and_intermediates import LogitsAndIntermediatesLossBalancerSettings

SEED = 20_261_104


def logits_and_intermediates_vectors() -> str:
    """The whole file as text."""
    student, logits = [STUDENT_LOSS_KEY], "LogitsKLLoss_0"

    def form(name: str, names: list[str], formats: list[str], keyword: str = "", **settings: Any) -> Form:
        return Form(name, LogitsAndIntermediatesLossBalancerSettings(**settings), names, formats, keyword)

    ramp = schedules.linear(0.0, 2.5, 5)
    return sequence_vectors(
        [
            form("two", [logits, "MSE_1", "MSE_2", *student], ["f32"], kd_loss_scale=0.3),
            form("none", [logits, *student], ["bf16"]),
            form("skip", [logits, "MSE_1", *student], ["f16"], skip_original_loss=True),
            form("skip-alone", ["hidden", "soft", "attention"], ["f64"], skip_original_loss=True, reference="soft"),
            form("scheduled", ["MSE_1", logits, "MSE_2", *student], ["mixed-wide"], kd_loss_scale=ramp),
            form("count", [logits, "MSE_1", "MSE_2", *student], ["f64"], "count"),
            form("share", [logits, "MSE_1", "MSE_2", *student], ["f32"], "share"),
        ],
        SEED,
    )
