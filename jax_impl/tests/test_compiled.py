"""`jax.jit` and `nnx.jit` give what eager gives, alone and within a larger graph, and are traced once."""

import itertools
import warnings
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loss_balancers.jax import DistillationLossBalancer, StaticLossBalancer, functional
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64

NAMES = ("M_10", "M_2", "student_loss", "M_1")
FORMS = {"number": 0.3, "sequence": [0.1, 0.2, 0.3]}
each_jit = pytest.mark.parametrize(
    "jit", [pytest.param(jax.jit, marks=pytest.mark.needs_pytrees), nnx.jit], ids=["jax-jit", "nnx-jit"]
)


def draws(count, shape=()):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in NAMES}


def step(balancer, losses):
    aggregate, vjp = jax.vjp(balancer, losses)
    return aggregate, vjp(jnp.ones_like(aggregate))[0]


def assert_same_step(actual, expected):
    jax.tree.map(assert_same_bits, actual, expected)


@each_jit
@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_compiled_gives_what_eager_gives(given, jit):
    balancer = StaticLossBalancer(given)
    compiled = jit(step)
    for losses in draws(50):
        assert_same_step(compiled(balancer, losses), step(balancer, losses))


@pytest.mark.parametrize("embedded_jit", [True, False], ids=["jit-in-jit", "plain"])
def test_losses_computed_inside_the_graph(embedded_jit):
    """The aggregate is that of the losses as they are stored, though the compiler holds bfloat16 and float16 in float32."""
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    dtypes = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.bfloat16)

    def model(a, b):
        losses = {}
        for i, (name, dtype) in enumerate(zip(NAMES, dtypes, strict=True)):
            x, y = a.astype(dtype), b.astype(dtype)
            losses[name] = (x * y + x) * (0.3 + i)
        return (jax.jit(balancer) if embedded_jit else balancer)(losses), losses

    a, b = (jax.random.normal(jax.random.key(i), (4000,)) for i in range(2))
    aggregate, losses = jax.jit(model)(a, b)
    assert_same_bits(aggregate, balancer(losses))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_an_aggregate_that_goes_on_inside_the_graph(dtype):
    """It is rounded to its format before it is used."""
    balancer = StaticLossBalancer(0.3)

    def model(x, y):
        aggregate = balancer({"M_0": x, "student_loss": y})
        return aggregate, aggregate.astype(jnp.float32) * 3.0

    x, y = (jax.random.normal(jax.random.key(i), (1000,)).astype(dtype) for i in range(2))
    aggregate, after = jax.jit(model)(x, y)
    assert_same_bits(aggregate, balancer({"M_0": x, "student_loss": y}))
    assert_same_bits(after, aggregate.astype(jnp.float32) * 3.0)


@each_jit
@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_one_trace_whatever_the_order_and_the_instance(given, jit):
    traces = []

    @jit
    def compiled(balancer, losses):
        traces.append(balancer.kd_loss_weight)
        return balancer(losses)

    (losses,) = draws(1)
    expected = StaticLossBalancer(given)(losses)
    for items in itertools.permutations(losses.items()):
        assert_same_bits(compiled(StaticLossBalancer(given), dict(items)), expected)
    assert len(traces) == 1
    compiled(StaticLossBalancer([0.3, 0.2, 0.1]), losses)
    assert len(traces) == 2  # other weights are another function


@each_jit
def test_weighted_sum_and_a_balancer_of_ones_own(jit):
    class Mine(DistillationLossBalancer):
        def __call__(self, loss):
            losses = self.canonical(loss)
            return functional.weighted_sum(list(losses.values()), [3.0, *[0.5] * (len(losses) - 1)])

    balancer = Mine()
    balancer.set_student_loss_reduction_fn(jnp.exp)
    for losses in draws(5):
        assert_same_step(jit(step)(balancer, losses), step(balancer, losses))


@each_jit
def test_a_dropped_student_weight_warns_once(jit):
    traces = []

    @jit
    def compiled(balancer, losses):
        traces.append(1)
        return balancer(losses)

    balancer = StaticLossBalancer(0.3)
    losses = {"M_0": jnp.float32(1.0)}
    with pytest.warns(UserWarning, match=r"weight 0\.7"):
        compiled(balancer, losses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(compiled(balancer, losses), jnp.float32(0.3))
        assert_same_bits(balancer(losses), jnp.float32(0.3))
    assert len(traces) == 1


@each_jit
@pytest.mark.parametrize("x64", [False, True], ids=["x64-off", "x64-on"])
def test_x64_changes_nothing_for_float32(x64, jit):
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    (losses,) = draws(1)
    expected = step(balancer, losses)
    with enable_x64(x64):
        assert_same_step(jit(step)(balancer, losses), expected)
        assert_same_step(step(balancer, losses), expected)


def test_float64_losses_with_x64():
    with enable_x64(True):
        balancer = StaticLossBalancer(0.3)
        x, y = jnp.float64(0.1), jnp.float64(0.7)
        expected = np.float64(0.3) * 0.1 + np.float64(0.7) * 0.7
        assert_same_bits(jax.jit(balancer)({"M_0": x, "student_loss": y}), expected)


def test_numpy_arrays_as_losses():
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    (losses,) = draws(1)
    arrays: Any = {name: np.asarray(x) for name, x in losses.items()}
    assert_same_bits(balancer(arrays), balancer(losses))
    assert_same_bits(jax.jit(balancer)(arrays), balancer(losses))
    wide: Any = {name: np.float64(x) for name, x in losses.items()}  # float32, as jit makes of it
    assert_same_bits(balancer(wide), balancer(losses))
    assert_same_bits(jax.jit(balancer)(wide), balancer(losses))


def test_export():
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    (losses,) = draws(1)
    exported = jax.export.export(jax.jit(balancer))(losses)
    assert_same_bits(exported.call(losses), balancer(losses))


def test_lowered_for_tpu_and_cuda():
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    (losses,) = draws(1)
    exported = jax.export.export(jax.jit(balancer), platforms=["tpu", "cuda"])(losses)
    assert exported.platforms == ("tpu", "cuda")


def test_errors_keep_their_class_and_words():
    with pytest.raises(ValueError, match="one weight per KD loss"):
        jax.jit(StaticLossBalancer([0.5, 0.25]))({"M_0": jnp.float32(1.0)})
