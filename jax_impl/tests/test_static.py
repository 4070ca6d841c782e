"""`StaticLossBalancer`: no state, no surprises, and the bits of the exact reference."""

import copy
import itertools
import math
import operator
import pickle
import random
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from loss_balancers import spec
from loss_balancers.jax import StaticLossBalancer
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import MODULES_ARE_PYTREES, enable_x64

DTYPES = {name: jnp.dtype(fmt.dtype) for name, fmt in spec.FORMATS.items()}
FORMS = {
    "number": 0.3,
    "list": [0.1, 0.2, 0.3],
    "tuple": (0.1, 0.2, 0.3),
    "mapping": {"M_2": 0.1, "M_0": 0.3, "M_1": 0.2},
    "mapping-with-student": {"M_2": 0.1, "M_0": 0.3, "M_1": 0.2, "student_loss": 0.4},
}


def example(dtype=jnp.float32):
    values = {"M_1": 0.7, "student_loss": 1.3, "M_0": 2.9, "M_2": 0.11}
    return {name: jnp.asarray(value, dtype) for name, value in values.items()}


def aggregate_and_gradients(balancer, losses):
    aggregate, vjp = jax.vjp(balancer, losses)
    return aggregate, vjp(jnp.ones_like(aggregate))[0]


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


@pytest.mark.parametrize(
    "make_copy", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["copy", "deepcopy", "pickle"]
)
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
def test_copies(make_copy, called):
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    balancer.set_student_loss_reduction_fn(operator.neg)
    if called:
        balancer(example())
    other = make_copy(balancer)
    assert_same_bits(other(example()), balancer(example()))
    assert other.kd_loss_weight == [0.1, 0.2, 0.3]
    other.set_student_loss_reduction_fn(None)
    assert balancer(example()) != other(example())  # the original still has its reduction


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_attributes_are_as_given_and_read_only(given):
    balancer = StaticLossBalancer(given)
    assert balancer.kd_loss_weight == given
    assert type(balancer.kd_loss_weight) is type(given)
    assert str(balancer) == repr(balancer) == f"StaticLossBalancer(kd_loss_weight={balancer.kd_loss_weight})"
    for name in ("kd_loss_weight", "student_loss_weight"):
        with pytest.raises(AttributeError, match=name):
            setattr(balancer, name, 0.5)


def test_default():
    assert StaticLossBalancer().kd_loss_weight == 0.5
    assert StaticLossBalancer().student_loss_weight == 0.5


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_the_order_of_the_dict_does_not_matter(given):
    balancer = StaticLossBalancer(given)
    losses = example()
    expected, gradients = aggregate_and_gradients(balancer, losses)
    for items in itertools.permutations(losses.items()):
        aggregate, shuffled = aggregate_and_gradients(balancer, dict(items))
        assert_same_bits(aggregate, expected)
        for name in losses:
            assert_same_bits(shuffled[name], gradients[name])


def test_the_callers_dict_is_unchanged():
    balancer = StaticLossBalancer(0.3)
    balancer.set_student_loss_reduction_fn(jnp.sqrt)
    losses = example()
    before = dict(losses)
    values = {name: jnp.copy(x) for name, x in losses.items()}
    balancer(losses)
    assert list(losses) == list(before)
    for name, x in losses.items():
        assert x is before[name]
        assert_same_bits(x, values[name])


def test_weights():
    balancer = StaticLossBalancer([0.1, 0.2])
    weights = balancer.weights({"M_10": None, "student_loss": None, "M_9": None})
    assert list(weights.items()) == [("M_9", 0.1), ("M_10", 0.2), ("student_loss", 1.0 - (0.1 + 0.2))]
    assert StaticLossBalancer(0.3).weights(example()) == {"M_0": 0.3, "M_1": 0.3, "M_2": 0.3, "student_loss": 0.7}


def test_a_dropped_student_weight_warns_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer, another = StaticLossBalancer(0.3), StaticLossBalancer(0.3)  # not at construction
        balancer.weights({"M_0": None})  # nor by asking for the weights
    losses = {"M_0": jnp.float32(2.0)}
    with pytest.warns(UserWarning, match=r"The student loss has weight 0\.7 .* is dropped") as caught:
        assert_same_bits(balancer(losses), jnp.float32(2.0) * jnp.float32(0.3))
    assert [warning.filename for warning in caught] == [__file__]
    balancer(losses)
    with pytest.warns(UserWarning, match=r"weight 0\.7"):
        another(losses)


