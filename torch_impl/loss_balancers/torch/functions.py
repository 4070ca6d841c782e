"""What the balancers share whose aggregate is a function of the losses: how losses enter it, and how it leaves (spec G1, G2)."""

from __future__ import annotations

import torch
from torch import Tensor

from loss_balancers.torch.functional import common_dtype, sum_of_vector, sum_terms
from loss_balancers.torch.observing import Inputs
from loss_balancers.torch.portable import flushed
from loss_balancers.torch.rounding import FLOAT, can_stack, compiling, one_dtype, stacked


def entered(inputs: Inputs) -> Tensor:
    """The losses as a float32 vector that derivatives pass through; 1 for an absent one, so that what is made of it is finite.

    A float32 loss is flushed by what comes next, and its gradient is flushed by what came before: it needs no sum of its own.
    """
    terms, dtypes = inputs.terms, inputs.dtypes
    if dtypes[0] != FLOAT and one_dtype(dtypes) and not compiling() and can_stack(terms):
        vector = flushed(stacked(terms, FLOAT))  # what the sums below give
    else:
        sums = (x if dtype == FLOAT else sum_terms([x], (dtype,), (1.0,), FLOAT) for x, dtype in zip(terms, dtypes, strict=True))
        vector = torch.stack(list(sums))
    return vector if inputs.present is None else torch.where(inputs.present, vector, 1.0)


def summed(vector: Tensor, weights: tuple[float, ...] | Tensor | None = None) -> Tensor:
    """The weighted sum of a float32 vector's elements, in order; without weights their sum."""
    return sum_of_vector(vector, weights)


def finished(x: Tensor, factor: float, inputs: Inputs) -> Tensor:
    """The aggregate: ``factor`` times a float32 number, in the result dtype; +0 if all losses are absent."""
    x = x if inputs.present is None else torch.where(inputs.present.any(), x, 0.0)
    dtype = common_dtype(inputs.dtypes)
    return x if factor == 1.0 and dtype == FLOAT else sum_terms([x], (FLOAT,), (factor,), dtype)
