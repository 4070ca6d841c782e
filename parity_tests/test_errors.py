"""The error table: the same class with the same words from both twins, and they say what to do."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.jax
import loss_balancers.torch

TWINS = {
    "torch": (loss_balancers.torch, lambda value, dtype="float32": torch.tensor(value, dtype=getattr(torch, dtype))),
    "jax": (loss_balancers.jax, lambda value, dtype="float32": jnp.asarray(value, dtype)),
}

#: What is done wrong, the class, and words that the message must have. `m` is the twin, `a` makes an array of it.
TABLE: dict[str, tuple[Callable[[Any, Any], Any], type[Exception], str]] = {
    # construction
    "weight-above-1": (lambda m, a: m.StaticLossBalancer(1.5), ValueError, "`kd_loss_weight` must be finite and in [0, 1]. Received 1.5."),
    "weight-negative": (lambda m, a: m.StaticLossBalancer([0.5, -0.1]), ValueError, "`kd_loss_weight[1]` must be finite and in [0, 1]"),
    "weight-nan": (lambda m, a: m.StaticLossBalancer({"KL_0": math.nan}), ValueError, "`kd_loss_weight['KL_0']` must be finite"),
    "weight-inf": (lambda m, a: m.StaticLossBalancer(math.inf), ValueError, "must be finite and in [0, 1]. Received inf"),
    "weight-huge-int": (lambda m, a: m.StaticLossBalancer(10**400), ValueError, "must be finite and in [0, 1]"),
    "weight-bool": (lambda m, a: m.StaticLossBalancer(True), TypeError, "Received True of type bool"),
    "weight-string": (lambda m, a: m.StaticLossBalancer("0.5"), TypeError, "Received '0.5' of type str"),
    "weight-none": (lambda m, a: m.StaticLossBalancer(None), TypeError, "Received None of type NoneType"),
    "weight-array": (lambda m, a: m.StaticLossBalancer(np.array([0.5])), TypeError, "pass `array.tolist()`"),
    "weight-in-list-string": (lambda m, a: m.StaticLossBalancer([0.1, "x"]), TypeError, "`kd_loss_weight[1]` must be a real number"),
    "weights-sum": (lambda m, a: m.StaticLossBalancer([0.6, 0.6]), ValueError, "must sum to at most 1. Received [0.6, 0.6] (sum 1.2)"),
    "weights-empty": (lambda m, a: m.StaticLossBalancer([]), ValueError, "at least one KD loss. Received []"),
    "weights-empty-mapping": (lambda m, a: m.StaticLossBalancer({}), ValueError, "at least one KD loss"),
    "weights-only-student": (lambda m, a: m.StaticLossBalancer({"student_loss": 1.0}), ValueError, "at least one KD loss"),
    "weights-student-sum": (
        lambda m, a: m.StaticLossBalancer({"KL_0": 0.5, "student_loss": 0.4}), ValueError, "must sum to 1 when it names `student_loss`",
    ),
    "weights-key": (lambda m, a: m.StaticLossBalancer({0: 0.5}), TypeError, "strings as keys"),
    "reduction-fn": (lambda m, a: m.StaticLossBalancer().set_student_loss_reduction_fn(3), TypeError, "must be callable, or None"),
    # calls
    "not-a-mapping": (lambda m, a: m.StaticLossBalancer()([a(1.0)]), TypeError, "must be a mapping from name to loss. Received list."),
    "key-not-a-string": (lambda m, a: m.StaticLossBalancer()({0: a(1.0)}), TypeError, "must be strings. Received the key 0."),
    "no-losses": (lambda m, a: m.StaticLossBalancer()({}), ValueError, "at least one KD loss. Received []"),
    "no-kd-loss": (lambda m, a: m.StaticLossBalancer()({"student_loss": a(1.0)}), ValueError, "Received ['student_loss']"),
    "count": (
        lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE_0": a(1.0), "student_loss": a(1.0)}), ValueError,
        "Received 2 weights [0.1, 0.2] and 1 KD losses ['MSE_0']",
    ),
    "names": (
        lambda m, a: m.StaticLossBalancer({"KL_0": 0.1})({"MSE_0": a(1.0)}), ValueError, "It names ['KL_0']; received the KD losses ['MSE_0']",
    ),
    "ambiguous-order": (
        lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE_0": a(1.0), "KL_0": a(1.0)}), ValueError, "Name the weights",
    ),
    "no-idx": (lambda m, a: m.StaticLossBalancer([0.1, 0.2])({"MSE": a(1.0), "KL": a(1.0)}), ValueError, "distinct `_{idx}`"),
    "python-number": (lambda m, a: m.StaticLossBalancer()({"MSE_0": 1.0}), TypeError, "The loss 'MSE_0' must be a floating-point array"),
    "python-number-student": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0), "student_loss": 2}), TypeError, "The loss 'student_loss' must be",
    ),
    "integer-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1, "int32")}), TypeError, "Received an array of int32"),
    "complex-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0, "complex64")}), TypeError, "an array of complex64"),
    "float8-array": (lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0, "float8_e5m2")}), TypeError, "an array of float8_e5m2"),
    "shapes": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a([1.0]), "KL_1": a(1.0)}), ValueError,
        "one shape. Received {'MSE_0': (1,), 'KL_1': ()}",
    ),
    "shapes-student": (
        lambda m, a: m.StaticLossBalancer()({"MSE_0": a(1.0), "student_loss": a([1.0, 2.0])}), ValueError, "set_student_loss_reduction_fn",
    ),
    # functional
    "no-terms": (lambda m, a: m.functional.weighted_sum([], []), ValueError, "at least one array"),
    "terms-and-weights": (lambda m, a: m.functional.weighted_sum([a(1.0)], [0.5, 0.5]), ValueError, "1 terms and 2 weights"),
    "functional-weight": (lambda m, a: m.functional.weighted_sum([a(1.0)], [math.nan]), ValueError, "`weights[0]` must be finite"),
    "functional-weight-bool": (lambda m, a: m.functional.weighted_sum([a(1.0)], [True]), TypeError, "`weights[0]` must be a real number"),
    "functional-term": (lambda m, a: m.functional.weighted_sum([a(1.0), 2.0], [0.5, 0.5]), TypeError, "The loss 'terms[1]' must be"),
    "functional-shapes": (lambda m, a: m.functional.weighted_sum([a(1.0), a([2.0])], [0.5, 0.5]), ValueError, "one shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_same_class_and_words_in_both_twins(name: str) -> None:
    action, expected, words = TABLE[name]
    messages = {}
    for framework, (module, array) in TWINS.items():
        with pytest.raises(expected) as raised:
            action(module, array)
        assert type(raised.value) is expected
        messages[framework] = str(raised.value)
    assert messages["torch"] == messages["jax"]
    assert words in messages["torch"]


def test_abstract_balancers_are_a_type_error_in_both_twins() -> None:
    for module, _ in TWINS.values():
        for cls in (module.DistillationLossBalancer, type("Unfinished", (module.DistillationLossBalancer,), {})):
            with pytest.raises(TypeError, match="abstract"):
                cls()


def test_same_warning_in_both_twins_once_per_instance() -> None:
    messages = {}
    for framework, (module, array) in TWINS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            balancer = module.StaticLossBalancer(0.7)
            assert not caught  # none at construction
            for _ in range(3):
                balancer({"MSE_0": array(1.0)})
        (warning,) = caught
        assert warning.category is UserWarning
        messages[framework] = str(warning.message)
        assert str(1.0 - 0.7) in messages[framework]
    assert messages["torch"] == messages["jax"]


def test_devices_that_differ_are_a_value_error_in_torch() -> None:
    losses = {"MSE_0": torch.tensor(1.0), "student_loss": torch.tensor(1.0, device="meta")}
    with pytest.raises(ValueError, match=r"on one device. Received \{'MSE_0': 'cpu', 'student_loss': 'meta'\}"):
        loss_balancers.torch.StaticLossBalancer()(losses)
