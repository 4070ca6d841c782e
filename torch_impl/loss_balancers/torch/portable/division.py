"""The quotient and the product as the spec rounds them, on any backend, with derivatives.

Division is correctly rounded on CPU, and on CUDA in eager mode. Compiled for a GPU it is rewritten (if by a constant) and
approximated (by Triton, in float32); of other devices nothing is documented. On those the backend's quotient is only an estimate,
and integer arithmetic, which no compiler approximates, makes the correctly rounded quotient of it.

A derivative is made of the same two functions, so that every order of it has the spec's rounding. As in `autograd`, each comes
in two forms: the plain one for eager autograd and for Dynamo, the transformable one for `torch.func` and forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from loss_balancers.spec import errors
from loss_balancers.torch.rounding import bitcast, compiling, keep
from loss_balancers.torch.transforms import (
    differentiated,
    negative_of_tangent,
    refuse_dual_level_outside,
    sum_of_tangents,
    transformable,
    transformed,
)


class Layout(NamedTuple):
    """A format in integers: their dtype, the width of the fraction, the exponent field of infinity."""

    integer: torch.dtype
    width: int
    top: int
    #: How many bits of a quotient are multiplied at a time: an integer holds them beside a significand, with two bits to spare.
    digit: int


LAYOUTS = {torch.float32: Layout(torch.int32, 23, 255, 6), torch.float64: Layout(torch.int64, 52, 2047, 9)}


def div(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The correctly rounded quotient, with the same bits in both frameworks and on every device.

    Use it where a balancer of your own divides: ``a / b`` is rewritten by compilers and approximated by GPU and TPU.
    Computes ``keep(RN(keep(a) / keep(b)))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        a: The dividend.
        b: The divisor, an array too. Zero, -0 included, counts as +0: ``x / 0`` is infinity with the sign of ``x``, ``0 / 0`` NaN.

    Shape:
        Both ``(*shape)``, often ``()``; the result too.

    Dtype:
        Both float32, or both float64; the result too.

    Returns:
        The quotient q, never -0. For a cotangent g, its gradient to ``a`` is ``div(g, b)``, to ``b`` ``rmul(div(g, b), -q)``.

    Raises:
        TypeError: An operand is not an array of float32 or float64, or the dtypes differ.
        ValueError: The shapes or the devices differ.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import div
        >>> div(torch.tensor(1.0), torch.tensor(3.0))
        tensor(0.3333)

    Reference:
        docs/spec/2-arithmetic.md, A10 and A12.
    """
    return _bind("div", a, b)


