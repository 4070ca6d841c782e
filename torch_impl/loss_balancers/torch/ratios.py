"""Ratios of losses to what they were, and weights in shares of a total: what adaptive methods have in common."""

from __future__ import annotations

import math

from torch import Tensor

from loss_balancers.torch.portable import div_of_kept, rmul_of_kept
from loss_balancers.torch.portable.sums import powers_and_total
from loss_balancers.torch.rounding import beside, chosen, finite


def ratio(x: Tensor, reference: Tensor, bound: float) -> Tensor:
    """The ratio of flushed numbers to their references, within the bound; 1 where the reference says nothing (spec B2)."""
    magnitude = reference.abs()
    known = (magnitude > beside(0.0, magnitude)) & (magnitude < beside(math.inf, magnitude)) & finite(x)
    return div_of_kept(chosen(known, x, 1.0), chosen(known, reference, 1.0)).clamp(-bound, bound)


def shares(exponents: Tensor, weights: Tensor) -> Tensor:
    """The softmax of finite exponents, each share times its weight (spec B3)."""
    powers, total = powers_and_total(exponents)
    return div_of_kept(rmul_of_kept(weights, powers), total.expand(powers.shape))
