"""NVIDIA ModelOpt's own balancer as third witness: 2,000 drawn cases, float32 and float64, aggregates and gradients as bits."""

import warnings

import numpy as np
import pytest
import torch
from cases import by_jax, by_torch, jitted

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.bits import to_bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import warns of is its own affair
    modelopt = pytest.importorskip("modelopt.torch.distill.loss_balancers", exc_type=ImportError)

CASES = {"f32": 1000, "f64": 1000}
ROWS = 25  # cases that share weights, and so a compilation


def _draw(rng: np.random.Generator, fmt: str) -> tuple[list[float], list[list[float]]]:
    """Weights whose sum stays away from 1, where ModelOpt keeps what is left by rounding, and losses."""
    count = int(rng.integers(1, 9))
    weights = rng.dirichlet(np.ones(count)) * rng.uniform(0.1, 0.99)
    dtype = np.float32 if fmt == "f32" else np.float64
    losses = (rng.lognormal(0, 3, (ROWS, count + 1)) * rng.choice([1, 1, 1, -1], (ROWS, count + 1))).astype(dtype)
    return weights.tolist(), losses.astype(np.float64).tolist()


@pytest.mark.parametrize("fmt", CASES)
def test_same_bits_as_modelopt(fmt: str) -> None:
    rng = np.random.default_rng(20260101)
    compared = differ = 0
    while compared < CASES[fmt]:
        weights, rows = _draw(rng, fmt)
        given = weights[0] if len(weights) == 1 else weights  # both of ModelOpt's forms
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns at construction
            theirs = modelopt.StaticLossBalancer(given)
        ours = loss_balancers.torch.StaticLossBalancer(given)
        step = jitted(loss_balancers.jax.StaticLossBalancer(given))
        for row in rows:
            names = [f"MSELoss_{i}" for i in range(len(weights))] + ["student_loss"]
            losses = {name: (fmt, value) for name, value in zip(names, row, strict=True)}
            cotangent = float(np.float32(rng.lognormal()))
            witness = by_torch(theirs, losses, fmt, cotangent)
            differ += witness != by_torch(ours, losses, fmt, cotangent)
            differ += witness != by_jax(step, losses, fmt, cotangent)
            compared += 1
    assert compared >= CASES[fmt]
    assert differ == 0


def test_the_witness_is_another_implementation() -> None:
    assert modelopt.StaticLossBalancer.__module__.startswith("modelopt.")
    assert not issubclass(modelopt.StaticLossBalancer, loss_balancers.torch.StaticLossBalancer)


def test_what_modelopt_accepts_is_accepted() -> None:
    """A float with one KD loss, a list, weights that sum to 1 with and without student, a student reduction."""
    x = {"MSELoss_0": torch.tensor(2.0), "student_loss": torch.tensor([1.0, 3.0])}
    for balancer in (modelopt.StaticLossBalancer([1.0]), loss_balancers.torch.StaticLossBalancer([1.0])):
        balancer.set_student_loss_reduction_fn(torch.mean)
        assert to_bits(float(balancer(x)), "f32") == to_bits(2.0, "f32")
        assert float(balancer({"MSELoss_0": torch.tensor(2.0)})) == 2.0
