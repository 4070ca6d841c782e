"""What the tests share: one balancer of every kind, losses, state as values to compare, and marks of what older versions lack."""

import inspect
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from with_state import EXAMPLES, NAMES
from with_state import assert_same_state as assert_same_state
from with_state import values as values

import loss_balancers.jax
from loss_balancers.parity.jax_versions import MODULES_ARE_PYTREES, TREE_MODE
from loss_balancers.spec import registry

#: By id; each takes `auto_step` and `axis_name`.
BALANCERS = {name: partial(registry.make, settings, loss_balancers.jax) for name, settings in EXAMPLES.items()}

VIEWS = hasattr(nnx, "view") and "graph" in inspect.signature(nnx.view).parameters
LINEN_METHODS = "nnx_method" in inspect.signature(nnx.bridge.ToLinen.__call__).parameters
#: What some tests need of Flax, by their mark: whether this version has it, the first that has, and what it is.
NEEDS = {
    "needs_pytrees": (MODULES_ARE_PYTREES, "0.11", "modules are pytrees"),
    "needs_tree_mode": (TREE_MODE, "0.12.4", "transforms of NNX have a tree mode"),
    "needs_views": (VIEWS, "0.12.5", "`nnx.view` passes by what a module does not take"),
    "needs_linen_methods": (LINEN_METHODS, "0.11", "`ToLinen` has methods other than the call"),
}


def pytest_configure(config):
    for mark, (_, since, what) in NEEDS.items():
        config.addinivalue_line("markers", f"{mark}: {what} since Flax {since}")


def pytest_runtest_setup(item):
    for mark, (there, since, what) in NEEDS.items():
        if not there and item.get_closest_marker(mark):
            pytest.skip(f"{what} since Flax {since}")


@pytest.fixture
def needs():
    return NEEDS


@pytest.fixture(params=BALANCERS)
def make(request):
    """Makes a balancer: of every kind in turn."""
    return BALANCERS[request.param]


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.needs_tree_mode)], ids=["graph-mode", "tree-mode"])
def graph(request):
    """The mode of a transform of NNX: each in turn."""
    return request.param


@pytest.fixture
def draw():
    """Draws losses; another seed, other losses."""

    def draw(seed=0, dtype=jnp.float32, shape=()):
        drawn = np.random.default_rng(seed).uniform(0.1, 4.1, (len(NAMES), *shape)).astype(np.float32)
        return {name: jnp.array(x, dtype) for name, x in zip(NAMES, drawn, strict=True)}

    return draw
