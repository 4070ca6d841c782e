"""Loss balancers for JAX, as Flax NNX modules: the twins of `loss_balancers.torch`, with the same bits."""

try:
    import jax as _jax

    from loss_balancers.spec.versions import check_version

    check_version("jax", "jax", _jax.__version__)  # before Flax, which fails in its own words on a JAX that is too old
    try:
        import flax as _flax
    except Exception:
        from loss_balancers.spec.versions import check_installed

        check_installed("jax", "flax", beside=f"jax=={_jax.__version__}")  # a Flax that is too old fails on a later JAX
        raise
except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib", "flax"):
        raise  # both are there, and one lacks something
    from loss_balancers.spec import missing_framework

    raise ImportError(missing_framework("jax", "JAX and Flax", "jax")) from error
else:
    check_version("jax", "flax", _flax.__version__, beside=f"jax=={_jax.__version__}")

from loss_balancers.jax import functional
from loss_balancers.jax.base import DistillationLossBalancer
from loss_balancers.jax.dwa import DWALossBalancer
from loss_balancers.jax.ema_normalized import EMANormalizedLossBalancer
from loss_balancers.jax.famo import FAMOLossBalancer
from loss_balancers.jax.functional_form import functional_form
from loss_balancers.jax.geometric import GeometricLossBalancer
from loss_balancers.jax.imtl import IMTLLossBalancer
from loss_balancers.jax.logits_and_intermediates import LogitsAndIntermediatesLossBalancer
from loss_balancers.jax.random import RandomLossBalancer
from loss_balancers.jax.relobralo import ReLoBRaLoLossBalancer
from loss_balancers.jax.scheduled import ScheduledLossBalancer, WeightedSumLossBalancer
from loss_balancers.jax.soft_adapt import SoftAdaptLossBalancer
from loss_balancers.jax.static import StaticLossBalancer
from loss_balancers.jax.stch import STCHLossBalancer
from loss_balancers.jax.uncertainty import UncertaintyLossBalancer
from loss_balancers.spec import STUDENT_LOSS_KEY

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
