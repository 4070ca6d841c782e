"""The specification, executable: what both twins share, in nothing but the standard library and NumPy.

Keys and canonical order, settings and their validation, every error text, the exact reference, the golden vectors.
"""

from loss_balancers.spec import errors
from loss_balancers.spec.checks import check_mapping, check_reduction_fn, finite_weights
from loss_balancers.spec.errors import LossInfo, bad_losses, missing_framework
from loss_balancers.spec.formats import FORMAT_OF_DTYPE, FORMATS, Format, compute_format, result_format, round_to, round_weight
from loss_balancers.spec.golden import Group, Vector, golden_hash, load_golden
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order
from loss_balancers.spec.static import Plan, StaticLossBalancerSettings, static_plan, static_reference

__all__ = [
    "FORMATS",
    "FORMAT_OF_DTYPE",
    "STUDENT_LOSS_KEY",
    "Format",
    "Group",
    "LossInfo",
    "Plan",
    "StaticLossBalancerSettings",
    "Vector",
    "bad_losses",
    "canonical_order",
    "check_mapping",
    "check_reduction_fn",
    "compute_format",
    "errors",
    "finite_weights",
    "golden_hash",
    "load_golden",
    "missing_framework",
    "result_format",
    "round_to",
    "round_weight",
    "static_plan",
    "static_reference",
]
