"""Keras 3 with `loss_balancers.keras.Balancer`, on the backends torch and jax: a process each (`keras_program.py`)."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hosts import ROOT

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import errors

BACKENDS = ("torch", "jax")
PARTS = ["calls", "accumulated", "validated", "resumed", "policies", "built", "scoped", "refused", "moved", "distilled", "page"]
PARTS += ["learned", "examples_of_docstrings"]
#: Keras adds the arguments to an error in a call; these have the backend's types in them.
OF_BACKEND = ("refused",)
#: What parameters get depends on the backend's own arithmetic: sums of products, and the optimizer.
WITH_PARAMETERS = ("resumed", "distilled")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """What the program computed on each backend, by name."""
    found = {}
    for backend in BACKENDS:
        file = tmp_path_factory.mktemp(backend) / "made.npz"
        program = [sys.executable, "-W", "error::UserWarning", str(ROOT / "integration_tests/helpers/keras_program.py")]
        parts = [*PARTS, "recomputed"] if backend == "torch" else PARTS
        done = subprocess.run([*program, backend, str(file), *parts], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        with np.load(file) as arrays:
            found[backend] = dict(arrays)
    return found


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    found = {name.removeprefix(f"{prefix}/"): x for name, x in arrays.items() if name.startswith(f"{prefix}/")}
    assert found, prefix
    return found


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert_same_bits(x, theirs[name])


@pytest.mark.parametrize("part", [part for part in PARTS if part not in OF_BACKEND + WITH_PARAMETERS])
def test_both_backends_have_the_same_bits(made, part):
    assert_same(under(made["torch"], part), under(made["jax"], part))


@pytest.mark.parametrize("key", ["static", "scheduled", "ema", "ema-lagged"])
def test_both_backends_have_the_same_state_in_a_fit_with_accumulation(made, key):
    if key == "static":
        assert not [name for name in made["jax"] if name.startswith("resumed/static/whole/state")]
    else:
        assert_same(*(under(made[backend], f"resumed/{key}/whole/state") for backend in BACKENDS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["mean", "count", "share"])
@pytest.mark.parametrize("parts", [1, 4, 16])
def test_accumulation_gives_the_weights_of_one_batch(made, backend, form, parts):
    whole = under(made[backend], "accumulated/mean/1")
    assert whole["steps"] == 5
    assert len({float(whole[name]) for name in ("student_loss", "MSELoss_0", "KLDivLoss_1")}) == 3
    assert_same(under(made[backend], f"accumulated/{form}/{parts}"), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", ["scheduled", "ema", "ema-lagged"])
def test_validation_is_not_observed(made, backend, key):
    without = under(made[backend], f"validated/{key}/without")
    assert without["steps"] == 11  # of 12 batches: the last is pending
    assert_same(under(made[backend], f"validated/{key}/with"), without)
    assert_same(under(made[backend], f"validated/{key}/evaluated"), without)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", ["static", "scheduled", "ema", "ema-lagged"])
def test_a_run_resumes_from_a_checkpoint_with_the_same_bits(made, backend, key):
    whole, again = (under(made[backend], f"resumed/{key}/{name}") for name in ("whole", "again"))
    assert len(whole["losses"]) >= 2
    assert_same(again, whole)
    if key != "static":
        read = under(made[backend], f"resumed/{key}/read")
        assert 0 < read["steps"] < whole["state/steps"] or read["pending"][-2] == 2  # it came with state, and went on


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", ["log_variance", "log_scale"])
def test_a_parameter_is_trained_and_saved(made, backend, key):
    fitted = under(made[backend], f"learned/{key}/fitted")
    assert list(fitted) == [key]
    assert (fitted[key] != (0.0 if key == "log_variance" else -2.0)).all()
    for where in ("saved", "loaded"):
        assert_same(under(made[backend], f"learned/{key}/{where}"), fitted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("student_weight", ["0.5", "0.3"])
def test_200_steps_have_the_bits_of_the_distiller_that_weighs_by_itself(made, backend, student_weight):
    own, ours = (under(made[backend], f"distilled/{student_weight}/{name}") for name in ("own", "balancer"))
    assert len(own["losses"]) == 200
    assert len(set(own["losses"])) > 150
    assert_same(ours, own)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_of_mixed_dtypes_casts_nothing(made, backend):
    found = under(made[backend], "policies")
    assert {name: str(x.dtype) for name, x in under(found, "state").items()} == {
        "steps": "int32", "skipped": "int32", "pending": "float32", "total": "float32", "fix": "float32",
    }  # fmt: skip
    assert found["state/pending"][0] == np.float32(7.4)  # bfloat16 would have made 7.40625 of it


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_within_a_model_obeys_the_training_of_the_model(made, backend):
    assert under(made[backend], "built")["state/steps"] == 2  # three training calls, one of them pending


def test_a_call_that_a_backward_repeats_is_observed_once(made):
    repeated, plain = (under(made["torch"], f"recomputed/{name}") for name in ("repeated", "plain"))
    assert plain["state/steps"] == 2  # three calls, one of them pending
    assert_same(repeated, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stateless_scope_takes_what_step_changes(made, backend):
    inside, given, outside = (under(made[backend], f"scoped/{name}") for name in ("inside", "given", "outside"))
    assert inside["steps"] == 1
    assert_same(given, outside)
    assert not any(x.any() for x in outside.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_state_goes_into_another_layer(made, backend):
    there = under(made[backend], "moved/there")
    assert there["steps"] == 3
    assert_same(under(made[backend], "moved/here"), there)


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_in_words(made, backend):
    found = {name: str(x) for name, x in under(made[backend], "refused").items()}
    assert str(errors.training_unknown()) in found["training"]
    assert found["settings"] == f"TypeError: {errors.not_settings(0.5)}"
    assert found["auto_step"].startswith("ValueError: `auto_step` must be")
    assert str(errors.no_kd_loss(["student_loss"])) in found["names"]
    assert found["export"] == f"TypeError: {errors.no_state('StaticLossBalancer')}"


def test_another_backend_is_an_error_in_words():
    command = [sys.executable, "-c", "import loss_balancers.keras"]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": "numpy"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {errors.keras_backend('numpy')}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_imports_one_framework(backend):
    code = (
        "import sys, loss_balancers.keras as k; from loss_balancers.spec import *; k.Balancer(StaticLossBalancerSettings()); "
        "print([x for x in ('loss_balancers.torch', 'loss_balancers.jax') if x in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True, check=False)
    assert done.stdout == f"['loss_balancers.{backend}']\n", done.stderr[-2000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example_runs(run_example, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert run_example("keras_distill").startswith(f"{backend}: teacher ")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_examples_in_docstrings_run(made, backend):
    assert made[backend]["examples_of_docstrings/tried"] >= 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_runs(made, backend):
    assert made[backend]["page/blocks"] >= 2
