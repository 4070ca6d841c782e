"""Loss balancers for JAX, as Flax NNX modules: the twins of `loss_balancers.torch`, with the same bits."""

try:
    import flax as _flax  # noqa: F401
    import jax as _jax  # noqa: F401
except ImportError as error:
    from loss_balancers.spec import missing_framework

    raise ImportError(missing_framework("jax", "JAX and Flax", "jax")) from error

from loss_balancers.jax import functional
from loss_balancers.jax.base import DistillationLossBalancer
from loss_balancers.jax.ema_normalized import EMANormalizedLossBalancer
from loss_balancers.jax.logits_and_intermediates import LogitsAndIntermediatesLossBalancer
from loss_balancers.jax.scheduled import ScheduledLossBalancer, WeightedSumLossBalancer
from loss_balancers.jax.static import StaticLossBalancer
from loss_balancers.spec import STUDENT_LOSS_KEY

__all__ = [
    "STUDENT_LOSS_KEY",
    "DistillationLossBalancer",
    "EMANormalizedLossBalancer",
    "LogitsAndIntermediatesLossBalancer",
    "ScheduledLossBalancer",
    "StaticLossBalancer",
    "WeightedSumLossBalancer",
    "functional",
]
