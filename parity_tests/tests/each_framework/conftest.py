"""Each framework that is installed, in turn, and what the tests of balancers with state share."""

from functools import partial
from importlib import import_module

import numpy as np
import pytest
from with_state import EMA, EXAMPLES, NAMES, OBSERVING
from with_state import assert_same_state as assert_same_state
from with_state import values as values

from loss_balancers.spec import registry

#: By framework, the packages without which its tests are skipped. One that is there and does not work is an error.
NEEDS = {"torch": ("torch",), "jax": ("jax", "flax")}


@pytest.fixture(params=NEEDS)
def framework(request):
    """How a framework makes a loss and differentiates: `framework_torch` or `framework_jax`."""
    for package in NEEDS[request.param]:
        pytest.importorskip(package, reason=f"`loss_balancers.{request.param}` needs {package}, which is not installed")
    return import_module(f"framework_{request.param}")


def _maker(framework, name):
    return partial(registry.make, EXAMPLES[name], framework.balancers)


@pytest.fixture(params=EXAMPLES)
def make(framework, request):
    """Makes a balancer: of every kind with state in turn."""
    return _maker(framework, request.param)


@pytest.fixture(params=OBSERVING)
def make_observing(framework, request):
    """Makes a balancer that observes losses: of every such kind in turn."""
    return _maker(framework, request.param)


@pytest.fixture(params=EMA)
def make_ema(framework, request):
    """Makes a balancer that keeps the decayed sums of EMA."""
    return _maker(framework, request.param)


@pytest.fixture
def draw(framework):
    """Draws losses; another seed, other losses."""

    def draw(seed=0, dtype="float32", kind=framework.array):
        drawn = np.random.default_rng(seed).uniform(0.1, 4.1, len(NAMES)).astype(np.float32)
        return {name: kind(x, dtype) for name, x in zip(NAMES, drawn, strict=True)}

    return draw
