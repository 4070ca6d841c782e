"""What the tests share: one balancer of every kind, losses, state as values to compare, and what Dynamo says of an error."""

import re

import pytest
import torch

from loss_balancers.spec import schedules
from loss_balancers.spec.versions import release
from loss_balancers.torch import (
    EMANormalizedLossBalancer,
    LogitsAndIntermediatesLossBalancer,
    ScheduledLossBalancer,
    WeightedSumLossBalancer,
)

NAMES = ("LogitsKL_0", "MSE_1", "student_loss")
RAMP = schedules.linear(0.0, 1.0, 10)

#: By id; each takes `auto_step` and `process_group`.
BALANCERS = {
    "scheduled": lambda **options: ScheduledLossBalancer(RAMP, names=NAMES, **options),
    "weighted-sum": lambda **options: WeightedSumLossBalancer({"LogitsKL_0": RAMP, "MSE_1": 3.0}, 0.5, **options),
    "ema": lambda **options: EMANormalizedLossBalancer(NAMES, {"MSE_1": RAMP}, beta=0.5, **options),
    "ema-lagged": lambda **options: EMANormalizedLossBalancer(NAMES, target="student_loss", lagged=True, **options),
    "logits": lambda **options: LogitsAndIntermediatesLossBalancer(RAMP, **options),
}
OBSERVING = ("ema", "ema-lagged")


@pytest.fixture(params=BALANCERS)
def make(request):
    """Makes a balancer: of every kind in turn."""
    return BALANCERS[request.param]


@pytest.fixture(params=OBSERVING)
def make_observing(request):
    """Makes a balancer that observes losses: of every such kind in turn."""
    return BALANCERS[request.param]


@pytest.fixture
def draw():
    """Draws losses; another seed, other losses."""

    def draw(seed=0, dtype=torch.float32, requires_grad=False, device=None):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(NAMES), generator=generator) * 4 + 0.1
        return {name: x.to(device, dtype).requires_grad_(requires_grad) for name, x in zip(NAMES, drawn, strict=True)}

    return draw


@pytest.fixture
def told_in_a_graph():
    """What Dynamo says of an error that has these words: in PyTorch 2.8 only of which class it is, and where."""
    return lambda error, words: words if release(torch.__version__) >= (2, 9) else re.escape(str(error))


@pytest.fixture
def values():
    """The state of a balancer as NumPy arrays: changes of it do not reach them."""
    return lambda balancer: balancer.export_state()["state"]


@pytest.fixture
def assert_same_state(values):
    """Compares the state of balancers, or what `values` gave, by bits."""

    def compare(actual, expected, apart_from=()):
        actual, expected = (x if isinstance(x, dict) else values(x) for x in (actual, expected))
        assert list(actual) == list(expected)
        for name in expected.keys() - set(apart_from):
            assert actual[name].dtype == expected[name].dtype, name
            assert actual[name].tobytes() == expected[name].tobytes(), (name, actual[name], expected[name])

    return compare
