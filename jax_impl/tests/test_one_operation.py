"""The weighted sum is one operation to JAX, whatever the number of losses; many scalars are a vector, with the bits of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_balancers.jax import StaticLossBalancer, autograd
from loss_balancers.jax.functional import weighted_sum
from loss_balancers.parity.bits import assert_same_bits

#: One more than a chain has; what one block adds; a block and one; two blocks and one.
LONG = (autograd.MOST_CHAINED + 1, autograd.ADDED_AT_ONCE + 1, autograd.ADDED_AT_ONCE + 2, 2 * autograd.ADDED_AT_ONCE + 2)


def drawn(count, dtypes=(jnp.float32,)):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count) * 2.0 ** rng.integers(-8, 8, count)
    return [jnp.asarray(x, dtypes[i % len(dtypes)]) for i, x in enumerate(values)], list(rng.random(count) / count)


@pytest.mark.parametrize("kd", [1, 4, 40])
def test_as_many_operations_whatever_the_number_of_losses(kd):
    losses = {name: jnp.float32(1.0) for name in [f"M_{i}" for i in range(kd)] + ["student_loss"]}
    balancer = StaticLossBalancer([0.5 / kd] * kd)
    assert len(jax.make_jaxpr(balancer)(losses).eqns) == 1
    assert len(jax.make_jaxpr(jax.value_and_grad(balancer))(losses).eqns) == 2


def test_the_count_can_see():
    assert len(jax.make_jaxpr(sum)([jnp.float32(1.0)] * 5).eqns) >= 4


def of_many(terms, weights):
    return jax.value_and_grad(lambda terms: weighted_sum(terms, weights, dtype=jnp.float32))(terms)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("dtypes", [(jnp.float32,), (jnp.float16, jnp.float32, jnp.bfloat16)], ids=["f32", "mixed"])
@pytest.mark.parametrize("count", LONG)
def test_a_vector_gives_what_a_chain_gives(count, dtypes, monkeypatch):
    terms, weights = drawn(count, dtypes)
    on_device = jnp.asarray(weights, jnp.float32)
    calls = [jax.jit(lambda terms: of_many(terms, weights)), lambda terms: of_many(terms, weights)]
    actual = [call(terms) for call in (*calls, jax.jit(lambda terms: of_many(terms, on_device)))]
    monkeypatch.setattr(autograd, "MOST_CHAINED", 10**6)
    jax.clear_caches()
    expected = of_many(terms, weights)
    jax.clear_caches()
    for each in actual:
        jax.tree.map(assert_same_bits, each, expected)


@pytest.mark.parametrize("count", LONG[:2])
def test_transforms_of_many_scalars(count):
    terms, weights = drawn(count)
    expected, gradient = of_many(terms, weights)

    def total(terms):
        return weighted_sum(terms, weights)

    rows = [jnp.stack([x, -x, x]) for x in terms]
    assert_same_bits(jax.jit(jax.vmap(total))(rows)[0], expected)
    assert_same_bits(jax.jvp(total, (terms,), (terms,))[1], expected)  # linear
    assert_same_bits(jax.jit(jax.checkpoint(total))(terms), expected)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, jax.value_and_grad(total)(row)), 0.0, rows)
    jax.tree.map(lambda x, y: assert_same_bits(x[0], y), scanned, (expected, gradient))


def test_a_vector_of_weights_for_each_row():
    terms, _ = drawn(5)
    rows = [jnp.stack([x, 2 * x, 3 * x]) for x in terms]
    weights = jnp.arange(1.0, 16.0).reshape(3, 5) / 10
    aggregates, gradients = jax.vmap(of_many)(rows, weights)
    nested, _ = jax.vmap(jax.vmap(of_many, in_axes=(0, None)), in_axes=(None, 0))(rows, weights)
    for i in range(3):
        expected, gradient = of_many([x[i] for x in rows], weights[i])
        assert_same_bits(aggregates[i], expected)
        assert_same_bits(nested[i, i], expected)
        jax.tree.map(lambda x, y, i=i: assert_same_bits(x[i], y), gradients, gradient)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_gradient_is_transposed_into_the_sum(jit):
    """A8: each of the two maps is the other's transpose, with its rounding and its order."""
    rng = np.random.default_rng(0)
    cotangents = [jnp.asarray(rng.normal(size=1000), jnp.float32) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]

    def gradient(g):
        return jax.vjp(lambda terms: weighted_sum(terms, weights), cotangents)[1](g)[0]

    def transposed(cotangents):
        return jax.vjp(gradient, cotangents[0])[1](cotangents)[0]

    assert_same_bits(jit(transposed)(cotangents), weighted_sum(cotangents, weights))


def test_a_term_that_does_not_move_takes_no_part_in_the_tangent():
    """A weight may be infinite: 0 times it would be NaN."""
    weights = jnp.asarray([jnp.inf, 0.5], jnp.float32)
    _, tangent = jax.jvp(lambda x: weighted_sum([jnp.float32(1.0), x], weights), (jnp.float32(2.0),), (jnp.float32(4.0),))
    assert_same_bits(tangent, jnp.float32(2.0))
