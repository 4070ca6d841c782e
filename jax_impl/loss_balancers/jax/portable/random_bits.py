"""Random numbers that are a function of a seed and of the counter ``steps``: the same in both frameworks (spec N1 to N4).

They are made on the device, in unsigned integers of 32 bits, whatever `jax_enable_x64` is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.portable.division import div_of_kept, rmul_of_kept
from loss_balancers.jax.portable.elementary import log, sqrt
from loss_balancers.jax.rounding import FLOAT
from loss_balancers.spec import random_bits
from loss_balancers.spec.random_bits import CENTRES, DENOMINATOR, MIDDLE, NUMERATOR, ROTATIONS, ROUNDS, STREAM, Words


def schedule(seed: int) -> tuple[Words, ...]:
    """What is added to the two words of a counter, of a seed."""
    return random_bits.schedule(random_bits.key_of(seed))


@partial(jax.jit, static_argnums=0, inline=True)
def threefry(added: tuple[Words, ...], x: Array, y: Array) -> tuple[Array, Array]:
    """Two random words of the two words of a counter (spec N1), uint32 as they are."""
    x, y = x + np.uint32(added[0][0]), y + np.uint32(added[0][1])
    for i in range(ROUNDS):
        x, turn = x + y, ROTATIONS[i % 8]
        y = ((y << turn) | (y >> (32 - turn))) ^ x
        if i % 4 == 3:
            more = added[i // 4 + 1]
            x, y = x + np.uint32(more[0]), y + np.uint32(more[1])
    return x, y


@partial(jax.jit, static_argnums=(0, 2, 3), inline=True)
def integers(seed: int, steps: Array, stream: int, count: int) -> Array:
    """So many integers of 24 bits (spec N2)."""
    numbers = jnp.arange(stream * STREAM, stream * STREAM + count, dtype=np.uint32)
    return (threefry(schedule(seed), steps.astype(np.uint32), numbers)[0] >> 8).astype(np.int32)


@partial(jax.jit, static_argnums=(0, 2, 3), inline=True)
def happens(seed: int, steps: Array, stream: int, probability: float) -> Array:
    """Whether something of this probability happens (spec N3)."""
    return integers(seed, steps, stream, 1)[..., 0].astype(FLOAT) * FLOAT.type(2.0**-24) < FLOAT.type(probability)


@partial(jax.jit, static_argnums=(0, 2, 3), inline=True)
def normals(seed: int, steps: Array, stream: int, count: int) -> Array:
    """So many standard normal numbers (spec N4)."""
    return normal(integers(seed, steps, stream, count))


@partial(jax.jit, inline=True)
def normal(m: Array) -> Array:
    """The standard normal numbers of integers of 24 bits."""
    q = (m | 1).astype(FLOAT) * FLOAT.type(2.0**-25)
    h = FLOAT.type(0.5) - q
    middle, tail = h <= FLOAT.type(MIDDLE), h > FLOAT.type(MIDDLE)
    root = sqrt(-log(q))
    r = chosen(tail, root, CENTRES[0]) - chosen(middle, rmul_of_kept(h, h), CENTRES[1])
    numerator, denominator = _polynomial(NUMERATOR, middle, r), _polynomial(DENOMINATOR, middle, r)
    z = div_of_kept(rmul_of_kept(chosen(middle, h, 1.0), numerator), denominator)
    return jnp.where((m & 1) == 1, z, -z)


def _polynomial(coefficients: tuple[tuple[float, float], ...], middle: Array, r: Array) -> Array:
    """By Horner's rule, with the first of each pair of coefficients in the middle, else with the second."""
    *others, total = (chosen(middle, jnp.full_like(r, first), second) for first, second in coefficients)
    for coefficient in reversed(others):
        total = rmul_of_kept(total, r) + coefficient
    return total