@pytest.mark.parametrize("given", [1.0, [1.0], {"M_0": 1.0}, {"M_0": 1.0, "student_loss": 0.0}], ids=str)
def test_a_weight_of_zero_is_dropped_in_silence(given):
    assert_same_bits(StaticLossBalancer(given)({"M_0": jnp.float32(2.0)}), jnp.float32(2.0))


def test_a_student_of_weight_zero_stays_in_the_graph():
    losses = {"M_0": jnp.float32(2.0), "student_loss": jnp.float32(3.0)}
    aggregate, gradients = aggregate_and_gradients(StaticLossBalancer(1.0), losses)
    assert_same_bits(aggregate, jnp.float32(2.0))
    assert_same_bits(gradients["student_loss"], jnp.float32(0.0))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), (1, 1)], ids=str)
def test_shapes(shape, given):
    balancer = StaticLossBalancer(given)
    losses = {name: jax.random.normal(jax.random.key(i), shape) for i, name in enumerate(example())}
    aggregate, gradients = aggregate_and_gradients(balancer, losses)
    elements = [balancer({name: x.ravel()[i] for name, x in losses.items()}) for i in range(math.prod(shape))]
    assert_same_bits(aggregate, jnp.stack(elements).reshape(shape) if elements else jnp.empty(shape))
    assert aggregate.shape == shape
    for name, weight in balancer.weights(losses).items():
        assert_same_bits(gradients[name], jnp.full(shape, weight))


HARD = (0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-130, 1.5 * 2.0**-126, -(2.0**-126), 3e-8, 6e4, 1.0)


def draw(rng, fmt):
    value = rng.choice(HARD) if rng.random() < 0.3 else rng.gauss(0, 1) * 2.0 ** rng.randint(-8, 8)
    return spec.round_to(Fraction(value), fmt) if math.isfinite(value) and value != 0 else value


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "formats",
    [
        ["bf16"] * 4,
        ["f16"] * 4,
        ["f32"] * 4,
        ["f64"] * 4,
        ["bf16", "f16", "bf16", "f16"],
        ["f32", "bf16", "f16", "f32"],
        ["f64", "bf16", "f16", "f32"],
    ],
    ids="-".join,
)
@enable_x64(True)
def test_the_bits_of_the_exact_reference(formats, given):
    balancer = StaticLossBalancer(given)
    rng = random.Random(str(formats))
    for _ in range(12):
        values = {name: (fmt, draw(rng, fmt)) for name, fmt in zip(example(), formats, strict=True)}
        losses = {name: jnp.asarray(x, DTYPES[fmt]) for name, (fmt, x) in values.items()}
        expected, expected_gradients = spec.static_reference(spec.StaticLossBalancerSettings(given), values)
        aggregate, gradients = aggregate_and_gradients(balancer, losses)
        assert_same_bits(aggregate, jnp.asarray(expected, DTYPES[spec.result_format(formats)]), nan="class")
        for name, (fmt, _) in values.items():
            assert_same_bits(gradients[name], jnp.asarray(expected_gradients[name], DTYPES[fmt]))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["M_0", "M_2", "student_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_propagate(value, name, given):
    losses = {**example(), name: jnp.float32(value)}
    assert_same_bits(StaticLossBalancer(given)(losses), jnp.float32(value), nan="class")


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_gradient_at_a_zero_loss_is_the_weight(zero, given):
    balancer = StaticLossBalancer(given)
    losses = {name: jnp.float32(zero) for name in example()}
    aggregate, gradients = aggregate_and_gradients(balancer, losses)
    assert_same_bits(aggregate, jnp.float32(0.0))
    for name, weight in balancer.weights(losses).items():
        assert_same_bits(gradients[name], jnp.float32(weight))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_scaling_the_losses_by_two_scales_the_aggregate(given):
    balancer = StaticLossBalancer(given)
    assert_same_bits(balancer({name: x * 2 for name, x in example().items()}), balancer(example()) * 2)


def test_equal_losses():
    x = jnp.float32(0.7)
    assert_same_bits(StaticLossBalancer(0.5)({"M_0": x, "student_loss": x}), x)
