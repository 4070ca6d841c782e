"""`StaticLossBalancer` in NNX: nothing in the state, nothing to convert, and graph definitions that are compared by settings.

What holds in both frameworks stands in `parity_tests/tests/each_framework`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from loss_balancers.jax import StaticLossBalancer
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import MODULES_ARE_PYTREES


def example():
    values = {"M_1": 0.7, "student_loss": 1.3, "M_0": 2.9, "M_2": 0.11}
    return {name: jnp.float32(value) for name, value in values.items()}


def test_no_state():
    balancer = StaticLossBalancer([0.5, 0.25])
    balancer({"M_0": jnp.float32(1.0), "M_1": jnp.float32(1.0), "student_loss": jnp.float32(1.0)})
    parent = nnx.Sequential(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), balancer)
    assert not jax.tree.leaves(nnx.state(balancer))
    assert not MODULES_ARE_PYTREES or not jax.tree.leaves(balancer)
    assert len(jax.tree.leaves(nnx.state(parent))) == 2  # the layer's


def test_what_changes_a_model_does_not_change_a_balancer():
    balancer = StaticLossBalancer(0.3)
    expected = balancer(example())
    balancer.eval()
    assert_same_bits(balancer(example()), expected)
    half = nnx.merge(nnx.split(balancer)[0], jax.tree.map(lambda x: x.astype(jnp.float16), nnx.state(balancer)))
    assert_same_bits(half(example()), expected)


def test_split_and_merge():
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    graphdef, state = nnx.split(balancer)
    assert graphdef == nnx.split(StaticLossBalancer([0.1, 0.2, 0.3]))[0]
    assert hash(graphdef) == hash(nnx.split(StaticLossBalancer([0.1, 0.2, 0.3]))[0])
    assert graphdef != nnx.split(StaticLossBalancer([0.1, 0.2, 0.4]))[0]
    merged = nnx.merge(graphdef, state)
    assert merged.kd_loss_weight == [0.1, 0.2, 0.3]
    assert_same_bits(merged(example()), balancer(example()))
    assert_same_bits(nnx.clone(balancer)(example()), balancer(example()))