def rmul(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The rounded product, with the same bits in both frameworks: no compiler fuses it with an addition.

    Use it where a balancer of your own multiplies two arrays. Computes ``keep(RN(keep(a) * keep(b)))``, where ``keep`` is +0 at
    and below the smallest normal number.

    Args:
        a: A factor.
        b: The other, an array too.

    Shape:
        Both ``(*shape)``, often ``()``; the result too.

    Dtype:
        Both float32, or both float64; the result too.

    Returns:
        The product, never -0. For a cotangent g, its gradient to ``a`` is ``rmul(g, b)``, to ``b`` ``rmul(g, a)``.

    Raises:
        TypeError: An operand is not an array of float32 or float64, or the dtypes differ.
        ValueError: The shapes or the devices differ.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import rmul
        >>> rmul(torch.tensor(3.0), torch.tensor(0.1))
        tensor(0.3000)

    Reference:
        docs/spec/2-arithmetic.md, A11 and A12.
    """
    return _bind("rmul", a, b)


def div_of_kept(a: Tensor, b: Tensor) -> Tensor:
    """`div` of constants that are flushed already, such as state and weights: a third of the operations."""
    return settled(keep(a / b)) if _divides(a) else quotient(a, b)


def rmul_of_kept(a: Tensor, b: Tensor) -> Tensor:
    """`rmul` of constants that are flushed already."""
    return keep(a * b)


def flushed(x: Tensor) -> Tensor:
    """``rmul(x, 1)``: flushes ``x``, and in a backward the gradient to it."""
    return apply("flushed", x)


def _divides(a: Tensor) -> bool:
    """Whether division is correctly rounded here. Otherwise it is repaired, which takes Inductor half a second to compile."""
    return a.device.type == "cpu" or (a.device.type == "cuda" and not compiling())


def settled(x: Tensor) -> Tensor:
    """``x``, made so that Inductor computes it once.

    Inductor would trace the operations behind ``x`` anew for each use, and a flush uses its operand twice. For
    `LogitsAndIntermediatesLossBalancer` of four losses, with quotients of quotients, it traced 23,000 operations in 17 s. This way
    it takes 5 s.
    """
    return x.as_strided(x.shape, x.stride()) if is_dynamo_compiling() else x


def quotient(a: Tensor, b: Tensor, estimate: Callable[[Tensor, Tensor], Tensor] = torch.div) -> Tensor:
    """keep(RN(keep(a) / keep(b))), made of an ``estimate`` that may be up to 30 units in the last place off."""
    integer, width, top, digit = LAYOUTS[a.dtype]
    one = 1 << width
    a, b = keep(a), keep(b)
    bits_a, bits_b = bitcast(a, integer), bitcast(b, integer)
    exponent_a, exponent_b = (bits_a >> width) & top, (bits_b >> width) & top
    # The significands as integers, m doubled if need be, so that n <= m < 2n.
    m, n = (bits_a & (one - 1)) | one, (bits_b & (one - 1)) | one
    smaller = m < n
    m = torch.where(smaller, m + m, m)
    exponent = exponent_a - exponent_b + (top >> 1) - smaller.to(integer)
    # Nearly m * one / n, to be made exact. m and n have one range on all inputs: the estimate neither over- nor underflows.
    q = (estimate(m.to(a.dtype), n.to(a.dtype)) * float(one)).to(integer)
    # r = m * one - q * n, exactly: q is taken digit by digit, as in long division. It is less than 64 off, so that the r after each
    # digit but the last is between -n and 2n, and no product overflows.
    low = width - width % digit
    r = m * (one >> low) - (q >> low) * n
    while low > 0:
        low -= digit
        r = r * (1 << digit) - ((q >> low) & ((1 << digit) - 1)) * n
    # How often n goes into r, to within 1/2 before it is truncated: what remains is between -1.5n and 1.5n. The nearest quotient is
    # then q or next to it. A tie cannot be: m * 2 * one = (2q + 1) * n would make n a multiple of 2 * one, which is greater than n.
    more = (estimate(r.to(a.dtype), n.to(a.dtype))).to(integer)
    r = r - more * n
    q = q + more + (r + r > n).to(integer) - (r + r < -n).to(integer)
    bits = ((exponent.clamp(0, top) - 1) * one + q).clamp(max=top * one)  # q has the leading bit; infinity on overflow
    ratio = bitcast(bits, a.dtype)
    ratio = torch.where((bits_a ^ bits_b) < 0, -ratio, ratio)
    # Zero, infinity and NaN follow from a product with a reciprocal: infinity for 0, 0 for infinity. Others need not be right.
    ordinary = (exponent_a > 0) & (exponent_a < top) & (exponent_b > 0) & (exponent_b < top)
    reciprocal = torch.where(b == 0, torch.inf, torch.where(b.abs() == torch.inf, 0.0, b))
    return keep(torch.where(ordinary, ratio, a * reciprocal))


class Map(NamedTuple):
    """A function of two arrays, its gradient to each of them (or, if told so, to the first alone), and what the tangent of each
    adds to the result's tangent.

    Of one array if the second is None, and then are its gradient and its tangent. (Dynamo has no varying number of arguments.)
    """

    compute: Callable[..., Tensor]
    gradient: Callable[..., tuple[Tensor, Tensor | None]]
    tangents: Callable[..., tuple[Tensor, ...]]


def _div_gradient(g: Tensor, a: Tensor, b: Tensor, q: Tensor, both: bool = True) -> tuple[Tensor, Tensor | None]:
    g = div(g, b)
    return g, rmul(g, -q) if both else None


def _div_tangents(da: Tensor, db: Tensor, a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return div(da, b), div(rmul(db, negative_of_tangent(q)), b)


def _rmul_gradient(g: Tensor, a: Tensor, b: Tensor, p: Tensor, both: bool = True) -> tuple[Tensor, Tensor | None]:
    if differentiated():
        return rmul(g, b), rmul(g, a) if both else None
    g = keep(g)
    return rmul_of_kept(g, keep(b)), rmul_of_kept(g, keep(a)) if both else None


def _rmul_tangents(da: Tensor, db: Tensor, a: Tensor, b: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    return rmul(da, b), rmul(a, db)


#: By name, since a graph of Dynamo can hold a name as an argument of a function that it does not trace.
MAPS = {
    "div": Map(lambda a, b: div_of_kept(keep(a), keep(b)), _div_gradient, _div_tangents),
    "rmul": Map(lambda a, b: rmul_of_kept(keep(a), keep(b)), _rmul_gradient, _rmul_tangents),
    "flushed": Map(lambda x, _: keep(x), lambda g, *_: (flushed(g), None), lambda t, *_: (flushed(t),)),
}


class _Plain(Function):
    @staticmethod
    def forward(ctx: Any, name: str, a: Tensor, b: Tensor | None) -> Tensor:
        result = MAPS[name].compute(a, b)
        ctx.name = name
        ctx.save_for_backward(a, b, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, *MAPS[ctx.name].gradient(*grad_outputs, *ctx.saved_tensors, ctx.needs_input_grad[2])


class _Transformable(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, a: Tensor, b: Tensor | None) -> Tensor:
        return MAPS[name].compute(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name, a, b = inputs
        ctx.save_for_backward(a, b, output)
        ctx.save_for_forward(a, b, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, *MAPS[ctx.name].gradient(*grad_outputs, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return reduce(sum_of_tangents, MAPS[ctx.name].tangents(*grad_inputs[1:], *ctx.saved_tensors))


@transformable
def _transformable(name: str, a: Tensor, b: Tensor | None) -> Tensor:
    return _Transformable.apply(name, a, b)


def _bind(name: str, a: Any, b: Any) -> Tensor:
    """The map of checked operands."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype in LAYOUTS and a.dtype == b.dtype):
        raise errors.operand_dtypes(*(kind_of(x) for x in (a, b)))
    if a.shape != b.shape:
        raise errors.operand_shapes(a.shape, b.shape)
    if a.device != b.device:
        raise errors.operand_devices(str(a.device), str(b.device))
    return apply(name, a, b)


def apply(name: str, a: Tensor, b: Tensor | None = None) -> Tensor:
    """The map of that name, differentiable in every way that PyTorch has."""
    if is_dynamo_compiling():
        refuse_dual_level_outside()
    if transformed():
        return _transformable(name, a, b)
    if is_dynamo_compiling():
        # Dynamo refuses one tensor passed twice; the clone vanishes in compiled code.
        return _Plain.apply(name, a, b if b is None else b.clone())
    if not (torch.is_grad_enabled() and (a.requires_grad or (b is not None and b.requires_grad))):
        return MAPS[name].compute(a, b)
    return _eager(name, a, b)


# `Function.apply` without its Python part (`autograd`).
_eager = super(Function, _Plain).apply  # type: ignore[reportAttributeAccessIssue]


def kind_of(x: object) -> str:
    """What a message calls ``x``: its dtype, or its type if it is not a tensor."""
    return str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
