"""`div` and `rmul`: what the quotient is made of, errors, and what JAX does to a function. Their bits: `test_div.py`.

Of `exp`, `log`, `sqrt` and `softmax`: what they are lowered to, and how they are sharded. The rest: `test_elementary.py`.
"""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from loss_balancers.jax.portable import exp, log, logsumexp, softmax, sqrt
from loss_balancers.jax.portable.division import div, quotient, rmul
from loss_balancers.parity.bits import array_bits, assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64

X, Y = jnp.float32(3.0), jnp.float32(-7.0)
DTYPES = [np.float32, np.float64]
each_function = pytest.mark.parametrize("function", [div, rmul])


def off_by(ulp):
    """A division that is wrong by as many units in the last place."""

    def estimate(a, b):
        integer = jnp.int32 if a.dtype == jnp.float32 else jnp.int64
        return lax.bitcast_convert_type(lax.bitcast_convert_type(a / b, integer) + ulp, a.dtype)

    return estimate


def significands(dtype):
    rng = np.random.default_rng(0)
    return rng.uniform(1, 2, (2, 200_000)).astype(dtype)


@pytest.mark.parametrize("ulp", [-30, -4, -3, -2, -1, 1, 2, 3, 4, 30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_division_is_repaired(dtype, ulp):
    a, b = significands(dtype)
    with enable_x64(dtype is np.float64):
        assert_same_bits(jax.jit(lambda a, b: quotient(a, b, off_by(ulp)))(a, b), a / b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_division_by_a_rounded_reciprocal_is_repaired(dtype):
    a, b = significands(dtype)
    with enable_x64(dtype is np.float64):
        estimate = lambda a, b: a * (1 / b)  # noqa: E731
        assert (array_bits(jax.jit(estimate)(a, b)) != array_bits(a / b)).any()
        assert_same_bits(jax.jit(lambda a, b: quotient(a, b, estimate))(a, b), a / b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_useless_division_is_not_repaired(dtype):
    """So the estimate that a test hands in is the one that is used."""
    a, b = significands(dtype)
    with enable_x64(dtype is np.float64):
        assert (array_bits(quotient(a, b, off_by(2000))) != array_bits(a / b)).any()


@each_function
@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        pytest.param(3.0, Y, TypeError, "Received float and float32", id="a-number"),
        pytest.param(X, [1.0], TypeError, "Received float32 and list", id="a-list"),
        pytest.param(jnp.int32(3), jnp.int32(7), TypeError, "two of float64. Received int32 and int32", id="ints"),
        pytest.param(jnp.bfloat16(3), jnp.bfloat16(7), TypeError, "Received bfloat16 and bfloat16", id="narrow"),
        pytest.param(X, jnp.bfloat16(7), TypeError, "Received float32 and bfloat16. Convert", id="two-dtypes"),
        pytest.param(X, jnp.ones(2), ValueError, r"one shape. Received \(\) and \(2,\). Broadcast", id="two-shapes"),
    ],
)
def test_errors(function, a, b, error, words):
    with pytest.raises(error, match=words):
        function(a, b)


@each_function
def test_numpy_arrays_may_be_operands(function):
    assert_same_bits(function(np.float32(3), np.array(-7, np.float32)), function(X, Y))


@each_function
def test_weakly_typed_operands(function):
    assert_same_bits(function(jnp.asarray(3.0), Y), function(X, Y))
    assert_same_bits(jax.grad(function)(jnp.asarray(3.0), jnp.asarray(-7.0)), jax.grad(function)(X, Y))


@each_function
def test_vmap(function):
    x = jnp.linspace(-3, 5, 12, dtype=jnp.float32)
    matrix = x.reshape(3, 4)
    assert_same_bits(jax.vmap(function)(x, x[::-1]), function(x, x[::-1]))
    assert_same_bits(jax.vmap(function, (0, None))(x, Y), function(x, jnp.full_like(x, Y)))
    assert_same_bits(jax.vmap(function, (None, 0))(Y, x), function(jnp.full_like(x, Y), x))
    assert_same_bits(jax.vmap(function, (1, 0))(matrix, matrix.T), function(matrix.T, matrix.T))
    assert_same_bits(jax.vmap(jax.vmap(function, (None, 0)), (0, None))(x, x), function(*jnp.meshgrid(x, x, indexing="ij")))


@each_function
def test_vmap_of_grad_and_grad_of_vmap(function):
    x = jnp.linspace(1, 5, 12, dtype=jnp.float32)
    ones = jnp.ones_like(x)
    expected = jax.vjp(function, x, jnp.full_like(x, Y))[1](ones)
    gradients = jax.vmap(jax.grad(function, (0, 1)), (0, None))(x, Y)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_same_bits(gradient, wanted)
    to_x, to_y = jax.grad(lambda x, y: jax.vmap(function, (0, None))(x, y).sum(), (0, 1))(x, Y)
    assert_same_bits(to_x, expected[0])
    np.testing.assert_allclose(to_y, expected[1].sum(), rtol=1e-6)


@each_function
@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_jit_of_a_derivative_has_the_bits_of_eager(function, derivative):
    step = derivative(function, (0, 1))
    for got, wanted in zip(jax.jit(step)(X, Y), step(X, Y), strict=True):
        assert_same_bits(got, wanted)


@each_function
def test_scan_and_remat(function):
    x = jnp.linspace(1, 2, 9, dtype=jnp.float32)

    def chain(start, remat):
        step = jax.checkpoint(function) if remat else function
        return lax.scan(lambda carry, factor: (step(carry, factor), carry), start, x)[0]

    expected = X
    for factor in x:
        expected = function(expected, factor)
    for remat in (False, True):
        value, gradient = jax.jit(jax.value_and_grad(lambda start: chain(start, remat)))(X)  # noqa: B023
        assert_same_bits(value, expected)
        np.testing.assert_allclose(gradient, value / X, rtol=1e-6)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_second_order(mode):
    a, b = 3.0, -7.0
    hessian = jax.jit(mode(jax.grad(div, (0, 1)), (0, 1)))(X, Y)
    np.testing.assert_allclose(hessian, [[0, -1 / b**2], [-1 / b**2, 2 * a / b**3]], rtol=1e-6)
    assert_same_bits(np.array(mode(jax.grad(rmul, (0, 1)), (0, 1))(X, Y)), np.array([[0, 1], [1, 0]], np.float32))


def test_one_array_as_both_operands():
    assert_same_bits(div(X, X), jnp.float32(1))
    assert_same_bits(jax.grad(lambda x: div(x, x))(X), jnp.float32(0))
    assert_same_bits(jax.grad(lambda x: rmul(x, x))(X), jnp.float32(6))


def test_a_constant_operand_has_no_gradient():
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: div(x, lax.stop_gradient(x))))(X))
    assert jaxpr.count("loss_balancers_quotient") == 2  # value and the gradient to the dividend
    assert "product" not in jaxpr


