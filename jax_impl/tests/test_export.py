"""`jax.export` of a step with a balancer: for several platforms at once, and for any batch."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export
from with_state import NAMES

import loss_balancers.jax
from loss_balancers.jax import functional_form
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry

EXAMPLES = registry.examples()


def exportable(name):
    """A state, and a function of it and of a student's outputs."""
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax))

    def aggregate(state, outputs):
        losses: Any = dict(zip(NAMES, (outputs.mean(), (outputs * outputs).mean(), jnp.abs(outputs).mean()), strict=True))
        return form.apply(state, losses)[0]

    return form.init(), aggregate


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", EXAMPLES)
def test_for_two_platforms(name):
    state, aggregate = exportable(name)
    outputs = jnp.linspace(0.5, 2.0, 8)
    exported = export.export(jax.jit(aggregate), platforms=["cpu", "tpu"])(state, outputs)
    assert exported.platforms == ("cpu", "tpu")
    assert_same_bits(exported.call(state, outputs), jax.jit(aggregate)(state, outputs))


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", EXAMPLES)
def test_for_any_batch(name):
    state, aggregate = exportable(name)
    exported = export.export(jax.jit(jax.value_and_grad(aggregate, argnums=1)))(
        state, jax.ShapeDtypeStruct(export.symbolic_shape("b"), jnp.float32)
    )
    for size in (3, 8):
        outputs = jnp.linspace(0.5, 2.0, size)
        expected, gradient = jax.jit(jax.value_and_grad(aggregate, argnums=1))(state, outputs)
        found = exported.call(state, outputs)
        assert_same_bits(found[0], expected)
        assert jnp.allclose(found[1], gradient)  # the student's own part of it is JAX's
