"""Loss balancers for PyTorch: the twins of `loss_balancers.jax`, with the same bits."""

try:
    import torch as _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # PyTorch is there, and lacks something
    from loss_balancers.spec import missing_framework

    raise ImportError(missing_framework("torch", "PyTorch", "torch")) from error
else:
    from loss_balancers.spec.versions import check_version

    check_version("torch", "torch", _torch.__version__)

from loss_balancers.spec import STUDENT_LOSS_KEY
from loss_balancers.torch import functional
from loss_balancers.torch.base import DistillationLossBalancer
from loss_balancers.torch.dwa import DWALossBalancer
from loss_balancers.torch.ema_normalized import EMANormalizedLossBalancer
from loss_balancers.torch.famo import FAMOLossBalancer
from loss_balancers.torch.functional_form import functional_form
from loss_balancers.torch.geometric import GeometricLossBalancer
from loss_balancers.torch.imtl import IMTLLossBalancer
from loss_balancers.torch.logits_and_intermediates import LogitsAndIntermediatesLossBalancer
from loss_balancers.torch.random import RandomLossBalancer
from loss_balancers.torch.relobralo import ReLoBRaLoLossBalancer
from loss_balancers.torch.scheduled import ScheduledLossBalancer, WeightedSumLossBalancer
from loss_balancers.torch.soft_adapt import SoftAdaptLossBalancer
from loss_balancers.torch.static import StaticLossBalancer
from loss_balancers.torch.stch import STCHLossBalancer
from loss_balancers.torch.uncertainty import UncertaintyLossBalancer

__all__ = [
    "STUDENT_LOSS_KEY",
    "DWALossBalancer",
    "DistillationLossBalancer",
    "EMANormalizedLossBalancer",
    "FAMOLossBalancer",
    "GeometricLossBalancer",
    "IMTLLossBalancer",
    "LogitsAndIntermediatesLossBalancer",
    "RandomLossBalancer",
    "ReLoBRaLoLossBalancer",
    "STCHLossBalancer",
    "ScheduledLossBalancer",
    "SoftAdaptLossBalancer",
    "StaticLossBalancer",
    "UncertaintyLossBalancer",
    "WeightedSumLossBalancer",
    "functional",
    "functional_form",
]
