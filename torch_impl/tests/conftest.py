"""What the tests share: one balancer of every kind, losses, state as values to compare, and what Dynamo says of an error."""

import re
from functools import partial

import pytest
import torch

import loss_balancers.torch
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.versions import release

NAMES = EXAMPLE_NAMES
EXAMPLES = {name: settings for name, settings in registry.examples().items() if settings.state}
#: By id; each takes `auto_step` and `process_group`.
BALANCERS = {name: partial(registry.make, settings, loss_balancers.torch) for name, settings in EXAMPLES.items()}
OBSERVING = tuple(name for name, settings in EXAMPLES.items() if registry.observes(settings))


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
