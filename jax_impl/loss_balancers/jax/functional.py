"""The one numeric primitive, public so that you can write balancers of your own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.autograd import LinearMap, total
from loss_balancers.jax.rounding import compute_dtype, keep
from loss_balancers.spec import errors

FORMATS = {jnp.dtype(fmt.dtype): fmt.name for fmt in spec.FORMATS.values()}


def weighted_sum(
    terms: Sequence[Float[Array, "*shape"]],
    weights: Sequence[float] | Float[Array, " terms"],
    *,
    dtype: Any = None,
) -> Float[Array, "*shape"]:
    """The weighted sum of losses, with the same bits in both frameworks, eager or compiled.

    Use it to write a balancer of your own; :class:`~loss_balancers.jax.StaticLossBalancer` is this and a weight per name.
    With w_i rounded to the compute format: ``p_i = keep(RN(w_i * x_i))``, ``s = RN(RN(p_0 + p_1) + ...)`` in the order given,
    result ``RN(keep(s))``. ``keep`` is +0 at and below the smallest normal number.

    Args:
        terms: At least one array, all of one shape.
        weights: As many finite numbers on the host, or a vector on the device, rounded to the compute format and flushed; its
            values are not checked. Constants either way: no gradient reaches them. JAX cannot tell whether one was wanted.
        dtype: The dtype of the result. Default: the common type of the terms (bfloat16 with float16 gives float32).

    Shape:
        Each term ``(*shape)``, often ``()``; the result too.

    Dtype:
        bfloat16, float16, float32, float64. Computed in float64 if a term or ``dtype`` is float64, else in float32.

    Returns:
        The sum. Its gradient to a term is ``keep(RN(w_i * g))`` in the term's dtype, to any order, forward and reverse.

    Raises:
        TypeError: A term is not a floating-point array, a weight is not a real number, ``dtype`` is not supported, or it is
            float64 while ``jax_enable_x64`` is off.
        ValueError: There are no terms, weights and terms are not equally many, a weight is not finite, or shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax.functional import weighted_sum
        >>> weighted_sum([jnp.float32(2.0), jnp.float32(4.0)], [0.25, 0.75])
        Array(3.5, dtype=float32)

    Reference:
        docs/spec/2-arithmetic.md, A1 to A8.
    """
    vector = isinstance(weights, Array) and weights.dtype in FORMATS and weights.ndim == 1
    checked = spec.constant_vector(weights, len(terms)) if vector else spec.finite_weights(weights, len(terms))
    terms, dtypes = check_terms([f"terms[{i}]" for i in range(len(terms))], terms)
    if dtype is not None and jnp.dtype(dtype) not in FORMATS:
        raise errors.dtype_not_supported(str(jnp.dtype(dtype)))
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise errors.float64_is_off()
    return sum_terms(terms, dtypes, checked, dtype)


def check_terms(names: Sequence[str], terms: Sequence[Any]) -> tuple[list[Array], tuple[Any, ...]]:
    """The losses as JAX arrays, and their dtypes. Raises unless all are floating-point and of one shape (E4, E5)."""
    arrays = list(map(_as_array, terms))
    shape = getattr(arrays[0], "shape", None)
    dtypes = []
    for x in arrays:
        if not (isinstance(x, Array) and x.dtype in FORMATS and x.shape == shape):
            raise spec.bad_losses({name: _describe(loss) for name, loss in zip(names, arrays, strict=True)})
        dtypes.append(x.dtype)
    return arrays, tuple(dtypes)


def _as_array(loss: Any) -> Any:
    """What jit would make of a NumPy array: float32, if it is float64 and `jax_enable_x64` is off. Else ``loss`` itself."""
    if not isinstance(loss, (np.ndarray, np.generic)) or loss.dtype not in FORMATS:
        return loss
    try:
        return jnp.asarray(loss)
    except (TypeError, ValueError):  # a masked array
        return loss


def _describe(loss: object) -> spec.LossInfo:
    if not isinstance(loss, Array):
        return spec.LossInfo(errors.kind_of(loss), is_loss=False)
    kind = f"an array of {loss.dtype}"
    return spec.LossInfo(kind, loss.dtype in FORMATS, tuple(loss.shape))


def balance(terms: Sequence[Array], dtypes: tuple[Any, ...], weights: tuple[float, ...] | Array) -> Array:
    """A balancer's aggregate of checked terms in canonical order (spec A5).

    With fewer weights than terms, the leading terms share the first weight, and are added before it is applied.
    """
    shared = len(terms) - len(weights) + 1
    if shared == 1:
        return sum_terms(terms, dtypes, weights)
    dtype = common_dtype(dtypes)
    first = sum_terms(terms[:shared], dtypes[:shared], (1.0,) * shared, compute_dtype(dtype))
    return sum_terms([first, *terms[shared:]], (first.dtype, *dtypes[shared:]), weights, dtype)


def sum_terms(terms: Sequence[Array], dtypes: tuple[Any, ...], weights: tuple[float, ...] | Array, dtype: Any = None) -> Array:
    """`weighted_sum` without its checks, of terms of these dtypes."""
    dtype = dtype or common_dtype(dtypes)
    compute = compute_dtype(dtype, *dtypes)
    constants = None if isinstance(weights, Array) else _rounded(weights, FORMATS[compute])
    linear = LinearMap(constants, tuple(range(len(terms))), dtypes, jnp.dtype(dtype), compute)
    return _total(linear, weights if isinstance(weights, Array) else None, terms)


def common_dtype(dtypes: Sequence[Any]) -> Any:
    """The dtype of the aggregate of losses of these dtypes (spec A2)."""
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    return compute_dtype(*dtypes)


@lru_cache(maxsize=1024)
def _rounded(weights: tuple[float, ...], compute: str) -> tuple[float, ...]:
    return tuple(spec.round_weight(weight, compute) for weight in weights)


# Jitted, so that an eager call is one dispatch; inlined into the graph of a caller that is jitted itself.
@partial(jax.jit, static_argnums=0, inline=True)
def _total(linear: LinearMap, weights: Array | None, terms: Sequence[Array]) -> Array:
    """`total`; a vector of weights is rounded to the compute format and flushed (spec A3), a constant."""
    vector = [] if weights is None else [keep(lax.stop_gradient(weights).astype(linear.compute))]
    return total(linear, vector, terms)
