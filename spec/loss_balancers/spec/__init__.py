"""The specification, executable: what both twins share, in nothing but the standard library and NumPy.

Keys and canonical order, settings and their validation, every error text, the exact reference, the golden vectors.
"""

import numpy as _numpy

from loss_balancers.spec import errors, schedules

# Those written `X as X` are what the twins and the parity kit share: they are there, but not for users, and not in `__all__`.
from loss_balancers.spec.amounts import Amounts as Amounts
from loss_balancers.spec.amounts import checked_amounts as checked_amounts
from loss_balancers.spec.checks import check_auto_step as check_auto_step
from loss_balancers.spec.checks import check_mapping as check_mapping
from loss_balancers.spec.checks import check_reduction_fn as check_reduction_fn
from loss_balancers.spec.checks import constant_vector as constant_vector
from loss_balancers.spec.checks import finite_weights as finite_weights
from loss_balancers.spec.dwa import DWALossBalancerSettings
from loss_balancers.spec.ema_normalized import EMANormalizedLossBalancerSettings
from loss_balancers.spec.errors import LossInfo as LossInfo
from loss_balancers.spec.errors import bad_losses as bad_losses
from loss_balancers.spec.errors import missing_framework as missing_framework
from loss_balancers.spec.famo import FAMOLossBalancerSettings
from loss_balancers.spec.formats import FORMAT_OF_DTYPE as FORMAT_OF_DTYPE
from loss_balancers.spec.formats import FORMATS as FORMATS
from loss_balancers.spec.formats import MOST_CALLS as MOST_CALLS
from loss_balancers.spec.formats import MOST_LEFT_OUT as MOST_LEFT_OUT
from loss_balancers.spec.formats import MOST_STEPS as MOST_STEPS
from loss_balancers.spec.formats import Format as Format
from loss_balancers.spec.formats import compute_format as compute_format
from loss_balancers.spec.formats import result_format as result_format
from loss_balancers.spec.formats import round_to as round_to
from loss_balancers.spec.formats import round_weight as round_weight
from loss_balancers.spec.geometric import GeometricLossBalancerSettings
from loss_balancers.spec.golden import Group, Vector, load_golden
from loss_balancers.spec.golden import golden_hash as golden_hash
from loss_balancers.spec.imtl import IMTLLossBalancerSettings
from loss_balancers.spec.keys import STUDENT_LOSS_KEY, canonical_order
from loss_balancers.spec.logits_and_intermediates import LogitsAndIntermediatesLossBalancerSettings
from loss_balancers.spec.moving import check_values as check_values
from loss_balancers.spec.moving import checked_state as checked_state
from loss_balancers.spec.moving import exported as exported
from loss_balancers.spec.random import RandomLossBalancerSettings
from loss_balancers.spec.relobralo import ReLoBRaLoLossBalancerSettings
from loss_balancers.spec.scheduled import ScheduledLossBalancerSettings, WeightedSumLossBalancerSettings
from loss_balancers.spec.schedules import Schedule
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.soft_adapt import SoftAdaptLossBalancerSettings
from loss_balancers.spec.state import StateEntry as StateEntry
from loss_balancers.spec.state_files import read_state, save_state
from loss_balancers.spec.static import Plan as Plan
from loss_balancers.spec.static import StaticLossBalancerSettings, static_reference
from loss_balancers.spec.static import static_plan as static_plan
from loss_balancers.spec.stch import STCHLossBalancerSettings
from loss_balancers.spec.uncertainty import UncertaintyLossBalancerSettings
from loss_balancers.spec.versions import check_version as _check_version

__all__ = [
    "STUDENT_LOSS_KEY",
    "DWALossBalancerSettings",
    "EMANormalizedLossBalancerSettings",
    "FAMOLossBalancerSettings",
    "GeometricLossBalancerSettings",
    "Group",
    "IMTLLossBalancerSettings",
    "LogitsAndIntermediatesLossBalancerSettings",
    "RandomLossBalancerSettings",
    "ReLoBRaLoLossBalancerSettings",
    "STCHLossBalancerSettings",
    "Schedule",
    "ScheduledLossBalancerSettings",
    "Settings",
    "SoftAdaptLossBalancerSettings",
    "StaticLossBalancerSettings",
    "UncertaintyLossBalancerSettings",
    "Vector",
    "WeightedSumLossBalancerSettings",
    "canonical_order",
    "errors",
    "load_golden",
    "read_state",
    "save_state",
    "schedules",
    "static_reference",
]

_check_version("spec", "numpy", _numpy.__version__)