SHARDED = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
from loss_balancers.jax.portable import div, exp, log, logsumexp, rmul, softmax, sqrt
from loss_balancers.parity.bits import assert_same_bits

mesh = Mesh(np.array(jax.devices()), ("i",))
x = jnp.arange(1, 9, dtype=jnp.float32)
y = jnp.float32(-7)
spread = lambda y: jnp.full_like(x, y)
for function in (div, rmul):
    # What differs between devices with what differs, and with what does not.
    for operands, at, expected in (
        ((x, x[::-1]), (P("i"), P("i")), jax.vjp(function, x, x[::-1])),
        ((x, y), (P("i"), P()), jax.vjp(function, x, spread(y))),
        ((y, x), (P(), P("i")), jax.vjp(function, spread(y), x)),
    ):
        f = lambda *operands: function(*(v.reshape(()) for v in operands))[None]
        mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=at, out_specs=P("i")))
        assert_same_bits(mapped(*operands), expected[0])
        gradients = jax.jit(jax.grad(lambda *operands: mapped(*operands).sum(), (0, 1)))(*operands)
        for gradient, wanted in zip(gradients, expected[1](jnp.ones(8))):
            if gradient.ndim:
                assert_same_bits(gradient, wanted)
            else:
                np.testing.assert_allclose(gradient, wanted.sum(), rtol=1e-6)
placed = jax.device_put(x, jax.NamedSharding(mesh, P("i")))
assert len(jax.jit(div)(placed, placed).sharding.device_set) == 8
for function in (exp, log, sqrt):
    mapped = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("i"), out_specs=P("i")))
    assert_same_bits(mapped(x), function(x))
    assert_same_bits(jax.jit(jax.grad(lambda x: mapped(x).sum()))(x), jax.vmap(jax.grad(function))(x))
rows = jnp.linspace(-3, 4, 64, dtype=jnp.float32).reshape(8, 8)
for function in (softmax, logsumexp):
    mapped = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("i"), out_specs=P("i")))
    assert_same_bits(mapped(rows), function(rows))
    for spread in (P("i"), P(None, "i")):  # the second adds across devices
        assert_same_bits(jax.jit(function)(jax.device_put(rows, jax.NamedSharding(mesh, spread))), function(rows))
print("same bits")
"""


def test_shard_map_over_eight_devices():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert result.stdout.strip() == "same bits", result.stderr


def test_tpu_has_a_lowering_of_float64_without_its_bits():
    """On TPU float64 is two float32, so that the bits of one mean nothing."""
    operand = jax.ShapeDtypeStruct((), jnp.float32)
    assert "bitcast" in jax.jit(div).trace(operand, operand).lower(lowering_platforms=("tpu",)).as_text()
    with enable_x64(True):
        operand = jax.ShapeDtypeStruct((), jnp.float64)
        assert "bitcast" not in jax.jit(div).trace(operand, operand).lower(lowering_platforms=("tpu",)).as_text()
        assert "bitcast" in jax.jit(div).trace(operand, operand).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("function", [exp, log, sqrt, softmax, logsumexp])
def test_elementary_functions_are_integers_on_every_platform(function, platform):
    """Not the device's own function, no float64, no division of 64-bit integers: that takes a TPU compiler half a minute."""
    operand = jax.ShapeDtypeStruct((8,), jnp.float32)
    text = jax.jit(function).trace(operand).lower(lowering_platforms=(platform,)).as_text()
    assert "i64" in text
    assert "f64" not in text
    assert not re.search(r"stablehlo\.(exponential|log|logistic)\b", text)
    assert not re.search(r"stablehlo\.(divide|remainder).*i64", text)


def test_the_search_for_a_device_s_own_function_finds_it():
    operand = jax.ShapeDtypeStruct((8,), jnp.float32)
    for function, name in ((jnp.exp, "exponential"), (jnp.log, "log")):
        text = jax.jit(function).trace(operand).lower(lowering_platforms=("tpu",)).as_text()
        assert re.search(rf"stablehlo\.{name}\b", text)


def test_functions_work_where_jit_is_switched_off():
    x = jnp.asarray([0.5, 2.0, 3.0])
    with jax.disable_jit():
        given = [function(x) for function in (exp, log, sqrt, softmax, logsumexp)]
    for function, found in zip((exp, log, sqrt, softmax, logsumexp), given, strict=True):
        assert_same_bits(found, function(x))
