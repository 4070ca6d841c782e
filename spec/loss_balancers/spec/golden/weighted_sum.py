"""The sequences of `WeightedSumLossBalancer`: weights above 1, zero and changing ones, with a student loss and without."""

from __future__ import annotations

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.scheduled import WeightedSumLossBalancerSettings

SEED = 20_261_102


def weighted_sum_vectors() -> str:
    """The whole file as text."""
    kl, mse = schedules.linear(0.5, 3.0, 6), schedules.warmup_constant(12.5, 3)

    def form(name: str, weights: dict[str, object], student: object, *formats: str, keyword: str = "") -> Form:
        names = [*weights, *([] if student is None else [STUDENT_LOSS_KEY])]
        return Form(name, WeightedSumLossBalancerSettings(weights, student), names, formats, keyword)

    hidden = schedules.cosine(1e-3, 1e3, 7)
    five = {"KL_0": kl, "MSE_1": mse, "MSE_2": 0.0, "Hidden_3": hidden, "Attention_4": 2**-20}
    return sequence_vectors(
        [
            form("two", {"MSE_1": mse, "KL_0": kl}, 1.25, "bf16", "f64"),
            form("five", five, schedules.tabulate(lambda step: 1 / (step + 1), 6), "f32"),
            form("three", {"KL_0": kl, "Attention_1": 2**-20, "Hidden_2": hidden}, 0.75, "mixed-wide"),
            form("one-alone", {"KL": kl}, None, "f16"),
            form("share-two", {"MSE_1": mse, "KL_0": kl}, 0.5, "f16", keyword="share"),
        ],
        SEED,
    )
