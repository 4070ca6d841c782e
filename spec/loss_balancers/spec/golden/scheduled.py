"""The sequences of `ScheduledLossBalancer`: each form of its weights, and each shape of a schedule."""

from __future__ import annotations

from loss_balancers.spec import schedules
from loss_balancers.spec.golden.draws import indexed
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import STUDENT_LOSS_KEY
from loss_balancers.spec.scheduled import ScheduledLossBalancerSettings

SEED = 20_261_101


def scheduled_vectors() -> str:
    """The whole file as text."""
    student = [STUDENT_LOSS_KEY]
    table = schedules.tabulate(lambda step: 1 / (step + 3), 5)
    ramp, down = schedules.linear(0.0, 0.6, 6), schedules.cosine(0.4, 0.0, 7)
    piecewise = schedules.piecewise_linear({1: 0.1, 2: 0.55, 6: 0.3})
    named = {"soft targets": schedules.linear(0.2, 0.7, 5), STUDENT_LOSS_KEY: schedules.linear(0.8, 0.3, 5)}

    def form(name: str, weight: object, names: list[str], *formats: str, keyword: str = "") -> Form:
        return Form(name, ScheduledLossBalancerSettings(weight, names), names, formats, keyword)

    return sequence_vectors(
        [
            form("warmup-1-alone", schedules.warmup_cosine(0.9, 2, 0.1, 6), indexed(1), "bf16"),
            form("sequence-2", [down, ramp], [*indexed(2), *student], "f32"),
            form("sequence-2-alone", [table, schedules.warmup_constant(0.5, 3)], indexed(2), "f16"),
            form("mapping-2", {"b": piecewise, "a": schedules.warmup_linear(0.4, 3, 0.1, 6)}, ["b", "a", *student], "mixed"),
            form("count-2", ramp, [*indexed(2), *student], "f32", keyword="count"),
            form("mapping-student", named, ["soft targets", *student], "f64"),
        ],
        SEED,
    )
