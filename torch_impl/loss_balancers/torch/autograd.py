"""The weighted sum as a linear map: forward, transpose, and their derivatives, which are each other.

Two functions: `total` (K terms to one) and `spread` (one to K), the gradient of `total`. Each is differentiated by the
other, so that every order of derivative has the spec's rounding; the derivative of `keep` (zero at a zero loss) appears nowhere.

Each comes twice. The plain form is what eager autograd runs fastest and the only one that Dynamo traces (it refuses
a `jvp`, and calls `setup_context` forms wrongly where nothing requires grad; PyTorch 2.13). The transformable form serves
`torch.func` and forward-mode differentiation, eager and compiled (`transforms`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, hardshrink
from torch.autograd import Function

from loss_balancers.torch.rounding import can_stack, narrow, one_dtype, stacked, widen
from loss_balancers.torch.transforms import differentiated, refuse_dual_level_outside, transformable, transformed


class LinearMap(NamedTuple):
    """One weighted sum, all but its terms."""

    #: In the compute format: a vector on the terms' device, or one multiplier a term. In eager code None says 1, at no cost.
    weights: Tensor | tuple[Tensor | None, ...] | tuple[float, ...]
    #: The dtypes of the terms, of the result, and of the arithmetic between them.
    terms: tuple[torch.dtype, ...]
    result: torch.dtype
    compute: torch.dtype
    #: Whether all three are one, so that there is nothing to convert.
    plain: bool
    #: The smallest normal number of the compute format: `keep` is ``hardshrink(x, tiny)``, written out for its speed.
    tiny: float
    #: Whether a weight may exceed 1, and lift a subnormal operand out of the reach of the product's flush: flushed first.
    large: bool = False
    #: Where one kernel adds in order: a zero vector of length 1 and, for each term, its index.
    adder: tuple[Tensor, Tensor] | None = None
    #: Where these are all that a sum of scalars and its gradient need: weights, tiny and adder.
    scalar: tuple[Tensor, float, Tensor, Tensor] | None = None


def total(linear: LinearMap, weights: Tensor | None, terms: Sequence[Tensor]) -> Tensor:
    """RN of the sum of keep(RN(w_i x_i)), added in order (spec A4 to A7). ``weights`` are the map's own if None."""
    factors = linear.weights if weights is None else weights
    one_vector = isinstance(factors, Tensor) and terms[0].ndim == 0
    if not linear.plain and not (one_vector and linear.adder):
        terms = [widen(x, linear.compute) for x in terms]
    if linear.large and not (one_vector and linear.adder):
        terms = [x if w is None else hardshrink(x, linear.tiny) for w, x in zip(factors, terms, strict=True)]
    if one_vector:
        vector = stacked(terms, linear.compute)
        if linear.large and linear.adder:
            vector = hardshrink(vector, linear.tiny)
        products = hardshrink(vector * factors, linear.tiny)  # type: ignore[reportArgumentType]
    else:
        products = [hardshrink(x if w is None else x * w, linear.tiny) for w, x in zip(factors, terms, strict=True)]
    if linear.adder is None:
        s, *others = products.unbind(0) if isinstance(products, Tensor) else products
        for p in others:
            s = s + p
    else:
        zero, index = linear.adder  # a product is never -0, so that 0 + p_0 is p_0
        s = zero.index_add(0, index, products).squeeze()  # type: ignore[reportArgumentType]
    if len(terms) > 1:  # one product is flushed already
        s = hardshrink(s, linear.tiny)
    return s if linear.plain else narrow(s, linear.result)


def _product(linear: LinearMap, weight: Any, g: Tensor) -> Tensor:
    """keep(RN(weight * g)); ``g`` is flushed if ``linear.large``."""
    if weight is None and linear.large:
        return g
    return hardshrink(g if weight is None else g * weight, linear.tiny)


def spread(linear: LinearMap, weights: Tensor | None, g: Tensor) -> Sequence[Tensor]:
    """keep(RN(w_i g)) in the dtype of each term (spec A8)."""
    factors = linear.weights if weights is None else weights
    if not linear.plain:
        g = widen(g, linear.compute)
    if linear.large:
        g = hardshrink(g, linear.tiny)
    if isinstance(factors, Tensor) and g.ndim == 0:
        vector = hardshrink(g * factors, linear.tiny)
        if one_dtype(linear.terms):
            return (vector if linear.plain else narrow(vector, linear.terms[0])).unbind(0)
        products: Sequence[Tensor] = vector.unbind(0)
    else:
        products = [_product(linear, w, g) for w in factors]
    if linear.plain:
        return products
    return [narrow(p, dtype) for p, dtype in zip(products, linear.terms, strict=True)]


