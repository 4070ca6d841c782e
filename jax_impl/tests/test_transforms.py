"""What JAX does to a function: the aggregate and its derivatives come out the same."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loss_balancers.jax import StaticLossBalancer
from loss_balancers.parity.bits import assert_same_bits

FORMS = {"number": 0.3, "sequence": [0.1, 0.2, 0.3]}
NAMES = ("M_10", "M_2", "student_loss", "M_1")

each_form = pytest.mark.parametrize("balancer", [StaticLossBalancer(given) for given in FORMS.values()], ids=FORMS)


def draw(shape=(), dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name in NAMES}


def eager(balancer, losses):
    aggregate, vjp = jax.vjp(balancer, losses)
    return aggregate, vjp(jnp.ones_like(aggregate))[0]


def assert_same_dict(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name in expected:
        assert_same_bits(actual[name], expected[name])


@pytest.mark.needs_pytrees
@each_form
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("grad", [jax.value_and_grad, nnx.value_and_grad], ids=["jax", "nnx"])
def test_grad_with_the_module_as_argument(balancer, grad, jit):
    losses = draw()
    aggregate, gradients = jit(grad(lambda balancer, losses: balancer(losses), argnums=1))(balancer, losses)
    expected, expected_gradients = eager(balancer, losses)
    assert_same_bits(aggregate, expected)
    assert_same_dict(gradients, expected_gradients)


@each_form
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_vmap(balancer, dtype):
    losses = draw((7,), dtype)
    assert_same_bits(jax.vmap(balancer)(losses), eager(balancer, losses)[0])
    assert_same_bits(jax.jit(jax.vmap(balancer))(losses), eager(balancer, losses)[0])


@each_form
def test_vmap_of_grad(balancer):
    losses = draw((7,))
    assert_same_dict(jax.vmap(jax.grad(balancer))(losses), eager(balancer, losses)[1])


@each_form
def test_vmap_over_one_loss(balancer):
    losses = draw()
    batch = jnp.linspace(-1, 1, 5)
    aggregates = jax.vmap(lambda x: balancer({**losses, "M_2": x}))(batch)
    assert_same_bits(aggregates, jnp.stack([balancer({**losses, "M_2": x}) for x in batch]))


@each_form
def test_jvp(balancer):
    losses, tangents = draw(), draw(seed=1)
    aggregate, tangent = jax.jvp(balancer, (losses,), (tangents,))
    assert_same_bits(aggregate, balancer(losses))
    assert_same_bits(tangent, balancer(tangents))  # linear


@each_form
def test_hessian_is_zero(balancer):
    for row in jax.hessian(balancer)(draw()).values():
        for entry in row.values():
            assert_same_bits(entry, jnp.float32(0.0))


@each_form
def test_hessian_through_the_losses(balancer):
    weights = balancer.weights(draw())
    hessian = jax.hessian(lambda x: balancer(dict.fromkeys(NAMES, x * x)))(jnp.float32(3.0))
    np.testing.assert_allclose(hessian, 2.0 * sum(weights.values()), rtol=1e-6)


@each_form
def test_third_order(balancer):
    weight = sum(balancer.weights(draw()).values())

    def first(x):
        return jax.grad(lambda x: balancer(dict.fromkeys(NAMES, x**3)))(x)

    derivatives = [first, jax.grad(first), jax.grad(jax.grad(first))]
    np.testing.assert_allclose([f(jnp.float32(3.0)) for f in derivatives], np.multiply(weight, [27, 18, 6]), rtol=1e-6)


@each_form
def test_scan(balancer):
    losses = draw((9,))

    def body(carry, row):
        aggregate = balancer(row)
        return carry + aggregate, aggregate

    def total(losses):
        return jax.lax.scan(body, jnp.float32(0.0), losses)

    _, aggregates = jax.jit(total)(losses)
    assert_same_bits(aggregates, balancer(losses))
    assert_same_dict(jax.jit(jax.grad(lambda losses: total(losses)[0]))(losses), eager(balancer, losses)[1])


@each_form
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_remat(balancer, jit):
    x = jnp.asarray([0.3, 1.7, -0.9, 2.2])

    def model(x):
        return balancer(dict(zip(NAMES, x * x, strict=True)))

    aggregate, gradient = jit(jax.value_and_grad(jax.checkpoint(model)))(x)
    expected, expected_gradient = jit(jax.value_and_grad(model))(x)
    assert_same_bits(aggregate, expected)
    assert_same_bits(gradient, expected_gradient)


@each_form
def test_subnormals(balancer):
    tiny = 2.0**-126
    losses = dict(zip(NAMES, jnp.asarray([tiny / 2, tiny * 1.5, 1.0, -tiny * 3]), strict=True))
    without = dict(zip(NAMES, jnp.asarray([0.0, tiny * 1.5, 1.0, -tiny * 3]), strict=True))
    assert_same_bits(balancer(losses), balancer(without))
    assert_same_bits(jax.jit(balancer)(losses), balancer(without))


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from loss_balancers.jax import StaticLossBalancer
from loss_balancers.parity.bits import assert_same_bits

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()), ("i",))
for given in (0.3, [0.1, 0.2, 0.3]):
    balancer = StaticLossBalancer(given)
    rng = np.random.default_rng(0)
    losses = {name: rng.normal(size=16).astype(np.float32) for name in ("M_10", "M_2", "student_loss", "M_1")}
    expected, vjp = jax.vjp(balancer, losses)
    gradients = vjp(np.ones(16, np.float32))[0]
    sharded = jax.jit(jax.shard_map(balancer, mesh=mesh, in_specs=P("i"), out_specs=P("i")))
    assert_same_bits(sharded(losses), expected)
    for name, gradient in jax.jit(jax.grad(lambda losses: sharded(losses).sum()))(losses).items():
        assert_same_bits(gradient, gradients[name])
    placed = jax.device_put(losses, jax.NamedSharding(mesh, P("i")))
    aggregate = jax.jit(balancer)(placed)
    assert_same_bits(aggregate, expected)
    assert len(aggregate.sharding.device_set) == 8
print("same bits")
"""


def test_shard_map_over_eight_devices():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert result.stdout.strip() == "same bits", result.stderr
