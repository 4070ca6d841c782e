"""`exp`, `log` and `sqrt` of float32, correctly rounded on any backend, with derivatives.

Each is a primitive, as the quotient is. Its lowering has the same integers everywhere, and float32 at both ends: so the 64-bit
numbers inside neither need `jax_enable_x64` nor reach the user. A tangent is made of `div` or `rmul`, which JAX can transpose. So
every order of derivative has the spec's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from loss_balancers.jax.portable import integers
from loss_balancers.jax.portable.division import div, is_on_host, rmul
from loss_balancers.spec import errors


def exp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The correctly rounded exponential, with the same bits in both frameworks and on every device.

    Computes ``keep(RN(e ** keep(x)))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The exponent.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The power y: infinity on overflow, +0 on underflow. For a cotangent g, the gradient to ``x`` is ``rmul(g, y)``.

    Raises:
        TypeError: ``x`` is not an array of float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import exp
        >>> exp(jnp.float32(1.0))
        Array(2.7182817, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return cast(Array, exp_p.bind(operand(x)))


def log(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The correctly rounded natural logarithm, with the same bits in both frameworks and on every device.

    Computes ``RN(ln keep(x))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The number: its logarithm is -infinity if it counts as zero, NaN if it is below.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The logarithm, never -0. For a cotangent g, the gradient to ``x`` is ``div(g, x)``.

    Raises:
        TypeError: ``x`` is not an array of float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import log
        >>> log(jnp.float32(2.0))
        Array(0.6931472, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return cast(Array, log_p.bind(operand(x)))


def sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The correctly rounded square root, with the same bits in both frameworks and on every device.

    Computes ``RN(sqrt(keep(x)))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The number: its root is NaN if it is below zero.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The root y, never -0. For a cotangent g, the gradient to ``x`` is ``div(g, y + y)``.

    Raises:
        TypeError: ``x`` is not an array of float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.portable import sqrt
        >>> sqrt(jnp.float32(2.0))
        Array(1.4142135, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return cast(Array, sqrt_p.bind(operand(x)))


def operand(x: Any) -> Array:
    """``x`` as an array of float32.

    Raises:
        TypeError: It is not one.
    """
    x = jnp.asarray(x) if is_on_host(x) else x
    if not (isinstance(x, Array) and x.dtype == np.float32):
        raise errors.float32_operand(str(x.dtype) if isinstance(x, Array) else type(x).__name__)
    return x


def compiled(bind: Callable[..., Any]) -> Callable[..., Any]:
    """What an eager call runs of a primitive that is lowered as a whole: compiled under `jax.disable_jit` too."""
    jitted = jax.jit(bind)

    def call(*operands: Any) -> Any:
        with jax.disable_jit(False):
            return jitted(*operands)

    return call


def _primitive(compute: Callable[[Array], Array]) -> Primitive:
    function = Primitive(f"loss_balancers_{compute.__name__}")
    function.def_impl(compiled(function.bind))
    function.def_abstract_eval(lambda x: x.update(weak_type=False))
    mlir.register_lowering(function, integers.lowering(compute))
    batching.defvectorized(function)
    return function


exp_p, log_p, sqrt_p = _primitive(integers.exp), _primitive(integers.log), _primitive(integers.sqrt)
ad.defjvp2(exp_p, lambda t, y, x: rmul(t, y))
ad.defjvp2(log_p, lambda t, y, x: div(t, x))
ad.defjvp2(sqrt_p, lambda t, y, x: div(t, y + y))
