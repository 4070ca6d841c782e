"""Every place that takes a number, in either framework."""

from collections.abc import Callable
from typing import Any

from loss_balancers.spec import schedules

NAMES = ("student_loss", "MSELoss_0")

#: From a framework (`framework_torch` or `framework_jax`) and the number to something that two equal numbers make equal.
PLACES: dict[str, Callable[[Any, Any], Any]] = {
    "static": lambda f, w: f.balancers.StaticLossBalancer(w)._settings,
    "static-list": lambda f, w: f.balancers.StaticLossBalancer([w, 0.5])._settings,
    "static-mapping": lambda f, w: f.balancers.StaticLossBalancer({"A": w})._settings,
    "scheduled": lambda f, w: f.balancers.ScheduledLossBalancer(w, NAMES)._settings,
    "scheduled-list": lambda f, w: f.balancers.ScheduledLossBalancer([w], NAMES)._settings,
    "scheduled-mapping": lambda f, w: f.balancers.ScheduledLossBalancer({"A": w})._settings,
    "weighted-sum": lambda f, w: f.balancers.WeightedSumLossBalancer({"A": w})._settings,
    "weighted-sum-student": lambda f, w: f.balancers.WeightedSumLossBalancer({"A": 1.0}, w)._settings,
    "ema-weight": lambda f, w: f.balancers.EMANormalizedLossBalancer(NAMES, {"MSELoss_0": w})._settings,
    "ema-beta": lambda f, w: f.balancers.EMANormalizedLossBalancer(NAMES, beta=w)._settings,
    "ema-eps": lambda f, w: f.balancers.EMANormalizedLossBalancer(NAMES, eps=w)._settings,
    "logits": lambda f, w: f.balancers.LogitsAndIntermediatesLossBalancer(w)._settings,
    "functional": lambda f, w: f.balancers.functional.weighted_sum([f.array(1.0)] * 2, [w, 1.0]).item(),
    "constant": lambda f, w: schedules.constant(w),
    "linear": lambda f, w: schedules.linear(0.0, w, 4),
    "tabulate": lambda f, w: schedules.tabulate(lambda step: w, 2),
}
