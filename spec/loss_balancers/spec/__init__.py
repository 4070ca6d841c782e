"""The specification, executable: what both twins share, in nothing but the standard library and NumPy.

Keys and canonical order, settings and their validation, every error text, the exact reference, the golden vectors.
"""

from loss_balancers.spec import errors, schedules
from loss_balancers.spec.amounts import Amounts, checked_amounts
from loss_balancers.spec.checks import check_auto_step, check_mapping, check_reduction_fn, constant_vector, finite_weights
from loss_balancers.spec.ema_normalized import EMANormalizedLossBalancerSettings
from loss_balancers.spec.errors import LossInfo, bad_losses, missing_framework
from loss_balancers.spec.formats import (
    FORMAT_OF_DTYPE,
    FORMATS,
    MOST_CALLS,
    MOST_LEFT_OUT,
    MOST_STEPS,
    Format,
    compute_format,
    result_format,
    round_to,
    round_weight,
)
from loss_balancers.spec.golden import Group, Vector, golden_hash, load_golden
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order
from loss_balancers.spec.logits_and_intermediates import LogitsAndIntermediatesLossBalancerSettings
from loss_balancers.spec.moving import check_values, checked_state, exported
from loss_balancers.spec.scheduled import ScheduledLossBalancerSettings, WeightedSumLossBalancerSettings
from loss_balancers.spec.schedules import Schedule
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.state import StateEntry
from loss_balancers.spec.state_files import read_state, save_state
from loss_balancers.spec.static import Plan, StaticLossBalancerSettings, static_plan, static_reference

__all__ = [
    "FORMATS",
    "FORMAT_OF_DTYPE",
    "MOST_CALLS",
    "MOST_LEFT_OUT",
    "MOST_STEPS",
    "STUDENT_LOSS_KEY",
    "Amounts",
    "EMANormalizedLossBalancerSettings",
    "Format",
    "Group",
    "LogitsAndIntermediatesLossBalancerSettings",
    "LossInfo",
    "Plan",
    "Schedule",
    "ScheduledLossBalancerSettings",
    "Settings",
    "StateEntry",
    "StaticLossBalancerSettings",
    "Vector",
    "WeightedSumLossBalancerSettings",
    "bad_losses",
    "canonical_order",
    "check_auto_step",
    "check_mapping",
    "check_reduction_fn",
    "check_values",
    "checked_amounts",
    "checked_state",
    "compute_format",
    "constant_vector",
    "errors",
    "exported",
    "finite_weights",
    "golden_hash",
    "load_golden",
    "missing_framework",
    "read_state",
    "result_format",
    "round_to",
    "round_weight",
    "save_state",
    "schedules",
    "static_plan",
    "static_reference",
]
