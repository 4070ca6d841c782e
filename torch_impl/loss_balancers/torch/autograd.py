"""The weighted sum as a linear map: forward, transpose, and their derivatives, which are each other.

Two functions: `total` (K terms to one) and `spread` (one to K), the gradient of `total`. Each is differentiated by the
other, so that every order of derivative has the spec's rounding; the derivative of `keep` (zero at a zero loss) appears nowhere.

Each comes twice. The plain form is what eager autograd runs fastest and the only one that Dynamo traces (it refuses
a `jvp`, and calls `setup_context` forms wrongly where nothing requires grad; PyTorch 2.13). The transformable form serves
`torch.func` and forward-mode differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from loss_balancers.torch.rounding import Dtypes, keep, narrow, widen

#: Weights in the compute format: a vector on the terms' device, or one multiplier a term.
Weights = Tensor | tuple[Tensor, ...] | tuple[float, ...]


def total(weights: Weights, dtypes: Dtypes, terms: Sequence[Tensor]) -> Tensor:
    """RN of the sum of keep(RN(w_i x_i)), added in order (spec A4 to A7)."""
    if not isinstance(weights, Tensor):
        products = [keep(widen(x, dtypes.compute) * w) for w, x in zip(weights, terms, strict=True)]
    elif dtypes.uniform:
        # One kernel for all products instead of one each: two to three times faster at 64 losses.
        products = keep(widen(torch.stack(tuple(terms)), dtypes.compute) * weights).unbind(0)
    else:
        products = keep(torch.stack([widen(x, dtypes.compute) for x in terms]) * weights).unbind(0)
    s = products[0]
    for p in products[1:]:
        s = s + p
    return narrow(keep(s), dtypes.result)


def spread(weights: Weights, dtypes: Dtypes, g: Tensor) -> tuple[Tensor, ...]:
    """keep(RN(w_i g)) in the dtype of each term (spec A8)."""
    g = widen(g, dtypes.compute)
    if not isinstance(weights, Tensor):
        return tuple([narrow(keep(g * w), dtype) for w, dtype in zip(weights, dtypes.terms, strict=True)])
    products = keep(g * weights)
    if dtypes.uniform:
        return narrow(products, dtypes.result).unbind(0)
    return tuple([narrow(p, dtype) for p, dtype in zip(products.unbind(0), dtypes.terms, strict=True)])


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        # Not `weights, dtypes, *terms`: where nothing requires grad, Dynamo counts parameters against arguments to find out
        # whether there is a `ctx`, and with two terms would find none (PyTorch 2.13).
        weights, dtypes, *terms = inputs
        ctx.weights, ctx.dtypes = weights, dtypes
        return total(weights, dtypes, terms)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, *_Spread.apply(ctx.weights, ctx.dtypes, g)
        return None, None, *spread(ctx.weights, ctx.dtypes, g)


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, weights: Weights, dtypes: Dtypes, g: Tensor) -> tuple[Tensor, ...]:
        ctx.weights, ctx.dtypes = weights, dtypes
        return spread(weights, dtypes, g)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, _Total.apply(ctx.weights, ctx.dtypes, *grad_outputs)


class _TransformableTotal(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Weights, dtypes: Dtypes, *terms: Tensor) -> Tensor:
        return total(weights, dtypes, terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.weights, ctx.dtypes, *_ = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        return None, None, *_TransformableSpread.apply(ctx.weights, ctx.dtypes, g)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _TransformableTotal.apply(ctx.weights, ctx.dtypes, *grad_inputs[2:])


class _TransformableSpread(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Weights, dtypes: Dtypes, g: Tensor) -> tuple[Tensor, ...]:
        return spread(weights, dtypes, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.weights, ctx.dtypes, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, _TransformableTotal.apply(ctx.weights, ctx.dtypes, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _TransformableSpread.apply(ctx.weights, ctx.dtypes, grad_inputs[2])


# `Function.apply` without its Python part, which serves `torch.func` alone and takes 4 us, as much as two kernels.
_eager_total = super(Function, _Total).apply  # type: ignore[reportAttributeAccessIssue]


def apply_total(weights: Weights, dtypes: Dtypes, terms: Sequence[Tensor]) -> Tensor:
    """`total`, differentiable in whatever way is asked for."""
    if torch.compiler.is_compiling():
        # Dynamo refuses one tensor passed twice; the clones vanish in the compiled code.
        return _Total.apply(weights, dtypes, *[x.clone() for x in terms])
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _TransformableTotal.apply(weights, dtypes, *terms)
    return _eager_total(weights, dtypes, *terms)
