"""The quotient and the product as the spec rounds them, on any backend, with derivatives.

XLA rewrites divisions (by a constant, of a vector by a scalar, nested ones), and GPU and TPU approximate them. So the backend's
quotient is only an estimate, and integer arithmetic, which no compiler approximates, makes the correctly rounded quotient of it.

Both functions are primitives, for the same reason as `round` in `rounding`: a derivative is made of the same two functions and
is linear in the tangent. So JAX can transpose it, and every order of derivative has the spec's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.extend.core.primitives import mul_p
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from loss_balancers.jax.rounding import keep
from loss_balancers.spec import errors


class Layout(NamedTuple):
    """A format in integers: their dtype, the width of the fraction, the exponent field of infinity."""

    integer: Any
    width: int
    top: int
    #: How many bits of a quotient are multiplied at a time: an integer holds them beside a significand, with two bits to spare.
    digit: int


LAYOUTS = {np.dtype(np.float32): Layout(np.int32, 23, 255, 6), np.dtype(np.float64): Layout(np.int64, 52, 2047, 9)}


def div(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
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
        ValueError: The shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import div
        >>> div(jnp.float32(1.0), jnp.float32(3.0))
        Array(0.33333334, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A10 and A12.
    """
    return _bind(quotient_p, a, b)


def rmul(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
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
        ValueError: The shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import rmul
        >>> rmul(jnp.float32(3.0), jnp.float32(0.1))
        Array(0.3, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A11 and A12.
    """
    return _bind(product_p, a, b)


#: For operands that are flushed already, such as state and weights. In the torch twin they are shorter; here they are the same.
div_of_kept, rmul_of_kept = div, rmul


def flushed(x: Array) -> Array:
    """``rmul(x, 1)``: flushes ``x``, and in a backward the gradient to it."""
    return rmul(x, jnp.ones_like(x))


def is_on_host(x: object) -> bool:
    """Whether ``x`` is an array on the host, which is converted as `jax.jit` would: float64 to float32 if `jax_enable_x64` is off.

    JAX 0.8 hands on constants that `jax.checkpoint` inlines as host arrays of a class of its own, which is not `Array`.
    """
    return isinstance(x, (np.ndarray, np.generic)) or type(x).__name__ == "TypedNdArray"


def _bind(function: Primitive, a: Any, b: Any) -> Array:
    """The primitive of checked operands."""
    a, b = (jnp.asarray(x) if is_on_host(x) else x for x in (a, b))
    if not (isinstance(a, Array) and isinstance(b, Array) and a.dtype in LAYOUTS and a.dtype == b.dtype):
        raise errors.operand_dtypes(*(str(x.dtype) if isinstance(x, Array) else type(x).__name__ for x in (a, b)))
    if a.shape != b.shape:
        raise errors.operand_shapes(a.shape, b.shape)
    if jax.typeof(a) != jax.typeof(b):
        # In a `shard_map` an array that is the same on all devices has another type than one that differs. A select unifies them.
        neither = jnp.zeros(a.shape, bool)
        a, b = lax.select(neither, b, a), lax.select(neither, a, b)
    return cast(Array, function.bind(a, b))


def quotient(a: Array, b: Array, estimate: Callable[[Array, Array], Array] = lax.div) -> Array:
    """keep(RN(keep(a) / keep(b))), made of an ``estimate`` that may be up to 30 units in the last place off."""
    integer, width, top, digit = LAYOUTS[a.dtype]
    one = 1 << width
    a, b = keep(a), keep(b)
    bits_a, bits_b = lax.bitcast_convert_type(a, integer), lax.bitcast_convert_type(b, integer)
    exponent_a, exponent_b = (bits_a >> width) & top, (bits_b >> width) & top
    # The significands as integers, m doubled if need be, so that n <= m < 2n.
    m, n = (bits_a & (one - 1)) | one, (bits_b & (one - 1)) | one
    smaller = m < n
    m = jnp.where(smaller, m + m, m)
    exponent = exponent_a - exponent_b + (top >> 1) - smaller.astype(integer)
    # Nearly m * one / n, to be made exact. m and n have one range on all inputs: the estimate neither over- nor underflows.
    q = (estimate(m.astype(a.dtype), n.astype(a.dtype)) * float(one)).astype(integer)
    # r = m * one - q * n, exactly: q is taken digit by digit, as in long division. It is less than 64 off, so that the r after each
    # digit but the last is between -n and 2n, and no product overflows.
    low = width - width % digit
    r = m * (one >> low) - (q >> low) * n
    while low > 0:
        low -= digit
        r = r * (1 << digit) - ((q >> low) & ((1 << digit) - 1)) * n
    # How often n goes into r, to within 1/2 before it is truncated: what remains is between -1.5n and 1.5n. The nearest quotient is
    # then q or next to it. A tie cannot be: m * 2 * one = (2q + 1) * n would make n a multiple of 2 * one, which is greater than n.
    more = (estimate(r.astype(a.dtype), n.astype(a.dtype))).astype(integer)
    r = r - more * n
    q = q + more + (r + r > n).astype(integer) - (r + r < -n).astype(integer)
    bits = jnp.minimum((jnp.clip(exponent, 0, top) - 1) * one + q, top * one)  # q has the leading bit; infinity on overflow
    ratio = lax.bitcast_convert_type(bits, a.dtype)
    ratio = jnp.where((bits_a ^ bits_b) < 0, -ratio, ratio)
    # Zero, infinity and NaN follow from a product with a reciprocal: infinity for 0, 0 for infinity. Others need not be right.
    ordinary = (exponent_a > 0) & (exponent_a < top) & (exponent_b > 0) & (exponent_b < top)
    reciprocal = jnp.where(b == 0, jnp.inf, jnp.where(jnp.abs(b) == jnp.inf, 0.0, b))
    return keep(jnp.where(ordinary, ratio, a * reciprocal))


def _quotient_on_tpu(a: Array, b: Array) -> Array:
    """On TPU float64 is a pair of float32, without bits of its own. This is what TPU can do, less than the spec says (A9)."""
    return keep(keep(a) / keep(b)) if a.dtype == np.float64 else quotient(a, b)


def product(a: Array, b: Array) -> Array:
    """keep(RN(keep(a) * keep(b)))."""
    return keep(keep(a) * keep(b))


def _batched(function: Primitive, args: Any, dims: Any) -> tuple[Any, int]:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    return function.bind(*(batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True))), 0


def _primitive(compute: Callable[[Array, Array], Array]) -> Primitive:
    function = Primitive(f"loss_balancers_{compute.__name__}")
    function.def_impl(jax.jit(compute))
    function.def_abstract_eval(lambda a, b: mul_p.abstract_eval(a, b)[0].update(weak_type=False))  # as of any product
    mlir.register_lowering(function, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[function] = partial(_batched, function)
    return function


product_p = _primitive(product)
ad.defbilinear(product_p, lambda g, a, b: rmul(g, b), lambda g, a, b: rmul(g, a))

quotient_p = _primitive(quotient)
mlir.register_lowering(quotient_p, mlir.lower_fun(_quotient_on_tpu, multiple_results=False), platform="tpu")
# Transposed to the dividend alone. The divisor has the tangent t -> div(rmul(t, -q), b); its transpose is g -> rmul(div(g, b), -q).
ad.defbilinear(quotient_p, lambda g, a, b: div(g, b), None)
ad.defjvp2(quotient_p, lambda t, q, a, b: div(t, b), lambda t, q, a, b: div(rmul(t, -q), b))
