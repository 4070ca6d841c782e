"""Losses and state that XLA knows while it compiles: it may work them out, but must not add in another order for that.

Of ``(a + 0.1) + 0.7`` XLA makes ``a + 0.8``, whatever the bits, unless it does not know one of the two.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import loss_balancers.jax
from loss_balancers.jax import functional
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

EXAMPLES = registry.examples()
WEIGHTS = [0.3, 0.2, 0.1, 0.7]


def draws(count, shape=(), seed=0):
    rng = np.random.default_rng(seed)
    return [[jnp.asarray(x) for x in rng.lognormal(0, 1, (4, *shape)).astype(np.float32)] for _ in range(count)]


@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize("known", [known for known in product((False, True), repeat=4) if sum(known) >= 2])
def test_known_terms_of_a_sum(known, shape):
    for row in draws(3, shape):
        moving = [x for x, is_known in zip(row, known, strict=True) if not is_known]

        def of(moving, row=row):
            rest = iter(moving)
            return functional.weighted_sum([x if there else next(rest) for x, there in zip(row, known, strict=True)], WEIGHTS)

        assert_same_bits(jax.jit(of)(moving), of(moving))


def test_known_terms_of_a_long_sum():
    rng = np.random.default_rng(0)
    values, weights, known = rng.lognormal(0, 1, 200).astype(np.float32), rng.uniform(0, 1, 200).tolist(), rng.random(200) < 0.8

    def of(moving):
        rest = iter(moving)
        return functional.weighted_sum(
            [jnp.asarray(x) if there else next(rest) for x, there in zip(values, known, strict=True)], weights
        )

    moving = [jnp.asarray(x) for x in values[~known]]
    assert_same_bits(jax.jit(of)(moving), of(moving))


@pytest.mark.parametrize("order", [2, 4])
def test_known_losses_of_a_slope(order):
    from loss_balancers.jax.soft_adapt import summed

    rng = np.random.default_rng(order)
    factors = rng.normal(0, 2, order + 1).astype(np.float32).tolist()
    for _ in range(8):
        rows = [jnp.asarray(x) for x in rng.lognormal(0, 1, (order + 1, 3)).astype(np.float32)]

        def of(first, rows=rows):
            return summed(jnp.stack([first, *rows[1:]]), factors)

        assert_same_bits(jax.jit(of)(rows[0]), of(rows[0]))


@pytest.mark.in_turn(3)
@pytest.mark.parametrize(("example", "place"), [(example, i % 3) for i, example in enumerate(EXAMPLES)])
def test_a_balancer_with_one_loss_that_is_not_known(example, place):
    """Its state is known too: the compiled function closes over it."""
    balancer = registry.make(EXAMPLES[example], loss_balancers.jax)
    for row in draws(3, seed=1):
        balancer.observe(dict(zip(EXAMPLE_NAMES, row, strict=False)))
        balancer.step()
    balancer.eval()
    (row,), name = draws(1), EXAMPLE_NAMES[place]
    losses = dict(zip(EXAMPLE_NAMES, row, strict=False))

    def of(x):
        return balancer({**losses, name: x})

    for function in (of, jax.grad(of)):
        assert_same_bits(jax.jit(function)(losses[name]), function(losses[name]))
