"""Weights as scalars and vectors of a framework: on the host a number is a number, wherever one is taken."""

import pytest
from number_places import NAMES, PLACES

SCALARS = {
    **{name: lambda f, name=name: f.array(0.1, name) for name in ("bfloat16", "float16", "float32", "float64")},
    "integer": lambda f: f.array(0, f.INTEGER),
}
REFUSED = {"bool": lambda f: f.array(True, "bool"), "complex": lambda f: f.array(0.5j, "complex64")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_on_the_host_is_a_number(framework, scalar, place):
    with framework.float64(scalar == "float64"):
        value = SCALARS[scalar](framework)
        assert PLACES[place](framework, value) == PLACES[place](framework, value.item())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scalar", REFUSED)
def test_a_scalar_that_is_not_a_real_number_is_refused(framework, scalar, place):
    with pytest.raises(TypeError, match="must be a real number"):
        PLACES[place](framework, REFUSED[scalar](framework))


def test_a_vector_on_the_host_is_a_sequence(framework):
    weights, balancers = framework.array([0.25, 0.5]), framework.balancers
    assert balancers.StaticLossBalancer(weights).kd_loss_weight == [0.25, 0.5]
    assert balancers.ScheduledLossBalancer(weights[:1], NAMES)._settings == balancers.ScheduledLossBalancer([0.25], NAMES)._settings
