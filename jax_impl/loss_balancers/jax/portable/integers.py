"""`exp`, `log`, `sqrt` and an exact sum in 64-bit integers, which are the same on every device and which no compiler approximates.

The one float operation is an estimate of a root, which integers repair. No integer is divided: a compiler for TPU takes half a
minute for that.

How good the fixed-point numbers must be: for every float32 x, e^x is at least 2^-52.64 of itself from the middle of two float32
numbers. ln x is at least 2^-53.43 from one, 2^-52.04 where x is outside of [2^-32, 2^32], and 2^-47.6 of itself where x is in
[0.7, 1.42] (`spec.hard_inputs`). The bounds beside the code are below these.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, experimental, lax
from jax.interpreters import mlir

#: 64-bit integers for what is traced within. Before JAX 0.8 it stands elsewhere.
_enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64  # type: ignore[reportAttributeAccessIssue]

#: ln 2 times 2^128, rounded down.
LN2 = 0xB17217F7D1CF79ABC9E3B39803F2F6AF
LOW = (1 << 32) - 1
SIGN, INFINITY, NAN = 1 << 31, 255 << 23, 0x7FC00000
#: The bits of the smallest normal number, and of the root of 1/2.
TINY, ROOT_OF_HALF = 1 << 23, 0x3F3504F3


def lowering(compute: Callable[..., Array]) -> Any:
    """The lowering to ``compute``, of float32 to float32, with 64-bit integers inside, whatever `jax_enable_x64` is."""
    rule = mlir.lower_fun(compute, multiple_results=False)

    def sealed(ctx: Any, *operands: Any) -> Any:
        with _enable_x64(True):  # for its constants too, which older versions of JAX make after it is traced
            return rule(ctx, *operands)

    return sealed


# `jnp.where` and `jnp.clip` would be functions of their own in the program. Where it is exported for two platforms, or for any
# batch, each of them gets an index too, of 64 bits in here and of 32 around it.
def _where(condition: Array, x: Array | int, y: Array | int) -> Array:
    def whole(value: Array | int) -> Array:
        return value if isinstance(value, Array) else lax.full_like(condition, value, np.int64)

    return lax.select(condition, whole(x), whole(y))


def _clip(x: Array, low: int, high: int) -> Array:
    return lax.clamp(np.int64(low), x, np.int64(high))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.int32).astype(np.int64)


def _number(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits.astype(np.int32), np.float32)


def _exponent(bits: Array) -> Array:
    return (bits >> 23) & 255


def _significand(bits: Array) -> Array:
    return (bits & 0x7FFFFF) | 0x800000


def _magnitude(bits: Array) -> Array:
    return bits & (SIGN - 1)


def _high(a: Array, b: Array) -> Array:
    """The product of two over 2^64, at most 3 too small."""
    return (a >> 32) * (b >> 32) + (((a >> 32) * (b & LOW)) >> 32) + (((a & LOW) * (b >> 32)) >> 32)


def _series(z: Array, divisors: Any) -> Array:
    """1 / d0 + z (1 / d1 + z (1 / d2 + ...)) by Horner's rule, for z in units of 2^-64, in units of 2^-62."""
    *others, last = divisors
    total = jnp.full_like(z, (1 << 62) // last)
    for divisor in reversed(others):
        total = _high(z, total) + (1 << 62) // divisor
    return total


def exp(x: Array) -> Array:
    """RN(e^x), +0 at and below 2^-126."""
    bits = _bits(x)
    exponent = _exponent(bits)
    m = _where(bits < 0, -_significand(bits), _significand(bits))
    # x in units of 2^-50, exactly. What is below 2^-27 counts as 0: the result is 1.
    fixed = _where(exponent < 100, 0, m << _clip(exponent - 100, 0, 33))
    # x = k ln 2 + r. k is x / ln 2 rounded, to within 1/2 + 2^-20; r, in units of 2^-64 and 2 of them off at most, is below 0.3466.
    k = ((fixed >> 30) * 1549082005 + (1 << 49)) >> 50
    r = (fixed << 14) - k * ((LN2 >> 64) - (1 << 64)) - ((k * ((LN2 >> 32) & LOW)) >> 32)
    # e^r in units of 2^-62: 2^-57.7 short of the series, and 7 units off.
    y = _series(r, [factorial(n) for n in range(14)])
    big = y >> 62  # 1 where e^r is at least 1
    q = (y + (1 << 37 << big)) >> (38 + big)  # never a tie: e^x is irrational, but for 1, which is exact
    result = ((k + 125 + big) << 23) + q  # q has the leading bit
    result = _where(result <= TINY, 0, jnp.minimum(result, INFINITY))
    result = _where(exponent >= 134, _where(bits < 0, 0, INFINITY), result)  # |x| is 128 or more
    return _number(_where(_magnitude(bits) > INFINITY, NAN, result))


def log(x: Array) -> Array:
    """RN(ln x). An x of at most 2^-126 in magnitude counts as +0."""
    bits = _bits(x)
    # x = m 2^e, with m between the root of 1/2 and that of 2, in units of 2^-24. ln x = e ln 2 + 2 artanh(t / w).
    shifted = bits - ROOT_OF_HALF
    e, rest = shifted >> 23, (shifted & 0x7FFFFF) + ROOT_OF_HALF
    m = _significand(rest) << ((rest >> 23) - 126)
    t, w = m - (1 << 24), m + (1 << 24)
    # y = 1 / w, w in [1.70, 2.42]: a parabola that is 2^-9 off, in units of 2^-31, then two steps that cube the error.
    y = 3173456935 - ((w * 1551437118) >> 24) + ((((w * w) >> 24) * 250961179) >> 24)
    d = ((1 << 55) - w * y) >> 24
    y = y + ((y * (d + ((d * d) >> 31))) >> 31)
    d = (1 << 55) - w * y  # exact, below 2^29
    g = (d << 7) + ((d * d) >> 48)
    y = (y << 31) + ((y * (g >> 3)) >> 28)  # in units of 2^-62, 2^-58 of itself off
    # s = t / w times 2^n, in units of 2^-62: where e is 0, all the digits of a small t count.
    n = _where(e == 0, lax.clz(jnp.abs(t).astype(np.int32) | 1).astype(np.int64) - 9, 0)
    s = _high(t << (n + 39), y) << 1
    z = _high(s << 1, s << 1) >> (2 * n) << 2  # its square, below 0.0295, in units of 2^-64
    # artanh(s) = s + s z (1/3 + z (1/5 + ...)), 2^-60 of itself short of the series.
    s = s + (_high(s << 1, _high(z, _series(z, range(3, 22, 2))) << 5) >> 4)
    # ln x in units of 2^-58, or of 2^-56 where |e| is 32 or more, 4 units off at most. Where e is 0, 2 s in units of 2^-(61 + n).
    j = _where(jnp.abs(e) < 32, 0, 2)
    v = ((e * (LN2 >> 72)) << (2 - j)) + ((e * ((LN2 >> 40) & LOW)) >> (30 + j)) + (s >> (3 + j))
    v = _where(e == 0, s, v)
    unit = _where(e == 0, 61 + n, 58 - j)
    magnitude = jnp.abs(v) | 1
    leading = lax.clz(magnitude) - 1
    q = (((magnitude << leading) >> 1) + (1 << 37)) >> 38  # halved, not to overflow
    result = ((188 - leading - unit) << 23) + q
    result = _where(v == 0, 0, result + ((v >> 63) << 31))  # with the sign
    result = _where(bits < 0, NAN, _where(bits == INFINITY, INFINITY, result))
    result = _where(_magnitude(bits) <= TINY, INFINITY - SIGN, result)
    return _number(_where(_magnitude(bits) > INFINITY, NAN, result))


def _floor(x: Array) -> Array:
    """A float32 number as an integer, rounded towards zero, by way of int32: every device has that conversion."""
    return x.astype(np.int32).astype(np.int64)


def _float(x: Array) -> Array:
    return x.astype(np.int32).astype(np.float32)


def sqrt(x: Array, estimate: Callable[[Array], Array] = lax.sqrt) -> Array:
    """RN of the root of x, made of an ``estimate`` that may be up to 30 units in the last place off. x of at most 2^-126 is +0."""
    bits = _bits(x)
    exponent, m = _exponent(bits), _significand(bits)
    odd = (exponent & 1) ^ 1  # the exponent is 127 more than that of x
    square = m << (23 + odd)  # its root, between 2^23 and 2^24, is the significand
    q = _floor(estimate(_float(m << odd) * np.float32(2.0**-23)) * np.float32(2.0**23))
    rest = square - q * q  # exact, below 2^31
    more = _floor(_float(rest) / _float(q + q))  # what is left after it is within 1
    q, rest = q + more, rest - more * (q + q + more)
    q = q + (rest > q).astype(np.int64) - (rest <= -q).astype(np.int64)  # (q + 1/2)^2 = q^2 + q + 1/4: never a tie
    result = (((exponent - 127) >> 1) + 126 << 23) + q
    result = _where(_magnitude(bits) > INFINITY, NAN, _where(exponent == 255, bits, result))
    return _number(_where(_magnitude(bits) <= TINY, 0, _where(bits < 0, NAN, result)))


def total(x: Array) -> Array:
    """RN(2^-40 times the sum of floor(2^40 x_k)) along the last axis, of numbers in [0, 1]: integers, so in any order."""
    bits = _bits(x)
    m, shift = _significand(bits), _exponent(bits) - 110  # x 2^40 = m 2^shift
    units = _where(shift >= 0, m << jnp.maximum(shift, 0), m >> _clip(-shift, 0, 63))
    n = jnp.sum(units, -1, keepdims=True)
    leading = lax.clz(n) - 2
    v = n << leading  # the leading bit at 61
    q = (v + (1 << 37) - 1 + ((v >> 38) & 1)) >> 38  # ties to even
    return _number(((61 - leading - 40 + 126) << 23) + q)
