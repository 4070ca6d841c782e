"""Weights as scalars and vectors of JAX: a traced one is refused, and a vector gets no gradient."""
# pyright: reportArgumentType=false, reportPrivateUsage=false
#   What is given is wider than what is annotated.

from collections.abc import Callable
from functools import partial
from typing import Any

import framework_jax
import jax
import jax.numpy as jnp
import number_places
import pytest

from loss_balancers.jax.functional import weighted_sum
from loss_balancers.parity.bits import assert_same_bits

PLACES: dict[str, Callable[[Any], Any]] = {name: partial(place, framework_jax) for name, place in number_places.PLACES.items()}


@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_that_is_replicated_is_a_number(place):
    mesh = jax.make_mesh((1,), ("x",))
    value = jax.device_put(jnp.float32(0.25), jax.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert PLACES[place](value) == PLACES[place](value.item())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transform", [jax.jit, jax.grad], ids=["jit", "grad"])
def test_a_scalar_that_is_traced_is_refused(transform, place):
    def call(w):
        PLACES[place](w)
        return w

    with pytest.raises(TypeError, match=r"must be a number that is known now\. Received one of type") as raised:
        transform(call)(jnp.float32(0.25))
    assert type(raised.value) is TypeError


def test_a_vector_gets_no_gradient():
    total, gradients = jax.value_and_grad(lambda x, w: weighted_sum([x, x], w), (0, 1))(jnp.float32(3.0), jnp.asarray([0.25, 0.5]))
    assert_same_bits(total, jnp.float32(2.25))
    assert_same_bits(gradients[0], jnp.float32(0.75))
    assert_same_bits(gradients[1], jnp.zeros(2))
