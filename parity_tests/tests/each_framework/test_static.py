"""`StaticLossBalancer`: no state, no surprises, and the bits of the exact reference."""

import copy
import itertools
import math
import operator
import pickle
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest

from loss_balancers import spec
from loss_balancers.parity.bits import as_numpy, assert_same_bits

FORMS = {
    "number": 0.3,
    "list": [0.1, 0.2, 0.3],
    "tuple": (0.1, 0.2, 0.3),
    "mapping": {"M_2": 0.1, "M_0": 0.3, "M_1": 0.2},
    "mapping-with-student": {"M_2": 0.1, "M_0": 0.3, "M_1": 0.2, "student_loss": 0.4},
}


@pytest.fixture
def static(framework):
    """Makes the balancer."""
    return framework.balancers.StaticLossBalancer


@pytest.fixture
def example(framework):
    """Makes losses, the same ones each time."""
    values = {"M_1": 0.7, "student_loss": 1.3, "M_0": 2.9, "M_2": 0.11}
    return lambda: {name: framework.loss(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "make_copy", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["copy", "deepcopy", "pickle"]
)
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
def test_copies(static, example, make_copy, called):
    balancer = static([0.1, 0.2, 0.3])
    balancer.set_student_loss_reduction_fn(operator.neg)
    if called:
        balancer(example())
    other = make_copy(balancer)
    assert_same_bits(other(example()), balancer(example()))
    assert other.kd_loss_weight == [0.1, 0.2, 0.3]
    other.set_student_loss_reduction_fn(None)
    assert balancer(example()) != other(example())  # the original still has its reduction


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_attributes_are_as_given_and_read_only(static, given):
    balancer = static(given)
    assert balancer.kd_loss_weight == given
    assert type(balancer.kd_loss_weight) is type(given)
    assert str(balancer) == repr(balancer) == f"StaticLossBalancer(kd_loss_weight={balancer.kd_loss_weight})"
    for name in ("kd_loss_weight", "student_loss_weight"):
        with pytest.raises(AttributeError, match=name):
            setattr(balancer, name, 0.5)


def test_default(static):
    assert static().kd_loss_weight == 0.5
    assert static().student_loss_weight == 0.5


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_the_order_of_the_dict_does_not_matter(framework, static, example, given):
    balancer = static(given)
    losses = example()
    expected, gradients = framework.differentiate(balancer, losses)
    for items in itertools.permutations(losses.items()):
        aggregate, shuffled = framework.differentiate(balancer, dict(items))
        assert_same_bits(aggregate, expected)
        for name in losses:
            assert_same_bits(shuffled[name], gradients[name])


def test_the_callers_dict_is_unchanged(framework, static, example):
    balancer = static(0.3)
    balancer.set_student_loss_reduction_fn(framework.xp.sqrt)
    losses = example()
    before = dict(losses)
    values = {name: as_numpy(x).copy() for name, x in losses.items()}
    balancer(losses)
    assert list(losses) == list(before)
    for name, x in losses.items():
        assert x is before[name]
        assert_same_bits(x, values[name])


def test_weights(static, example):
    balancer = static([0.1, 0.2])
    weights = balancer.weights({"M_10": None, "student_loss": None, "M_9": None})
    assert list(weights.items()) == [("M_9", 0.1), ("M_10", 0.2), ("student_loss", 1.0 - (0.1 + 0.2))]
    assert static(0.3).weights(example()) == {"M_0": 0.3, "M_1": 0.3, "M_2": 0.3, "student_loss": 0.7}


def test_a_dropped_student_weight_warns_once(framework, static):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer, another = static(0.3), static(0.3)  # not at construction
        balancer.weights({"M_0": None})  # nor by asking for the weights
    losses = {"M_0": framework.array(2.0)}
    with pytest.warns(UserWarning, match=r"The student loss has weight 0\.7 .* is dropped") as caught:
        assert_same_bits(balancer(losses), framework.array(2.0) * framework.array(0.3))
    assert [warning.filename for warning in caught] == [__file__]
    balancer(losses)
    with pytest.warns(UserWarning, match=r"weight 0\.7"):
        another(losses)


@pytest.mark.parametrize("given", [1.0, [1.0], {"M_0": 1.0}, {"M_0": 1.0, "student_loss": 0.0}], ids=str)
def test_a_weight_of_zero_is_dropped_in_silence(framework, static, given):
    assert_same_bits(static(given)({"M_0": framework.array(2.0)}), framework.array(2.0))


def test_a_student_of_weight_zero_stays_in_the_graph(framework, static):
    losses = {"M_0": framework.loss(2.0), "student_loss": framework.loss(3.0)}
    aggregate, gradients = framework.differentiate(static(1.0), losses)
    assert_same_bits(aggregate, framework.array(2.0))
    assert_same_bits(gradients["student_loss"], framework.array(0.0))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), (1, 1)], ids=str)
def test_shapes(framework, static, example, shape, given):
    balancer = static(given)
    rng = np.random.default_rng(0)
    losses = {name: framework.loss(rng.standard_normal(shape)) for name in example()}
    aggregate, gradients = framework.differentiate(balancer, losses)
    elements = [balancer({name: x.flatten()[i] for name, x in losses.items()}) for i in range(math.prod(shape))]
    assert_same_bits(aggregate, framework.xp.stack(elements).reshape(shape) if elements else framework.xp.empty(shape))
    assert aggregate.shape == shape
    for name, weight in balancer.weights(losses).items():
        assert_same_bits(gradients[name], framework.xp.full(shape, weight))


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
def test_the_bits_of_the_exact_reference(framework, static, example, formats, given):
    balancer = static(given)
    rng = random.Random(str(formats))
    dtypes = {name: fmt.dtype for name, fmt in spec.FORMATS.items()}
    with framework.float64():
        for _ in range(12):
            values = {name: (fmt, draw(rng, fmt)) for name, fmt in zip(example(), formats, strict=True)}
            losses = {name: framework.loss(x, dtypes[fmt]) for name, (fmt, x) in values.items()}
            expected, expected_gradients = spec.static_reference(spec.StaticLossBalancerSettings(given), values)
            aggregate, gradients = framework.differentiate(balancer, losses)
            assert_same_bits(aggregate, framework.array(expected, dtypes[spec.result_format(formats)]), nan="class")
            for name, (fmt, _) in values.items():
                assert_same_bits(gradients[name], framework.array(expected_gradients[name], dtypes[fmt]))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["M_0", "M_2", "student_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_propagate(framework, static, example, value, name, given):
    losses = {**example(), name: framework.array(value)}
    assert_same_bits(static(given)(losses), framework.array(value), nan="class")


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_gradient_at_a_zero_loss_is_the_weight(framework, static, example, zero, given):
    balancer = static(given)
    losses = {name: framework.loss(zero) for name in example()}
    aggregate, gradients = framework.differentiate(balancer, losses)
    assert_same_bits(aggregate, framework.array(0.0))
    for name, weight in balancer.weights(losses).items():
        assert_same_bits(gradients[name], framework.array(weight))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_scaling_the_losses_by_two_scales_the_aggregate(static, example, given):
    balancer = static(given)
    assert_same_bits(balancer({name: x * 2 for name, x in example().items()}), balancer(example()) * 2)


def test_equal_losses(framework, static):
    x = framework.array(0.7)
    assert_same_bits(static(0.5)({"M_0": x, "student_loss": x}), x)
