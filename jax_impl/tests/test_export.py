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
    """A state, and a function of it and of a student's outputs: the aggregate, and its gradient to each loss."""
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax))

    def step(state, outputs):
        losses: Any = dict(zip(NAMES, (outputs.mean(), (outputs * outputs).mean(), jnp.abs(outputs).mean()), strict=True))
        return jax.value_and_grad(lambda losses: form.apply(state, losses)[0])(losses)

    return form.init(), step


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", EXAMPLES)
def test_for_two_platforms(name):
    state, step = exportable(name)
    outputs = jnp.linspace(0.5, 2.0, 8)
    exported = export.export(jax.jit(step), platforms=["cpu", "tpu"])(state, outputs)
    assert exported.platforms == ("cpu", "tpu")
    jax.tree.map(assert_same_bits, exported.call(state, outputs), jax.jit(step)(state, outputs))


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", EXAMPLES)
def test_for_any_batch(name):
    state, step = exportable(name)
    exported = export.export(jax.jit(step))(state, jax.ShapeDtypeStruct(export.symbolic_shape("b"), jnp.float32))
    for size in (3, 8):
        outputs = jnp.linspace(0.5, 2.0, size)
        jax.tree.map(assert_same_bits, exported.call(state, outputs), jax.jit(step)(state, outputs))
