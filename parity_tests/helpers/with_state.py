"""Every balancer with state, and how states are compared: fixtures for the tests of one framework and of each."""

import pytest

from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES
EXAMPLES = {name: settings for name, settings in registry.examples().items() if settings.state}
#: Those that observe losses, and of these those that keep the two decayed sums of EMA.
OBSERVING = tuple(name for name, settings in EXAMPLES.items() if registry.observes(settings))
EMA = tuple(name for name in OBSERVING if {"total", "fix"} <= {entry.name for entry in EXAMPLES[name].state})
#: The first example of each balancer: for what takes seconds, and hardly depends on the settings.
FIRST = tuple(name for settings in registry.SETTINGS.values() for name in list(settings.examples())[:1])
ABSENT = {"count": {**dict.fromkeys(NAMES, 2), NAMES[0]: 0}}
#: What is given beside the losses of a call.
KEYWORDS = {"plain": {}, "count": {"count": 3}, "share": {"share": 0.25}, "absent": ABSENT}


def calls(names):
    """Rows of an example, `auto_step`, and a key of `KEYWORDS`, for what takes seconds to compile.

    The first example of each balancer is called with a loss that is absent, and plainly, with `count` or with `share`, which are
    read alike for every balancer: they take turns. Its other examples are called in one of the two ways, in turn. So does
    `auto_step`, in such a way that each value of it meets each keyword.
    """
    return [
        pytest.param(name, (None, 2)[(i // 2 + j) % 2], keyword, id=f"{name}-{keyword}")
        for i, name in enumerate(names)
        for j, keyword in enumerate((("plain", "count", "share")[i % 3], "absent"))
        if name in FIRST or j == i % 2
    ]


def train(balancer, draw, steps=3, start=0):
    """Trains for some steps, and then observes losses that it does not commit."""
    for i in range(start, start + steps):
        balancer(draw(i))
        balancer.step()
    balancer(draw(start + steps))
    return balancer


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
            assert actual[name].shape == expected[name].shape, name
            assert actual[name].tobytes() == expected[name].tobytes(), (name, actual[name], expected[name])

    return compare
