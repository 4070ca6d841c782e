"""`EMANormalizedLossBalancer(max_ratio=...)`: without it a weight jumps where a mean falls to eps."""

import numpy as np
import pytest

from loss_balancers.spec import EMANormalizedLossBalancerSettings

NAMES = ("MSE_0", "student_loss")


def weight_of(framework, mean, **settings):
    """The weight of a loss whose running mean is this."""
    balancer = framework.balancers.EMANormalizedLossBalancer(NAMES, **settings)
    losses = {"MSE_0": framework.array(mean), "student_loss": framework.array(1.0)}
    return float(balancer.weights(losses)["MSE_0"])


@pytest.mark.parametrize("max_ratio", [None, 1e4, 0.25])
def test_no_weight_is_above_the_bound(framework, max_ratio):
    means = np.array([1.1e-8, 1e-6, 1e-3, 0.5, 1.0, 3.0], np.float32)
    weights = [weight_of(framework, mean, max_ratio=max_ratio) for mean in means]
    free = [1.0 / (float(mean) + 1e-8) for mean in means]
    assert weights == pytest.approx([min(weight, max_ratio or weight) for weight in free], rel=1e-6)
    assert weight_of(framework, 1e-8, max_ratio=max_ratio) == 1.0 if max_ratio != 0.25 else 0.25


def test_the_bound_holds_in_the_units_of_a_target(framework):
    assert weight_of(framework, 1e-3, target="student_loss", max_ratio=20.0, weights={"MSE_0": 2.0}) == 40.0


def test_settings_and_states_from_before_there_was_a_bound(framework):
    settings = EMANormalizedLossBalancerSettings(NAMES, beta=0.5)
    assert "max_ratio" not in settings.as_json()
    assert EMANormalizedLossBalancerSettings.from_json(settings.as_json() | {"max_ratio": None}) == settings
    bounded, free = (framework.balancers.EMANormalizedLossBalancer(NAMES, beta=0.5, max_ratio=most) for most in (3.0, None))
    free.load_state(framework.balancers.EMANormalizedLossBalancer(NAMES, beta=0.5).export_state())
    assert EMANormalizedLossBalancerSettings.from_json(bounded._settings.to_json()) == bounded._settings
    with pytest.raises(ValueError, match="max_ratio"):
        bounded.load_state(free.export_state())
