"""`softmax` and `logsumexp` of float32, with the same bits on any backend: their sum is of integers, hence exact in any order."""

from __future__ import annotations

from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from loss_balancers.jax.portable import integers
from loss_balancers.jax.portable.division import div
from loss_balancers.jax.portable.elementary import compiled, exp, log, operand
from loss_balancers.jax.rounding import keep
from loss_balancers.spec import errors
from loss_balancers.spec.elementary import MOST_NUMBERS


def softmax(x: Float[Array, "*shape k"]) -> Float[Array, "*shape k"]:
    """The softmax along the last axis, with the same bits in both frameworks and on every device. It is a constant.

    With m the greatest ``x_k``: ``e_k = exp(x_k - m)``, and the result is ``div(e_k, sum(e_k))``. The sum is of multiples of
    ``2 ** -40``, exact, and rounded once.

    Args:
        x: The numbers, detached: no derivative passes.

    Shape:
        ``(*shape, k)``, k from 1 to 4,194,303; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The shares, all of them NaN where an ``x_k`` is NaN or infinity, or all are -infinity.

    Raises:
        TypeError: ``x`` is not an array of float32, or a derivative by it is taken.
        ValueError: There are no numbers or too many along the last axis, or there is no axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import softmax
        >>> softmax(jnp.array([0.0, 0.0], jnp.float32))
        Array([0.5, 0.5], dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A15.
    """
    _, powers, total = _powers(x)
    return div(powers, jnp.broadcast_to(total, powers.shape))


def logsumexp(x: Float[Array, "*shape k"]) -> Float[Array, "*shape"]:
    """The logarithm of the sum of ``exp`` along the last axis, with the same bits everywhere. It is a constant.

    Computes ``m + log(sum(exp(x_k - m)))``, with m the greatest ``x_k`` and the sum of `softmax`.

    Args:
        x: The numbers, detached: no derivative passes.

    Shape:
        ``(*shape, k)``, k from 1 to 4,194,303; the result is ``(*shape)``.

    Dtype:
        float32; the result too.

    Returns:
        The logarithm, NaN where an ``x_k`` is NaN or infinity, or all are -infinity.

    Raises:
        TypeError: ``x`` is not an array of float32, or a derivative by it is taken.
        ValueError: There are no numbers or too many along the last axis, or there is no axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import logsumexp
        >>> logsumexp(jnp.array([1.0, 1.0], jnp.float32))
        Array(1.6931472, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A15.
    """
    most, _, total = _powers(x)
    return (most + log(total))[..., 0]


def powers_and_total(x: Array) -> tuple[Array, Array]:
    """The powers that `softmax` is made of, and their sum along the last axis, which is kept."""
    _, powers, total = _powers(x)
    return powers, total


def _powers(x: Any) -> tuple[Array, Array, Array]:
    """The greatest number m, the powers e^(x - m), and their sum, which is NaN where the result is."""
    x = operand(x)
    if not (x.ndim and 1 <= x.shape[-1] <= MOST_NUMBERS):
        raise errors.softmax_shape(x.shape, MOST_NUMBERS)
    x = keep(cast(Array, constant_p.bind(x)))
    most = jnp.max(x, -1, keepdims=True)
    powers = exp(x - most)
    # Asked of the numbers themselves: `max` under `jax.jit` on CPU has lost every NaN of 20,000 rows.
    valid = jnp.all(x < jnp.inf, -1, keepdims=True) & (most > -jnp.inf)
    return most, powers, jnp.where(valid, cast(Array, total_p.bind(powers)), jnp.float32(jnp.nan))


def _refuse(*given: Any) -> Any:
    raise errors.softmax_derivative("jax.lax.stop_gradient(x)")


def _batched_total(args: Any, dims: Any) -> tuple[Any, int]:
    (x,), (dim,) = args, dims
    return total_p.bind(jnp.moveaxis(x, dim, 0)), 0


constant_p = Primitive("loss_balancers_constant")
constant_p.def_impl(lambda x: x)
constant_p.def_abstract_eval(lambda x: x.update(weak_type=False))
mlir.register_lowering(constant_p, lambda ctx, x: [x])
batching.defvectorized(constant_p)
ad.defjvp2(constant_p, _refuse)

total_p = Primitive("loss_balancers_total")
total_p.def_impl(compiled(total_p.bind))
total_p.def_abstract_eval(lambda x: x.update(shape=(*x.shape[:-1], 1), dtype=np.dtype(np.float32), weak_type=False))
mlir.register_lowering(total_p, integers.lowering(integers.total))
batching.primitive_batchers[total_p] = _batched_total
