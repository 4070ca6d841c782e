"""`GeometricLossBalancer`: the geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loss_balancers.spec.geometric import GeometricLossBalancerSettings
from loss_balancers.torch.functions import entered, finished, summed
from loss_balancers.torch.host import as_text, number, numbers, runs
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import div_of_kept, exp, log
from loss_balancers.torch.rounding import vector_of
from loss_balancers.torch.weighed import WeighedLossBalancer


def exponents_of(weights: Tensor, present: Tensor) -> Tensor:
    """The exponent of each loss: its part of the weights of those that are present (spec G3)."""
    weights = torch.where(present, weights, 0.0)
    total = summed(weights)
    total = torch.where(total > 0, total, 1.0)
    return div_of_kept(weights, total.expand_as(weights))


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
        >>> import torch
        >>> from loss_balancers.torch import GeometricLossBalancer
        >>> balancer = GeometricLossBalancer(("student_loss", "MSELoss_0"))
        >>> balancer({"student_loss": torch.tensor(4.0), "MSELoss_0": torch.tensor(0.25)})
        tensor(1.)

    Reference:
        Chennupati, Sistu, Yogamani, Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
        Multi-Task Learning", CVPR Workshops 2019, arXiv:1904.08492.

    Deviations:
        The mean is one of logarithms, so no product overflows or underflows. An absent loss leaves the mean. A loss of zero gives
        the aggregate 0, and NaN as its own gradient; one below zero gives NaN: nothing is clipped.
    """

    _scalars = True

    def __init__(self, names: Sequence[str], weights: Mapping[str, float] | None = None, total_weight: str = "paper") -> None:
        settings = GeometricLossBalancerSettings(names, weights, total_weight)
        super().__init__(settings)
        self._weights_as_text = as_text(settings.rounded_weights)
        self._exponents = as_text(settings.exponents([True] * len(settings.names)))
        self._factor = settings.factor.hex()

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        del state
        losses, present = entered(inputs), inputs.present
        if present is None:
            exponents = numbers(self._exponents)
        else:
            exponents = exponents_of(vector_of(runs(self._weights_as_text), present.device), present)
        return finished(exp(summed(log(losses), exponents)), number(self._factor), inputs)