class _Total(Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        # Not `ctx, linear, weights, *terms`: where nothing requires grad, Dynamo counts parameters against arguments to find
        # out whether there is a `ctx`, and with two terms would find none (PyTorch 2.13).
        ctx, linear, weights, *terms = inputs
        ctx.linear, ctx.weights = linear, weights
        return total(linear, weights, terms)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        if differentiated():
            return None, None, *_spread_again(ctx.linear, ctx.weights, g)
        return None, None, *spread(ctx.linear, ctx.weights, g)


class _ScalarTotal(Function):
    """`_Total` of scalars of one dtype that one kernel adds in order: the same operations, with nothing left to decide.

    Of the most frequent call; there what Python decides takes as long as a kernel. A narrow format is widened, and gradients are
    rounded to it, as one vector.
    """

    @staticmethod
    def forward(ctx: Any, linear: LinearMap, *terms: Tensor) -> Tensor:
        ctx.linear = linear
        weights, tiny, zero, index = linear.scalar  # type: ignore[reportGeneralTypeIssues]
        vector = torch.stack(terms)
        if not linear.plain:
            vector = widen(vector, linear.compute)
        if linear.large:
            vector = hardshrink(vector, tiny)
        products = hardshrink(vector * weights, tiny)
        s = hardshrink(zero.index_add(0, index, products).squeeze(), tiny)
        return s if linear.plain else narrow(s, linear.result)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        if differentiated():
            return None, *_spread_again(ctx.linear, None, g)
        linear = ctx.linear
        weights, tiny, _, _ = linear.scalar
        if not linear.plain:
            g = widen(g, linear.compute)
        if linear.large:
            g = hardshrink(g, tiny)
        products = hardshrink(g * weights, tiny)
        return None, *(products if linear.plain else narrow(products, linear.terms[0])).unbind(0)


class _VectorTotal(Function):
    """`_Total` of the elements of a float32 vector, which need not be taken apart."""

    @staticmethod
    def forward(ctx: Any, linear: LinearMap, adder: tuple[Tensor, Tensor] | None, weights: Tensor | None, vector: Tensor) -> Tensor:
        ctx.linear, ctx.weights = linear, weights
        factors = linear.weights if weights is None else weights
        if linear.large:
            vector = hardshrink(vector, linear.tiny)
        products = hardshrink(vector * factors if isinstance(factors, Tensor) else vector, linear.tiny)
        if adder is None:
            s, *others = products.unbind(0)
            for p in others:
                s = s + p
        else:
            zero, index = adder
            s = zero.index_add(0, index, products).squeeze()
        return hardshrink(s, linear.tiny)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,), linear = grad_outputs, ctx.linear
        if differentiated():
            return None, None, None, torch.stack(_spread_again(linear, ctx.weights, g))
        factors = linear.weights if ctx.weights is None else ctx.weights
        if linear.large or not isinstance(factors, Tensor):
            g = hardshrink(g, linear.tiny)
        return None, None, None, hardshrink(g * factors, linear.tiny) if isinstance(factors, Tensor) else g.expand(len(factors))


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, linear: LinearMap, weights: Tensor | None, g: Tensor) -> tuple[Tensor, ...]:
        ctx.linear, ctx.weights = linear, weights
        return tuple(spread(linear, weights, g))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, _Total.apply(ctx.linear, ctx.weights, *grad_outputs)


def _spread_again(linear: LinearMap, weights: Tensor | None, g: Tensor) -> tuple[Tensor, ...]:
    """`spread` in a backward that is differentiated: by ``create_graph=True``, or by a dual level around it alone."""
    return _transformable_spread(linear, weights, g) if transformed() else _Spread.apply(linear, weights, g)


class _Whole:
    """A linear map as one argument. Of a tuple PyTorch counts the parts, and finds no tangent for each (2.13)."""

    __slots__ = ("linear",)

    def __init__(self, linear: LinearMap) -> None:
        self.linear = linear


# Made within what Dynamo does not trace: its graph can hold a tuple, but no object of another class.
@transformable
def _transformable_total(linear: LinearMap, weights: Tensor | None, *terms: Tensor) -> Tensor:
    return _TransformableTotal.apply(_Whole(linear), weights, *terms)


@transformable
def _transformable_spread(linear: LinearMap, weights: Tensor | None, g: Tensor) -> tuple[Tensor, ...]:
    return _TransformableSpread.apply(_Whole(linear), weights, g)


class _TransformableTotal(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(whole: _Whole, weights: Tensor | None, *terms: Tensor) -> Tensor:
        return total(whole.linear, weights, terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep_inputs(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        return None, None, *_transformable_spread(ctx.linear, *ctx.saved_tensors or (None,), g)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _transformable_total(ctx.linear, *ctx.saved_tensors or (None,), *grad_inputs[2:])


class _TransformableSpread(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(whole: _Whole, weights: Tensor | None, g: Tensor) -> tuple[Tensor, ...]:
        return tuple(spread(whole.linear, weights, g))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep_inputs(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, _transformable_total(ctx.linear, *ctx.saved_tensors or (None,), *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _transformable_spread(ctx.linear, *ctx.saved_tensors or (None,), grad_inputs[2])


def _keep_inputs(ctx: Any, inputs: Any) -> None:
    whole, weights, *_ = inputs
    ctx.linear = whole.linear
    if weights is not None:  # saved as `torch.func` wants it, for weights that are mapped over too
        ctx.save_for_backward(weights)
        ctx.save_for_forward(weights)


# `Function.apply` without its Python part, which serves `torch.func` alone and takes 4 us, as much as two kernels.
_eager_total = super(Function, _Total).apply  # type: ignore[reportAttributeAccessIssue]
_eager_scalar_total = super(Function, _ScalarTotal).apply  # type: ignore[reportAttributeAccessIssue]
total_of_vector_in_eager = super(Function, _VectorTotal).apply  # type: ignore[reportAttributeAccessIssue]


def total_in_eager(linear: LinearMap, weights: Tensor | None, terms: Sequence[Tensor]) -> Tensor:
    """`total`, differentiable in whatever way is asked for."""
    if transformed():
        return _transformable_total(linear, weights, *terms)
    if linear.scalar is not None and (linear.plain or can_stack(terms)):
        return _eager_scalar_total(linear, *terms)
    return _eager_total(linear, weights, *terms)


def total_in_graph(linear: LinearMap, weights: Tensor | None, terms: Sequence[Tensor]) -> Tensor:
    """`total`, as the compiler can trace it."""
    refuse_dual_level_outside()
    if transformed():
        return _transformable_total(linear, weights, *terms)
    # Dynamo refuses one tensor passed twice; the clones vanish in the compiled code.
    return _Total.apply(linear, weights, *[x.clone() for x in terms])
