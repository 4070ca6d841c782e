"""Weights as scalars and vectors of JAX: on the host a number is a number, wherever one is taken."""
# pyright: reportArgumentType=false, reportPrivateUsage=false
#   What is given is wider than what is annotated.

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from loss_balancers.jax import (
    EMANormalizedLossBalancer,
    LogitsAndIntermediatesLossBalancer,
    ScheduledLossBalancer,
    StaticLossBalancer,
    WeightedSumLossBalancer,
)
from loss_balancers.jax.functional import weighted_sum
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import schedules

ONE = jnp.float32(1.0)
SCALARS = {
    **{name: jnp.asarray(0.1, name) for name in ("bfloat16", "float16", "float32")},
    "int32": jnp.asarray(0),
    "replicated": jax.device_put(jnp.float32(0.25), jax.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec())),
}
REFUSED = {"bool": jnp.asarray(True), "complex": jnp.asarray(0.5j)}

NAMES = ("student_loss", "MSELoss_0")

#: Every place that takes a number: from the number to something that two equal numbers make equal.
PLACES: dict[str, Callable[[Any], Any]] = {
    "static": lambda w: StaticLossBalancer(w)._settings,
    "static-list": lambda w: StaticLossBalancer([w, 0.5])._settings,
    "static-mapping": lambda w: StaticLossBalancer({"A": w})._settings,
    "scheduled": lambda w: ScheduledLossBalancer(w, NAMES)._settings,
    "scheduled-list": lambda w: ScheduledLossBalancer([w], NAMES)._settings,
    "scheduled-mapping": lambda w: ScheduledLossBalancer({"A": w})._settings,
    "weighted-sum": lambda w: WeightedSumLossBalancer({"A": w})._settings,
    "weighted-sum-student": lambda w: WeightedSumLossBalancer({"A": 1.0}, w)._settings,
    "ema-weight": lambda w: EMANormalizedLossBalancer(NAMES, {"MSELoss_0": w})._settings,
    "ema-beta": lambda w: EMANormalizedLossBalancer(NAMES, beta=w)._settings,
    "ema-eps": lambda w: EMANormalizedLossBalancer(NAMES, eps=w)._settings,
    "logits": lambda w: LogitsAndIntermediatesLossBalancer(w)._settings,
    "functional": lambda w: weighted_sum([ONE, ONE], [w, 1.0]).item(),
    "constant": schedules.constant,
    "linear": lambda w: schedules.linear(0.0, w, 4),
    "tabulate": lambda w: schedules.tabulate(lambda step: w, 2),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_on_the_host_is_a_number(scalar, place):
    value = SCALARS[scalar]
    assert PLACES[place](value) == PLACES[place](value.item())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scalar", REFUSED)
def test_a_scalar_that_is_not_a_real_number_is_refused(scalar, place):
    with pytest.raises(TypeError, match="must be a real number"):
        PLACES[place](REFUSED[scalar])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transform", [jax.jit, jax.grad], ids=["jit", "grad"])
def test_a_scalar_that_is_traced_is_refused(transform, place):
    def call(w):
        PLACES[place](w)
        return w

    with pytest.raises(TypeError, match=r"must be a number that is known now\. Received one of type") as raised:
        transform(call)(jnp.float32(0.25))
    assert type(raised.value) is TypeError


def test_a_vector_on_the_host_is_a_sequence():
    weights = jnp.asarray([0.25, 0.5])
    assert StaticLossBalancer(weights).kd_loss_weight == [0.25, 0.5]
    assert ScheduledLossBalancer(weights[:1], NAMES)._settings == ScheduledLossBalancer([0.25], NAMES)._settings


def test_a_vector_gets_no_gradient():
    total, gradients = jax.value_and_grad(lambda x, w: weighted_sum([x, x], w), (0, 1))(jnp.float32(3.0), jnp.asarray([0.25, 0.5]))
    assert_same_bits(total, jnp.float32(2.25))
    assert_same_bits(gradients[0], jnp.float32(0.75))
    assert_same_bits(gradients[1], jnp.zeros(2))
