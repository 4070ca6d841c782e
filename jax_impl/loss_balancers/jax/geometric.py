"""`GeometricLossBalancer`: the geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.functions import entered, finished, summed
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable import div_of_kept, exp, log
from loss_balancers.jax.rounding import FLOAT
from loss_balancers.jax.weighed import WeighedLossBalancer
from loss_balancers.spec.geometric import GeometricLossBalancerSettings


def exponents_of(weights: Array, present: Array) -> Array:
    """The exponent of each loss: its part of the weights of those that are present (spec G3)."""
    weights = chosen(present, weights, 0.0)
    total = summed(weights)
    total = chosen(total > 0, total, 1.0)
    return div_of_kept(weights, jnp.broadcast_to(total, weights.shape))


# Jitted, so that an eager call is one dispatch; inlined into the graph of a caller that is jitted itself.
@partial(jax.jit, static_argnums=(0, 1), inline=True)
def aggregate_of(settings: Any, dtypes: tuple[Any, ...], terms: Sequence[Array], present: Array | None) -> Array:
    """The aggregate (spec G3, G4)."""
    losses = entered(terms, dtypes, present)
    if present is None:
        exponents = settings.exponents([True] * len(terms))
    else:
        exponents = exponents_of(jnp.asarray(settings.rounded_weights, FLOAT), present)
    return finished(exp(summed(log(losses), exponents)), settings.factor, dtypes, present)


class GeometricLossBalancer(WeighedLossBalancer):
    """The geometric mean of the losses: a loss counts by its relative change, whatever its scale is.

    For losses whose scales differ and are not known, without state and without anything to tune; all must be above zero.
    ``aggregate = exp(sum(e_k * log(L_k)))``, ``e_k = c_k / sum(c)``: with equal weights the K-th root of the product. Its
    derivative by ``L_k`` is ``aggregate * e_k / L_k``.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        weights: Name to ``c_k``, a number above 0; only ratios matter. Default: 1 for each, and for each that is not named.
        total_weight: What the derivatives sum to for equal losses: "paper", the default, and "one" are 1, "K" is their number.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32 and mixtures; the aggregate has their common type. What is between is float32.

    State:
        None.

    Raises:
        TypeError: An argument is of the wrong type. At a call: a loss is float64. Else: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import GeometricLossBalancer
        >>> balancer = GeometricLossBalancer(("student_loss", "MSELoss_0"))
        >>> balancer({"student_loss": jnp.float32(4.0), "MSELoss_0": jnp.float32(0.25)})
        Array(1., dtype=float32)

    Reference:
        Chennupati, Sistu, Yogamani, Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
        Multi-Task Learning", CVPR Workshops 2019, arXiv:1904.08492.

    Deviations:
        The mean is one of logarithms, so no product overflows or underflows. An absent loss leaves the mean. A loss of zero gives
        the aggregate 0, and NaN as its own gradient; one below zero gives NaN: nothing is clipped.
    """

    _scalars = True

    def __init__(self, names: Sequence[str], weights: Mapping[str, float] | None = None, total_weight: str = "paper") -> None:
        super().__init__(GeometricLossBalancerSettings(names, weights, total_weight))

    def _aggregate(self, state: State, inputs: Inputs) -> Array:
        del state
        return aggregate_of(self._settings, inputs.dtypes, inputs.terms, inputs.present)
