"""Every balancer of the registry has everything that one must have; what it lacks is said at once."""

import pytest
from completeness import everything, lacks

from loss_balancers.spec import registry
from loss_balancers.spec.golden.files import FILES, unregistered
from loss_balancers.spec.keys import EXAMPLE_NAMES


def test_nothing_is_missing() -> None:
    assert everything() == {}


def test_all_that_is_missing_is_said_at_once() -> None:
    class NewSettings:
        @classmethod
        def examples(cls) -> dict[str, object]:
            return {}

    assert lacks("ProductLossBalancer", NewSettings) == [
        "a class in loss_balancers.torch",
        "a class in loss_balancers.jax",
        "its settings in loss_balancers.spec",
        "spec/golden/product.py, which draws its vectors",
        "spec/golden/product.json, which `make golden` writes",
        "examples of its settings",
        "a row in docs/balancers.md",
        "a plot of its weights, by `make gallery BALANCER=ProductLossBalancer`, and a link to it in docs/balancers.md",
        "clauses in docs/spec",
        "a mention in README.md",
        "tests of its errors in parity_tests/tests/test_errors.py",
        "tests of its settings in spec/tests",
        "tests of its drawn runs in parity_tests/tests/test_drawn.py or parity_tests/tests/test_schedules.py: its weights do not "
        "follow from losses",
        "an audit of its JAX twin",
        "an audit of its PyTorch twin",
    ]


def test_no_vectors_and_no_reason_of_a_balancer_that_is_not_registered() -> None:
    assert unregistered() == []
    assert list(FILES) == [registry.stem(balancer) for balancer in registry.SETTINGS]


@pytest.mark.parametrize(
    ("balancer", "stem"),
    [
        ("EMANormalizedLossBalancer", "ema_normalized"),
        ("WeightedSumLossBalancer", "weighted_sum"),
        ("DWALossBalancer", "dwa"),
        ("ReLoBRaLoLossBalancer", "relobralo"),
    ],
)
def test_the_name_of_a_balancer_s_files(balancer: str, stem: str) -> None:
    assert registry.stem(balancer) == stem


def test_examples_are_for_the_losses_that_they_name() -> None:
    found = registry.examples()
    assert len(found) == sum(len(settings.examples()) for settings in registry.SETTINGS.values())  # no id twice
    for settings in found.values():
        assert settings.names in ((), EXAMPLE_NAMES)
        assert type(settings).from_json(settings.to_json()) == settings
    assert {name for name, settings in found.items() if registry.observes(settings)} == {
        *("ema", "ema-lagged"),
        *("dwa", "dwa-bounded"),
        *("soft-adapt", "soft-adapt-lagged"),
        *("relobralo", "relobralo-lagged"),
        *("famo", "famo-all"),
    }
