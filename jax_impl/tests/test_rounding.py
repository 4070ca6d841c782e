"""Conversions between formats, which differ from platform to platform in how they are lowered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_balancers.jax import rounding

BFLOAT16 = np.dtype(jnp.bfloat16)
#: Each upper half of a float32 number, with lower halves that round down, are ties, and round up. NaN without an upper half too.
BITS = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel()


@pytest.mark.parametrize("way", ["jit", "vmap", "eager"])
def test_bfloat16_is_the_nearest_of_what_keep_leaves(way):
    """On the CPU too, where it is converted as bits."""
    x = BITS.view(np.float32)
    convert = partial(rounding.narrow, dtype=BFLOAT16)
    given = {"jit": jax.jit(convert), "vmap": jax.jit(jax.vmap(convert)), "eager": convert}[way](jnp.asarray(x))
    assert given.dtype == BFLOAT16
    found, nan = np.asarray(given), np.isnan(x)
    expected = np.where(nan | (np.abs(x) <= 2.0**-126), np.float32(0), x).astype(BFLOAT16)
    assert np.isnan(found[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(found[~nan].view(np.uint16), expected[~nan].view(np.uint16))


def test_other_conversions_are_those_of_every_platform():
    for dtype, other in ((np.float32, jnp.float16), (jnp.bfloat16, np.float32), (jnp.float16, jnp.bfloat16)):
        x = jnp.asarray([0.0, -0.0, 1.0, -3.3e-5, 65519.0, 1e-40, jnp.inf, jnp.nan], dtype)
        given, expected = (np.asarray(of(x, dtype=np.dtype(other))) for of in (rounding._round_on_cpu, rounding._round))
        assert given.tobytes() == expected.tobytes()
