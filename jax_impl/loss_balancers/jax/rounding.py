"""Widening to the compute format, `keep`, and rounding to a narrow format: the steps between two float operations.

All three are one primitive, `round`, declared linear: its tangent is itself on the tangent, its transpose itself on the
cotangent, back to the dtype it came from. So the weighted sum, written in plain operations, is differentiated into
the spec's gradient, and the derivative of `keep` (zero at a zero loss) appears nowhere. `jax.custom_jvp` cannot say this: its
tangent must be made of operations that JAX can transpose, and a select on the tangent is not one of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

#: The format of state.
FLOAT = np.dtype(np.float32)

TINY = {np.dtype(np.float32): np.finfo(np.float32).tiny, np.dtype(np.float64): np.finfo(np.float64).tiny}


def compute_dtype(*dtypes: Any) -> np.dtype[Any]:
    """float64 if any of the dtypes is, else float32 (spec A1)."""
    return np.dtype(np.float64) if np.dtype(np.float64) in dtypes else np.dtype(np.float32)


def keep(x: Array) -> Array:
    """+0 where ``|x|`` is at most the smallest normal, else ``x`` (spec A4): flush to zero, and rounding barrier.

    The barrier is the select: no compiler may contract a multiply and an add through it.
    """
    return _bind(x, x.dtype)


def widen(x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` flushed (float16 in float32, where none of its values is subnormal), then exactly in the compute format (spec A3)."""
    return _bind(x, dtype)


def narrow(x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` rounded to ``dtype`` (spec A7): through float32, flushed there, unless it stays in float64."""
    return _bind(x, dtype)


def _bind(x: Array, dtype: Any) -> Array:
    return cast(Array, round_p.bind(x, dtype=np.dtype(dtype)))


def _round(x: Array, *, dtype: np.dtype[Any]) -> Array:
    """What the primitive computes: a conversion between formats, flushed on the way. Written out as in the torch twin."""
    if x.dtype not in TINY:
        x = _representable(x.astype(np.float32), x.dtype)
    x = _flush(x)
    if dtype in (np.float64, x.dtype):
        return x.astype(dtype)
    if x.dtype == np.float64:
        x = _flush(x.astype(np.float32))
    return x if dtype == np.float32 else _representable(x, dtype).astype(dtype)


def _round_on_cpu(x: Array, *, dtype: np.dtype[Any]) -> Array:
    """The same on a CPU, where a number that bfloat16 holds is converted as bits.

    Since JAX 0.11, LLVM takes half a minute to compile the conversion of a vector that comes from the integers of `portable.exp`.
    """
    if dtype != jnp.bfloat16 or x.dtype == dtype:
        return _round(x, dtype=dtype)
    x = _round(x, dtype=np.dtype(np.float32))
    bits = lax.bitcast_convert_type(_representable(x, dtype), np.uint32)
    bits = jnp.where(x == x, bits, np.uint32(0x7FC00000))  # NaN may have no bit in the upper half  # noqa: PLR0124
    return lax.bitcast_convert_type((bits >> 16).astype(np.uint16), dtype)


def _flush(x: Array) -> Array:
    return lax.select(lax.le(lax.abs(x), TINY[x.dtype]), lax.full_like(x, 0), x)


def _representable(x: Array, dtype: np.dtype[Any]) -> Array:
    """float32 ``x`` rounded to a value of bfloat16 or float16, still as float32.

    XLA may elide a conversion and the one back (`xla_allow_excess_precision`), so that a jitted function would read, hand
    on and differentiate values that the narrow format does not hold. It cannot change a value that is already representable.
    """
    if dtype == jnp.bfloat16:
        return lax.reduce_precision(x, 8, 7)
    # Not reduce_precision: it flushes subnormal float16 (JAX 0.10).
    rounded = _drop_bits(lax.bitcast_convert_type(x, np.int32), 13)
    rounded = jnp.where(jnp.abs(x) < 2.0**-14, lax.round(x * 2.0**24, lax.RoundingMethod.TO_NEAREST_EVEN) * 2.0**-24, rounded)
    rounded = jnp.where(jnp.abs(x) >= 65520.0, x * jnp.inf, rounded)
    return jnp.where(x == x, rounded, x)  # NaN stays  # noqa: PLR0124


def _drop_bits(bits: Array, count: int) -> Array:
    """Rounds float32 bits to nearest even, ``count`` bits shorter; a carry into the exponent is what it should be."""
    half = (1 << (count - 1)) - 1
    return lax.bitcast_convert_type((bits + half + ((bits >> count) & 1)) & -(1 << count), np.float32)


def _transpose(ct: Any, x: Any, *, dtype: np.dtype[Any]) -> list[Any]:
    del dtype
    return [_bind(ct, x.aval.dtype)]


round_p = Primitive("loss_balancers_round")
round_p.def_impl(partial(jax.jit, static_argnames="dtype")(_round))
round_p.def_abstract_eval(lambda x, *, dtype: x.update(dtype=dtype, weak_type=False))
mlir.register_lowering(round_p, mlir.lower_fun(_round, multiple_results=False))
mlir.register_lowering(round_p, mlir.lower_fun(_round_on_cpu, multiple_results=False), platform="cpu")
ad.deflinear2(round_p, _transpose)
batching.defvectorized(round_p)
