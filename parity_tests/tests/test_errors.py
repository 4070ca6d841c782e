"""The error table: the same class with the same words from both twins, and they say what to do."""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec import schedules

TWINS = {
    "torch": (loss_balancers.torch, lambda value, dtype="float32": torch.tensor(value, dtype=getattr(torch, dtype))),
    "jax": (loss_balancers.jax, lambda value, dtype="float32": jnp.asarray(value, dtype)),
}

N = ("student_loss", "MSELoss_0", "KLDivLoss_1")


def ema(module: Any, **settings: Any) -> Any:
    return module.EMANormalizedLossBalancer(N, **settings)


#: What is done wrong, the class, and words that the message must have. `m` is the twin, `a` makes an array of it.
TABLE: dict[str, tuple[Callable[[Any, Any], Any], type[Exception], str]] = {
    # construction
    "weight-above-1": (lambda m, a: m.StaticLossBalancer(1.5), ValueError, "`kd_loss_weight` must be finite and in [0, 1]. Received 1.5."),
    "weight-negative": (lambda m, a: m.StaticLossBalancer([0.5, -0.1]), ValueError, "`kd_loss_weight[1]` must be finite and in [0, 1]"),
    "weight-nan": (lambda m, a: m.StaticLossBalancer({"KL_0": math.nan}), ValueError, "`kd_loss_weight['KL_0']` must be finite"),
    "weight-inf": (lambda m, a: m.StaticLossBalancer(math.inf), ValueError, "must be finite and in [0, 1]. Received inf"),
    "weight-huge-int": (lambda m, a: m.StaticLossBalancer(10**400), ValueError, f"must be a number that float64 holds, at most 1.7976931348623157e+308 in magnitude. Received {10**400}"),
    "weight-bool": (lambda m, a: m.StaticLossBalancer(True), TypeError, "Received True of type bool"),
    "weight-string": (lambda m, a: m.StaticLossBalancer("0.5"), TypeError, "Received '0.5' of type str"),
    "weight-none": (lambda m, a: m.StaticLossBalancer(None), TypeError, "Received None of type NoneType"),
    "weight-array": (lambda m, a: m.StaticLossBalancer(np.array([[0.5]])), TypeError, "an array must have one dimension"),
    "weight-above-1-array": (lambda m, a: m.StaticLossBalancer(np.array([0.5, 1.5])), ValueError, "`kd_loss_weight[1]` must be finite and in [0, 1]"),
    "weight-8": (lambda m, a: m.StaticLossBalancer(8.0), ValueError, "in [0, 1]. Received 8.0. Lower the weight, or use `WeightedSumLossBalancer`"),
    "weight-yaml": (lambda m, a: m.StaticLossBalancer("1e-3"), TypeError, "Received '1e-3' of type str. Pass `float('1e-3')`, a number and not text."),
    "weight-in-list-string": (lambda m, a: m.StaticLossBalancer([0.1, "x"]), TypeError, "`kd_loss_weight[1]` must be a real number"),
    "weights-sum": (lambda m, a: m.StaticLossBalancer([0.6, 0.6]), ValueError, "must sum to at most 1. Received [0.6, 0.6] (sum 1.2)"),
    "weights-empty": (lambda m, a: m.StaticLossBalancer([]), ValueError, "at least one KD loss. Received []"),
    "weights-empty-mapping": (lambda m, a: m.StaticLossBalancer({}), ValueError, "at least one KD loss"),
    "weights-only-student": (lambda m, a: m.StaticLossBalancer({"student_loss": 1.0}), ValueError, "at least one KD loss"),
    "weights-student-sum": (
        lambda m, a: m.StaticLossBalancer({"KL_0": 0.5, "student_loss": 0.4}), ValueError, "must sum to 1 when it names `student_loss`",
    ),
    "weights-key": (lambda m, a: m.StaticLossBalancer({0: 0.5}), TypeError, "strings as keys"),
    "reduction-fn": (lambda m, a: m.StaticLossBalancer().set_student_loss_reduction_fn(3), TypeError, "must be callable, or None"),
    # calls
    "not-a-mapping": (lambda m, a: m.StaticLossBalancer()([a(1.0)]), TypeError, "must be a mapping from name to loss. Received list."),
    "key-not-a-string": (lambda m, a: m.StaticLossBalancer()({0: a(1.0)}), TypeError, "must be strings. Received the key 0."),
    "no-losses": (lambda m, a: m.StaticLossBalancer()({}), ValueError, "at least one KD loss. Received []"),
    "no-kd-loss": (lambda m, a: m.StaticLossBalancer()({"student_loss": a(1.0)}), ValueError, "Received ['student_loss']"),
    "count": (
        lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE_0": a(1.0), "student_loss": a(1.0)}), ValueError,
        "Received 2 weights [0.1, 0.2] and 1 KD losses ['MSE_0']",
    ),
    "names": (
        lambda m, a: m.StaticLossBalancer({"KL_0": 0.1})({"MSE_0": a(1.0)}), ValueError, "It names ['KL_0']; received the KD losses ['MSE_0']",
    ),
    "ambiguous-order": (
        lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE_0": a(1.0), "KL_0": a(1.0)}), ValueError, "Name the weights",
    ),
    "no-idx": (lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE": a(1.0), "KL": a(1.0)}), ValueError, "distinct `_{idx}`"),
    "python-number": (lambda m, a: m.StaticLossBalancer()({"MSE_0": 1.0}), TypeError, "The loss 'MSE_0' must be a floating-point array"),
    "python-number-student": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0), "student_loss": 2}), TypeError, "The loss 'student_loss' must be",
    ),
    "integer-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1, "int32")}), TypeError, "Received an array of int32"),
    "complex-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0, "complex64")}), TypeError, "an array of complex64"),
    "float8-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0, "float8_e5m2")}), TypeError, "an array of float8_e5m2"),
    "shapes": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a([1.0]), "KL_1": a(1.0)}), ValueError,
        "one shape. Received {'MSE_0': (1,), 'KL_1': ()}",
    ),
    "shapes-student": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0), "student_loss": a([1.0, 2.0])}), ValueError, "set_student_loss_reduction_fn",
    ),
    # balancers that change over time: construction
    "scheduled-over": (
        lambda m, a: m.ScheduledLossBalancer(schedules.linear(0.0, 2.0, 4), N), ValueError,
        "`kd_loss_weight` must be in [0.0, 1.0] at every step. At step 3 it is 1.5, the first that is not.",
    ),
    "scheduled-sum": (
        lambda m, a: m.ScheduledLossBalancer([schedules.linear(0.0, 1.0, 4), 0.5], N), ValueError, "At step 3 it sums to 1.25, the first that is over",
    ),
    "scheduled-student-sum": (
        lambda m, a: m.ScheduledLossBalancer({"A": schedules.linear(0.5, 0.0, 2), "student_loss": 0.5}), ValueError, "At step 1 it sums to 0.75",
    ),
    "scheduled-function": (lambda m, a: m.ScheduledLossBalancer(math.sqrt, N), TypeError, "Make a schedule of a function with `schedules.tabulate`"),
    "scheduled-no-names": (lambda m, a: m.ScheduledLossBalancer(0.5), TypeError, "`names` must be a sequence of strings"),
    "scheduled-names-twice": (lambda m, a: m.ScheduledLossBalancer(0.5, ["A", "A"]), ValueError, "`names` must be distinct"),
    "scheduled-count": (lambda m, a: m.ScheduledLossBalancer([0.5], N), ValueError, "Received 1 weights [Schedule(0: 0.5)] and 2 KD losses"),
    "scheduled-mismatch": (lambda m, a: m.ScheduledLossBalancer({"A": 0.5}, N), ValueError, "It names ['A']; received the KD losses"),
    "scheduled-ambiguous": (lambda m, a: m.ScheduledLossBalancer([0.5, 0.5], ("A", "B")), ValueError, "Name the weights"),
    "scheduled-nothing": (lambda m, a: m.ScheduledLossBalancer([], N), ValueError, "at least one KD loss. Received []"),
    "scheduled-8": (lambda m, a: m.ScheduledLossBalancer(8.0, N), ValueError, "At step 0 it is 8.0, the first that is not. Lower the weight, or use `WeightedSumLossBalancer`"),
    "scheduled-yaml": (lambda m, a: m.ScheduledLossBalancer("1e-3", N), TypeError, "Pass `float('1e-3')`"),
    "sum-yaml": (lambda m, a: m.WeightedSumLossBalancer({"A": "1e-3"}), TypeError, "`weights['A']` must be a real number"),
    "ema-yaml": (lambda m, a: m.EMANormalizedLossBalancer(N, eps="1e-8"), TypeError, "Pass `float('1e-8')`"),
    "sum-negative": (lambda m, a: m.WeightedSumLossBalancer({"A": -1.0}), ValueError, "`weights['A']` must be in [0.0, "),
    "sum-sequence": (lambda m, a: m.WeightedSumLossBalancer([1.0]), TypeError, "`weights` must be a mapping"),
    "sum-student": (lambda m, a: m.WeightedSumLossBalancer({"A": 1.0, "student_loss": 1.0}), ValueError, "Pass its weight as `student_weight`"),
    "sum-empty": (lambda m, a: m.WeightedSumLossBalancer({}), ValueError, "at least one KD loss"),
    "ema-unknown": (lambda m, a: m.EMANormalizedLossBalancer(N, {"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']"),
    "ema-weights": (lambda m, a: m.EMANormalizedLossBalancer(N, 1.0), TypeError, "`weights` must be a mapping"),
    "ema-beta": (lambda m, a: m.EMANormalizedLossBalancer(N, beta=1.01), ValueError, "`beta` must be in [0.0, 1.0]. Received 1.01"),
    "ema-eps": (lambda m, a: m.EMANormalizedLossBalancer(N, eps=math.nan), ValueError, "`eps` must be in [0.0, "),
    "ema-target": (lambda m, a: m.EMANormalizedLossBalancer(N, target="A"), ValueError, '`target` must be "one" or one of `names`'),
    "ema-max-ratio": (lambda m, a: m.EMANormalizedLossBalancer(N, max_ratio=0), ValueError, "`max_ratio` must be above 1.1754943508222875e-38. Received 0.0"),
    "ema-lagged": (lambda m, a: m.EMANormalizedLossBalancer(N, lagged=None), TypeError, "`lagged` must be True or False"),
    "logits-scale": (lambda m, a: m.LogitsAndIntermediatesLossBalancer(-1.0), ValueError, "`kd_loss_scale` must be in [0.0, "),
    "logits-skip": (lambda m, a: m.LogitsAndIntermediatesLossBalancer(1.0, 1), TypeError, "`skip_original_loss` must be True or False"),
    "logits-reference": (lambda m, a: m.LogitsAndIntermediatesLossBalancer(reference="student_loss"), ValueError, "the name of a KD loss"),
    "soft-variant": (lambda m, a: m.SoftAdaptLossBalancer(N, variant="original"), ValueError, "`variant` must be one of ['slope', 'normalized', 'loss_weighted', 'ratio']. Received 'original'"),
    "soft-beta": (lambda m, a: m.SoftAdaptLossBalancer(N, beta=math.inf), ValueError, "`beta` must be in [-3.4028234663852886e+38, 3.4028234663852886e+38]. Received inf"),
    "soft-lagged": (lambda m, a: m.SoftAdaptLossBalancer(N, lagged=1), TypeError, "`lagged` must be True or False"),
    "soft-max-ratio": (lambda m, a: m.SoftAdaptLossBalancer(N, max_ratio=0.5), ValueError, "`max_ratio` must be in [1.0, "),
    "soft-total": (lambda m, a: m.SoftAdaptLossBalancer(N, total_weight="k"), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received 'k'"),
    "soft-order-of-ratios": (lambda m, a: m.SoftAdaptLossBalancer(N, variant="ratio", order=2), ValueError, "`order` must be an int from 1 to 1 where `variant` is 'ratio'. Received 2"),
    "soft-no-scalar": (lambda m, a: m.SoftAdaptLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    **{
        f"soft-order-{given!r}": (lambda m, a, given=given: m.SoftAdaptLossBalancer(N, order=given), kind, f"`order` must be an int from 1 to 5 where `variant` is 'slope'. Received {given!r}")
        for given, kind in ((0, ValueError), (6, ValueError), (1.0, TypeError), (True, TypeError))
    },
    "dwa-weights": (lambda m, a: m.DWALossBalancer(N, {"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']"),
    "dwa-weight": (lambda m, a: m.DWALossBalancer(N, {"MSELoss_0": -1.0}), ValueError, "`weights['MSELoss_0']` must be in [0.0, "),
    "dwa-temperature": (lambda m, a: m.DWALossBalancer(N, temperature=0.0), ValueError, "`temperature` must be above 1.1754943508222875e-38. Received 0.0"),
    "dwa-temperature-nan": (lambda m, a: m.DWALossBalancer(N, temperature=math.nan), ValueError, "`temperature` must be in [0.0, "),
    "dwa-temperature-text": (lambda m, a: m.DWALossBalancer(N, temperature="2"), TypeError, "`temperature` must be a real number"),
    "dwa-max-ratio": (lambda m, a: m.DWALossBalancer(N, max_ratio=0.5), ValueError, "`max_ratio` must be in [1.0, "),
    "dwa-max-ratio-inf": (lambda m, a: m.DWALossBalancer(N, max_ratio=math.inf), ValueError, "`max_ratio` must be in [1.0, "),
    "dwa-total": (lambda m, a: m.DWALossBalancer(N, total_weight=1.0), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received 1.0"),
    "dwa-end-epoch": (lambda m, a: m.DWALossBalancer(N, epoch_steps=3).end_epoch(), RuntimeError, "`end_epoch()` must not be called where `epoch_steps` is set. It is 3"),
    "dwa-no-scalar": (lambda m, a: m.DWALossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    **{
        f"dwa-epoch-steps-{given!r}": (lambda m, a, given=given: m.DWALossBalancer(N, epoch_steps=given), kind, f"`epoch_steps` must be None or an int from 1 to 2147483647. Received {given!r}")
        for given, kind in ((0, ValueError), (2**31, ValueError), (1.0, TypeError), (True, TypeError))
    },
    "uncertainty-form": (lambda m, a: m.UncertaintyLossBalancer(N, "liebel"), ValueError, "`form` must be one of ['kendall', 'regularized']. Received 'liebel'"),
    "uncertainty-initial": (lambda m, a: m.UncertaintyLossBalancer(N, initial=81.0), ValueError, "`initial` must be in [-80.0, 80.0]. Received 81.0"),
    "uncertainty-initial-named": (lambda m, a: m.UncertaintyLossBalancer(N, initial={"MSELoss_0": math.nan}), ValueError, "`initial['MSELoss_0']` must be in [-80.0, 80.0]. Received nan"),
    "uncertainty-initial-name": (lambda m, a: m.UncertaintyLossBalancer(N, initial={"A": 1.0}), ValueError, "`initial` must name losses of `names`. Received ['A']"),
    "uncertainty-initial-text": (lambda m, a: m.UncertaintyLossBalancer(N, initial="0"), TypeError, "`initial` must be a real number"),
    "uncertainty-deviation-0": (lambda m, a: m.UncertaintyLossBalancer(N, "regularized", 0.0), ValueError, "`initial` must be in [8.6"),
    "uncertainty-total": (lambda m, a: m.UncertaintyLossBalancer(N, total_weight="2"), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received '2'"),
    "uncertainty-no-kd": (lambda m, a: m.UncertaintyLossBalancer(["student_loss"]), ValueError, "at least one KD loss"),
    "uncertainty-other-names": (lambda m, a: m.UncertaintyLossBalancer(N)({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "uncertainty-no-scalar": (lambda m, a: m.UncertaintyLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "uncertainty-state": (lambda m, a: m.UncertaintyLossBalancer(N).load_state(m.IMTLLossBalancer(N).export_state()), ValueError, "balancer"),
    "imtl-initial": (lambda m, a: m.IMTLLossBalancer(N, -81), ValueError, "`initial` must be in [-80.0, 80.0]. Received -81"),
    "imtl-initial-bool": (lambda m, a: m.IMTLLossBalancer(N, True), TypeError, "`initial` must be a real number"),
    "imtl-names": (lambda m, a: m.IMTLLossBalancer(["A", "A"]), ValueError, "`names` must be distinct"),
    "imtl-total": (lambda m, a: m.IMTLLossBalancer(N, total_weight=3), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received 3"),
    "imtl-both": (lambda m, a: m.IMTLLossBalancer(N)(dict.fromkeys(N, a(1.0)), count=1, share=1), TypeError, "`count`"),
    "geometric-weights": (lambda m, a: m.GeometricLossBalancer(N, {"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']"),
    "geometric-weights-list": (lambda m, a: m.GeometricLossBalancer(N, [1.0]), TypeError, "`weights` must be a mapping from the name of a loss to its value. Received [1.0] of type list"),
    "geometric-weight-0": (lambda m, a: m.GeometricLossBalancer(N, {"MSELoss_0": 0.0}), ValueError, "`weights['MSELoss_0']` must be above 1.1754943508222875e-38. Received 0.0"),
    "geometric-weight-negative": (lambda m, a: m.GeometricLossBalancer(N, {"MSELoss_0": -1.0}), ValueError, "`weights['MSELoss_0']` must be in [0.0, "),
    "geometric-weight-schedule": (lambda m, a: m.GeometricLossBalancer(N, {"MSELoss_0": schedules.linear(1.0, 2.0, 3)}), TypeError, "`weights['MSELoss_0']` must be a real number"),
    "geometric-weights-sum": (lambda m, a: m.GeometricLossBalancer(N, dict.fromkeys(N, 3e38)), ValueError, "`sum(weights)` must be in [0.0, 3.4028234663852886e+38]. Received inf"),
    "geometric-total": (lambda m, a: m.GeometricLossBalancer(N, total_weight="2"), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received '2'"),
    "geometric-names": (lambda m, a: m.GeometricLossBalancer(["A", "A"]), ValueError, "`names` must be distinct"),
    "geometric-no-kd": (lambda m, a: m.GeometricLossBalancer(["student_loss"]), ValueError, "at least one KD loss"),
    "geometric-other-names": (lambda m, a: m.GeometricLossBalancer(N)({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "geometric-no-scalar": (lambda m, a: m.GeometricLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "stch-mu": (lambda m, a: m.STCHLossBalancer(N, 0.0), ValueError, "`mu` must be in [2.350988701644575e-38, 4.253529586511731e+37]. Received 0.0"),
    "stch-mu-nan": (lambda m, a: m.STCHLossBalancer(N, math.nan), ValueError, "`mu` must be in [2.350988701644575e-38, "),
    "stch-mu-text": (lambda m, a: m.STCHLossBalancer(N, "1"), TypeError, "`mu` must be a real number"),
    "stch-weights": (lambda m, a: m.STCHLossBalancer(N, weights={"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']"),
    "stch-weight": (lambda m, a: m.STCHLossBalancer(N, weights={"MSELoss_0": math.inf}), ValueError, "`weights['MSELoss_0']` must be in [0.0, "),
    "stch-reference": (lambda m, a: m.STCHLossBalancer(N, reference=1.0), TypeError, "`reference` must be a mapping from the name of a loss to its value. Received 1.0 of type float"),
    "stch-reference-names": (lambda m, a: m.STCHLossBalancer(N, reference={"A": 1.0}), ValueError, "`reference` must name losses of `names`. Received ['A']"),
    "stch-reference-inf": (lambda m, a: m.STCHLossBalancer(N, reference={"MSELoss_0": -math.inf}), ValueError, "`reference['MSELoss_0']` must be in [-3.4028234663852886e+38, "),
    "stch-reference-log": (lambda m, a: m.STCHLossBalancer(N, reference={"MSELoss_0": 0.0}, form="log"), ValueError, "`reference['MSELoss_0']` must be above 1.1754943508222875e-38"),
    "stch-form": (lambda m, a: m.STCHLossBalancer(N, form="exp"), ValueError, "`form` must be one of ['linear', 'log']. Received 'exp'"),
    "stch-total": (lambda m, a: m.STCHLossBalancer(N, total_weight=None), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received None"),
    "stch-other-names": (lambda m, a: m.STCHLossBalancer(N).breakdown({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "stch-no-scalar": (lambda m, a: m.STCHLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "random-weights": (lambda m, a: m.RandomLossBalancer(N, {"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']"),
    "random-weight": (lambda m, a: m.RandomLossBalancer(N, {"MSELoss_0": math.nan}), ValueError, "`weights['MSELoss_0']` must be finite. Received nan"),
    "random-weight-negative": (lambda m, a: m.RandomLossBalancer(N, {"MSELoss_0": -1.0}), ValueError, "`weights['MSELoss_0']` must be in [0.0, "),
    "random-total": (lambda m, a: m.RandomLossBalancer(N, total_weight="k"), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received 'k'"),
    "random-names": (lambda m, a: m.RandomLossBalancer(N)({"student_loss": a(1.0)}), ValueError, "student_loss"),
    **{
        f"{balancer}-seed-{given!r}": (lambda m, a, given=given, balancer=balancer: getattr(m, balancer)(N, seed=given), kind, f"`seed` must be an int from 0 to 9223372036854775807. Received {given!r}")
        for balancer in ("RandomLossBalancer", "ReLoBRaLoLossBalancer")
        for given, kind in ((-1, ValueError), (2**63, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError), (None, TypeError))
    },
    "relobralo-weights": (lambda m, a: m.ReLoBRaLoLossBalancer(N, [1.0, 2.0]), TypeError, "`weights` must be"),
    "relobralo-weight": (lambda m, a: m.ReLoBRaLoLossBalancer(N, {"MSELoss_0": -1.0}), ValueError, "`weights['MSELoss_0']` must be in [0.0, "),
    "relobralo-alpha": (lambda m, a: m.ReLoBRaLoLossBalancer(N, alpha=1.5), ValueError, "`alpha` must be in [0.0, 1.0]"),
    "relobralo-beta": (lambda m, a: m.ReLoBRaLoLossBalancer(N, beta=-0.5), ValueError, "`beta` must be in [0.0, 1.0]"),
    "relobralo-beta-nan": (lambda m, a: m.ReLoBRaLoLossBalancer(N, beta=math.nan), ValueError, "`beta` must be in [0.0, 1.0]"),
    "relobralo-temperature": (lambda m, a: m.ReLoBRaLoLossBalancer(N, temperature=0.0), ValueError, "`temperature` must be above 1.1754943508222875e-38. Received 0.0"),
    "relobralo-lagged": (lambda m, a: m.ReLoBRaLoLossBalancer(N, lagged=1), TypeError, "`lagged` must be True or False"),
    "relobralo-max-ratio": (lambda m, a: m.ReLoBRaLoLossBalancer(N, max_ratio=0.5), ValueError, "`max_ratio` must be in [1.0, "),
    "relobralo-total": (lambda m, a: m.ReLoBRaLoLossBalancer(N, total_weight=None), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received None"),
    "relobralo-no-scalar": (lambda m, a: m.ReLoBRaLoLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "famo-lr": (lambda m, a: m.FAMOLossBalancer(N, lr=1.5), ValueError, "`lr` must be in [0.0, 1.0]. Received 1.5"),
    "famo-lr-nan": (lambda m, a: m.FAMOLossBalancer(N, lr=math.nan), ValueError, "`lr` must be in [0.0, 1.0]. Received nan"),
    "famo-lr-text": (lambda m, a: m.FAMOLossBalancer(N, lr="1e-3"), TypeError, "`lr` must be a real number"),
    "famo-weight-decay": (lambda m, a: m.FAMOLossBalancer(N, weight_decay=-1e-3), ValueError, "`weight_decay` must be in [0.0, 1.0]. Received -0.001"),
    "famo-min-losses": (lambda m, a: m.FAMOLossBalancer(N, min_losses={"A": 0.0}), ValueError, "`min_losses` must name losses of `names`. Received ['A']"),
    "famo-min-losses-number": (lambda m, a: m.FAMOLossBalancer(N, min_losses=0.0), TypeError, "`min_losses` must be a mapping from the name of a loss to its value. Received 0.0 of type float"),
    "famo-min-losses-inf": (lambda m, a: m.FAMOLossBalancer(N, min_losses={"MSELoss_0": -math.inf}), ValueError, "`min_losses['MSELoss_0']` must be in [-3.4028234663852886e+38, "),
    "famo-eps": (lambda m, a: m.FAMOLossBalancer(N, eps=-1e-8), ValueError, "`eps` must be in [0.0, "),
    "famo-total": (lambda m, a: m.FAMOLossBalancer(N, total_weight=1), ValueError, "`total_weight` must be one of ['paper', 'K', 'one']. Received 1"),
    "famo-no-scalar": (lambda m, a: m.FAMOLossBalancer(N)(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "famo-update-names": (lambda m, a: m.FAMOLossBalancer(N).update({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "famo-update-no-scalar": (lambda m, a: m.FAMOLossBalancer(N).update(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "famo-update-number": (lambda m, a: m.FAMOLossBalancer(N).update({**dict.fromkeys(N, a(1.0)), "MSELoss_0": 1.0}), TypeError, "The loss 'MSELoss_0' must be a floating-point array"),
    "famo-update-both": (lambda m, a: m.FAMOLossBalancer(N).update(dict.fromkeys(N, a(1.0)), count=1, share=1), TypeError, "`count`"),
    "famo-update-negative": (lambda m, a: m.FAMOLossBalancer(N).update(dict.fromkeys(N, a(1.0)), count=-1), ValueError, "`count`"),
    "update-of-another": (
        lambda m, a: m.functional_form(ema(m)).update(m.functional_form(ema(m)).init(), dict.fromkeys(N, a(1.0))), TypeError,
        "A `EMANormalizedLossBalancer` does not observe losses after the optimizer's step. Received `update()`. Leave it out.",
    ),
    **{
        f"auto-step-{given!r}": (lambda m, a, given=given: m.ScheduledLossBalancer(0.5, N, auto_step=given), kind, f"`auto_step` must be None or an int from 1 to 16777215. Received {given!r}")
        for given, kind in ((0, ValueError), (-3, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError))
    },
    # and calls
    "fixed-names-missing": (lambda m, a: ema(m)({"MSELoss_0": a(1.0)}), ValueError, "It has ['MSELoss_0', 'KLDivLoss_1', 'student_loss']; received ['MSELoss_0']"),
    "fixed-names-extra": (
        lambda m, a: m.ScheduledLossBalancer({"A": 0.5})({"A": a(1.0), "B": a(1.0), "student_loss": a(1.0)}), ValueError, "received ['A', 'B', 'student_loss']",
    ),
    "fixed-names-in-weights": (lambda m, a: ema(m).weights({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "fixed-names-in-breakdown": (lambda m, a: ema(m).breakdown({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "fixed-names-in-observe": (lambda m, a: ema(m).observe({"A": a(1.0)}), ValueError, "The losses must be those that the balancer was built for"),
    "no-scalar": (
        lambda m, a: ema(m)(dict.fromkeys(N, a([1.0, 2.0]))), ValueError,
        "must be scalars, of shape (). Received {'MSELoss_0': (2,), 'KLDivLoss_1': (2,), 'student_loss': (2,)}",
    ),
    "no-scalar-logits": (lambda m, a: m.LogitsAndIntermediatesLossBalancer(reference="MSELoss_0")(dict.fromkeys(N, a([1.0]))), ValueError, "must be scalars"),
    "stateful-number": (lambda m, a: ema(m)({**dict.fromkeys(N, a(1.0)), "MSELoss_0": 1.0}), TypeError, "The loss 'MSELoss_0' must be a floating-point array"),
    "stateful-list": (lambda m, a: ema(m)([a(1.0)]), TypeError, "must be a mapping from name to loss. Received list."),
    "logits-no-reference": (
        lambda m, a: m.LogitsAndIntermediatesLossBalancer()(dict.fromkeys(N, a(1.0))), ValueError, "exactly one KD loss whose name holds \"Logits\", the reference. Found []",
    ),
    "logits-two-references": (
        lambda m, a: m.LogitsAndIntermediatesLossBalancer()({"Logits_0": a(1.0), "Logits_1": a(1.0), "student_loss": a(1.0)}), ValueError, "Found ['Logits_0', 'Logits_1']",
    ),
    "logits-no-student": (lambda m, a: m.LogitsAndIntermediatesLossBalancer()({"Logits_0": a(1.0)}), ValueError, "must hold `student_loss` unless"),
    "load-nothing": (lambda m, a: ema(m).load_state(None), TypeError, "A state must be a mapping with exactly"),
    "load-of-another": (lambda m, a: ema(m).load_state(m.LogitsAndIntermediatesLossBalancer().export_state()), ValueError, "another balancer than this"),
    "load-other-settings": (lambda m, a: ema(m).load_state(ema(m, beta=0.5).export_state()), ValueError, "Expected {'beta': 0.99}; received {'beta': 0.5}"),
    "load-renamed": (lambda m, a: ema(m).load_state(ema(m).export_state(), renamed={"A": None}), ValueError, "must have names of this balancer as keys"),
    "load-renamed-absent": (lambda m, a: ema(m).load_state(ema(m).export_state(), renamed={"MSELoss_0": "A"}), ValueError, "Received {'MSELoss_0': 'A'}; the state is of"),
    # numbers beyond float64
    "weights-huge": (lambda m, a: m.StaticLossBalancer([0.5, -(10**400)]), ValueError, f"`kd_loss_weight[1]` must be a number that float64 holds, at most 1.7976931348623157e+308 in magnitude. Received -1{'0' * 400}"),
    "scheduled-huge": (lambda m, a: m.ScheduledLossBalancer(10**400, N), ValueError, "`kd_loss_weight` must be a number that float64 holds"),
    "sum-huge": (lambda m, a: m.WeightedSumLossBalancer({"A": 10**400}), ValueError, "`weights['A']` must be a number that float64 holds"),
    "sum-student-huge": (lambda m, a: m.WeightedSumLossBalancer({"A": 1}, 10**400), ValueError, "`student_weight` must be a number that float64 holds"),
    "ema-beta-huge": (lambda m, a: ema(m, beta=10**400), ValueError, "`beta` must be a number that float64 holds"),
    "ema-eps-huge": (lambda m, a: ema(m, eps=10**400), ValueError, "`eps` must be a number that float64 holds"),
    "logits-huge": (lambda m, a: m.LogitsAndIntermediatesLossBalancer(10**400), ValueError, "`kd_loss_scale` must be a number that float64 holds"),
    "functional-huge": (lambda m, a: m.functional.weighted_sum([a(1.0)], [10**400]), ValueError, "`weights[0]` must be a number that float64 holds"),
    # losses that neither framework can hold
    **{
        f"loss-{name}-{kind}": (
            lambda m, a, given=given, make=make: make(m)({**dict.fromkeys(N, a(1.0)), "KLDivLoss_1": given}), TypeError,
            f"The loss 'KLDivLoss_1' must be a floating-point array (bfloat16, float16, float32 or float64). Received {received}. Pass",
        )
        for kind, (given, received) in {
            "longdouble": (np.longdouble(1), "longdouble of " + str(np.dtype(np.longdouble))),
            "longdouble-array": (np.ones((), np.longdouble), "ndarray of " + str(np.dtype(np.longdouble))),
            "clongdouble": (np.clongdouble(1), "clongdouble of " + str(np.dtype(np.clongdouble))),
            "string": (np.str_("x"), "str_ of <U1"),
            "string-array": (np.array("x"), "ndarray of <U1"),
            "bytes": (np.void(b"x"), "void of |V1"),
            "time": (np.datetime64("2020-01-01"), "datetime64 of datetime64[D]"),
            "duration": (np.timedelta64(3, "ns"), "timedelta64 of timedelta64[ns]"),
            "objects": (np.array(None), "ndarray of object"),
            "int64": (np.int64(3), "numpy.int64"),
            "int64-array": (np.array(3), "ndarray of int64"),
            "swapped-bytes": (np.array(1, ">f4"), "ndarray of >f4"),
            "masked": (np.ma.masked_array(1.0), "MaskedArray of float64"),
            "object": (NotImplemented, "NotImplementedType"),
            "text": ("x", "str"),
        }.items()
        for name, make in (("static", lambda m: m.StaticLossBalancer()), ("ema", ema))
    },
    "functional-longdouble": (lambda m, a: m.functional.weighted_sum([a(1.0), np.longdouble(1)], [0.5, 0.5]), TypeError, "The loss 'terms[1]' must be a floating-point array"),
    # functional
    "no-terms": (lambda m, a: m.functional.weighted_sum([], []), ValueError, "at least one array"),
    "terms-and-weights": (lambda m, a: m.functional.weighted_sum([a(1.0)], [0.5, 0.5]), ValueError, "1 terms and 2 weights"),
    "functional-weight": (lambda m, a: m.functional.weighted_sum([a(1.0)], [math.nan]), ValueError, "`weights[0]` must be finite"),
    "functional-weight-bool": (lambda m, a: m.functional.weighted_sum([a(1.0)], [True]), TypeError, "`weights[0]` must be a real number"),
    "functional-weight-yaml": (lambda m, a: m.functional.weighted_sum([a(1.0)], ["1e-3"]), TypeError, "Pass `float('1e-3')`"),
    "functional-number": (lambda m, a: m.functional.weighted_sum([a(1.0)], 0.5), TypeError, "`weights` must be a sequence of numbers, or a vector. Received 0.5 of type float"),
    "functional-term": (lambda m, a: m.functional.weighted_sum([a(1.0), 2.0], [0.5, 0.5]), TypeError, "The loss 'terms[1]' must be"),
    "functional-shapes": (lambda m, a: m.functional.weighted_sum([a(1.0), a([2.0])], [0.5, 0.5]), ValueError, "one shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_same_class_and_words_in_both_twins(name: str) -> None:
    action, expected, words = TABLE[name]
    messages = {}
    for framework, (module, array) in TWINS.items():
        with pytest.raises(expected) as raised:
            action(module, array)
        assert type(raised.value) is expected
        messages[framework] = str(raised.value)
    assert messages["torch"] == messages["jax"]
    assert words in messages["torch"]


#: By rule of a call, a row of the table above that breaks it.
RULES = {
    "E1": "not-a-mapping", "E2": "key-not-a-string", "E3": "no-kd-loss", "E4": "python-number", "E5": "shapes-student", "E7": "count",
    "E8": "terms-and-weights", "W2": "ambiguous-order", "W5": "weight-yaml", "S2": "scheduled-8", "T6": "load-nothing", "L1": "logits-no-student",
}  # fmt: skip


@pytest.mark.parametrize("clause", RULES)
def test_an_error_names_the_clause_that_it_rests_on(clause: str) -> None:
    action, expected, _ = TABLE[RULES[clause]]
    for module, array in TWINS.values():
        with pytest.raises(expected, match=rf"\. \(docs/spec {clause}\)$"):
            action(module, array)


def test_a_loss_that_is_missing_is_shown_in_code_and_its_mend_works() -> None:
    for module, array in TWINS.values():
        losses = {name: array(1.0) for name in N if name != "MSELoss_0"}
        with pytest.raises(ValueError, match="built for") as raised:
            ema(module)(losses)
        _, cause, mend = str(raised.value).splitlines()
        assert cause == "    balancer({...})  # probably: this batch has no 'MSELoss_0'"
        assert mend == "    balancer({..., 'MSELoss_0': any_value}, count={..., 'MSELoss_0': 0})  # instead"
        ema(module)({**losses, "MSELoss_0": array(math.nan)}, count={**dict.fromkeys(losses, 1), "MSELoss_0": 0})
        with pytest.raises(ValueError, match=r"\(docs/spec S5\)$"):  # too many: no line says which to leave out
            ema(module)({**dict.fromkeys(N, array(1.0)), "A": array(1.0)})
        with pytest.raises(ValueError, match=r"\(docs/spec S5\)$"):  # misspelt, and not absent: no line calls it absent
            ema(module)({**losses, "MSELoss0": array(1.0)})


def test_state_that_leaks_across_a_transform_is_shown_in_code_and_its_mend_works() -> None:
    balancer = ema(loss_balancers.jax)

    def losses_of(x: jax.Array) -> dict[str, jax.Array]:
        return dict.fromkeys(N, x)

    known = {"nnx": nnx, "balancer": balancer, "losses_of": losses_of, "x": jnp.float32(1.0)}
    with pytest.raises(RuntimeError, match="is not an argument of") as raised:
        nnx.jit(lambda x: balancer(losses_of(x)))(known["x"])
    _, cause, mend, _ = str(raised.value).splitlines()
    with pytest.raises(RuntimeError, match="is not an argument of"):
        eval(cause.strip(), known)
    assert eval(mend.strip(), known) == 3.0 * 1.0


#: What the words say of a scalar that a transform traces, here under `vmap`, where a balancer takes a number.
TRACED: dict[str, Callable[[Any, Any], Any]] = {
    "static": lambda m, w: m.StaticLossBalancer(w),
    "static-list": lambda m, w: m.StaticLossBalancer([w]),
    "static-mapping": lambda m, w: m.StaticLossBalancer({"A": w}),
    "scheduled": lambda m, w: m.ScheduledLossBalancer(w, N),
    "sum": lambda m, w: m.WeightedSumLossBalancer({"A": w}),
    "ema-beta": lambda m, w: ema(m, beta=w),
    "logits": lambda m, w: m.LogitsAndIntermediatesLossBalancer(w),
    "constant": lambda m, w: schedules.constant(w),
    "tabulate": lambda m, w: schedules.tabulate(lambda step: w, 2),
    "functional": lambda m, w: m.functional.weighted_sum([w], [w]),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_weight_that_is_traced_is_a_type_error_in_words(name: str) -> None:
    words = []
    for vmap, (module, array) in zip((torch.func.vmap, jax.vmap), TWINS.values(), strict=True):
        with pytest.raises(TypeError, match=r"must be a number that is known now\. Received one of type") as raised:
            vmap(lambda w, module=module: TRACED[name](module, w))(array([0.25, 0.5]))
        assert type(raised.value) is TypeError
        words.append(re.sub(r"type \w+", "type", str(raised.value)))  # each framework has its own
    assert words[0] == words[1]


def test_abstract_balancers_are_a_type_error_in_both_twins() -> None:
    for module, _ in TWINS.values():
        for cls in (module.DistillationLossBalancer, type("Unfinished", (module.DistillationLossBalancer,), {})):
            with pytest.raises(TypeError, match="abstract"):
                cls()


def test_same_warning_in_both_twins_once_per_instance() -> None:
    messages = {}
    for framework, (module, array) in TWINS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            balancer = module.StaticLossBalancer(0.7)
            assert not caught  # none at construction
            for _ in range(3):
                balancer({"MSE_0": array(1.0)})
        (warning,) = caught
        assert warning.category is UserWarning
        messages[framework] = str(warning.message)
        assert str(1.0 - 0.7) in messages[framework]
    assert messages["torch"] == messages["jax"]


#: Tensors that are not dense: a scalar and a matrix, as far as there are both.
NOT_DENSE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse_coo": lambda: torch.tensor(1.0).to_sparse(),
    "sparse_coo-": lambda: torch.eye(2).to_sparse(),
    "sparse_csr": lambda: torch.eye(2).to_sparse_csr(),
    "sparse_csc": lambda: torch.eye(2).to_sparse_csc(),
    "sparse_bsr": lambda: torch.eye(2).to_sparse_bsr((1, 1)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "nested-": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse (CSR|CSC|BSR) tensor support")
@pytest.mark.parametrize("layout", NOT_DENSE)
def test_losses_that_are_not_dense_are_a_type_error_in_torch(layout: str) -> None:
    m, given, plain = loss_balancers.torch, NOT_DENSE[layout](), dict.fromkeys(N, torch.tensor(1.0))
    words = rf"must be a dense array. Received an array of float32 in the layout {layout.rstrip('-')}. Reduce it to a dense array"
    balancers = (
        m.StaticLossBalancer(),
        m.ScheduledLossBalancer(0.5, N),
        m.WeightedSumLossBalancer({"MSELoss_0": 1, "KLDivLoss_1": 1}, 1),
        ema(m),
        m.LogitsAndIntermediatesLossBalancer(reference="MSELoss_0"),
    )
    for balancer in balancers:
        balancer(plain)  # so that the static one does the next call as this one
        for losses in (dict.fromkeys(N, given), {**plain, "KLDivLoss_1": given}):
            for call in (balancer, balancer.breakdown):
                with pytest.raises(TypeError, match=words):
                    call(losses)
    with pytest.raises(TypeError, match=words):
        m.functional.weighted_sum([given, given], [0.5, 0.5])
    with pytest.raises(TypeError, match="must be a sequence of numbers, or a vector"):
        m.functional.weighted_sum([torch.tensor(1.0)], torch.ones(1).to_sparse())


def test_quantized_losses_are_a_type_error_in_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        given = torch.quantize_per_tensor(torch.tensor(1.0), 0.1, 0, torch.quint8)
    for balancer in (loss_balancers.torch.StaticLossBalancer(), ema(loss_balancers.torch)):
        with pytest.raises(TypeError, match=r"The loss 'KLDivLoss_1' must be a floating-point array.*Received an array of quint8"):
            balancer({**dict.fromkeys(N, torch.tensor(1.0)), "KLDivLoss_1": given})


def test_devices_that_differ_are_a_value_error_in_torch() -> None:
    losses = {"MSE_0": torch.tensor(1.0), "student_loss": torch.tensor(1.0, device="meta")}
    with pytest.raises(ValueError, match=r"on one device. Received \{'MSE_0': 'cpu', 'student_loss': 'meta'\}"):
        loss_balancers.torch.StaticLossBalancer()(losses)


def test_a_balancer_that_is_never_stepped_warns_once_in_the_same_words() -> None:
    messages = {}
    for framework, (module, array) in TWINS.items():
        balancer, losses = ema(module), dict.fromkeys(N, array(1.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(205):
                balancer(losses)
        (warning,) = caught
        assert warning.category is UserWarning
        assert warning.filename == __file__  # it points at the caller
        messages[framework] = str(warning.message)
    assert messages["torch"] == messages["jax"]
    words, cause, mend = messages["torch"].splitlines()
    assert "`step()` was not called in 100 training forwards" in words
    assert cause.strip().startswith("loss = balancer(losses)  #")
    assert mend.strip().startswith("balancer.step()  #")


def test_a_scheduled_balancer_without_student_warns_at_construction_in_the_same_words() -> None:
    messages = {}
    for framework, (module, _) in TWINS.items():
        with pytest.warns(UserWarning, match="that weight is dropped") as caught:
            module.ScheduledLossBalancer(schedules.linear(0.75, 0.25, 4), ("MSELoss_0",))
        (warning,) = caught
        assert warning.filename == __file__
        messages[framework] = str(warning.message)
    assert messages["torch"] == messages["jax"]
    assert "The student loss has weight 0.75" in messages["torch"]
