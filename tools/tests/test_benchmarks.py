"""The benchmarks compare like with like: what is written by hand is the balancer's method, in both frameworks."""

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.torch
from loss_balancers.spec.registry import SETTINGS, stem

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KD, STEPS = 3, 24


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("bench", "by_hand", "sides")})


def drawn(seed):
    """Losses of each step, and those after it."""
    rows = np.random.default_rng(seed).uniform(0.5, 1.5, (STEPS, 2, KD + 1))
    return rows.astype(np.float32)


def by_hand(method, ops, rows):
    """The aggregates."""
    state, found = method.state, []
    for before, after in rows:
        value, state = method.aggregate(state, method.parameters, ops.vector(before.tolist()))
        state = method.commit(state if method.update is None else method.update(state, ops.vector(after.tolist())))
        found.append(float(value))
    return np.array(found)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_written_by_hand_is_the_method(bench, name):
    """But for the first two steps, in which there is nothing to look back to, and for what is drawn, which is no one's."""
    rows, method = drawn(7), getattr(bench.by_hand, stem(name))
    balancer, names = bench.sides.made(name, loss_balancers.torch, KD), bench.sides.names_of(KD)
    ours = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no optimizer trains the parameters
        for before, after in rows:
            losses, later = (dict(zip(names, map(torch.tensor, each), strict=True)) for each in (before, after))
            ours.append(balancer(losses).item())
            bench.sides.committed(balancer, later)()
    never = {"normal": lambda state, count: (torch.zeros(count), state)}
    in_torch = by_hand(method(bench.sides.TORCH._replace(**never), KD + 1), bench.sides.TORCH, rows)
    ops = bench.sides.jax_ops()._replace(normal=lambda state, count: (jnp.zeros(count), state))
    in_jax = by_hand(method(ops, KD + 1), ops, rows[:4])
    np.testing.assert_allclose(in_jax, in_torch[:4], rtol=1e-5, atol=1e-6)
    if name != "RandomLossBalancer":
        np.testing.assert_allclose(ours[2:], in_torch[2:], rtol=1e-5, atol=1e-5)


def test_the_plan_has_every_balancer_every_way_and_every_format(bench):
    cases = {(case.balancer, case.way, case.dtype) for case in bench.bench.plan()}
    assert cases == {(name, way, dtype) for name in SETTINGS for way in bench.bench.WAYS for dtype in bench.bench.DTYPES}


def test_a_row_of_times_and_the_page_that_shows_it(bench):
    case = bench.bench.Case("GeometricLossBalancer", "torch eager", "float32", KD, ("step",))
    rows = list(bench.bench.measured(case, rounds=2))
    assert {row["peer"] for row in rows} >= {"floor", "by hand"}
    assert all(row["ratio"] > 0 and row["ours_us"] > 0 for row in rows)
    rows = [{**row, "what": what, "dtype": dtype} for row in rows for what, dtype in bench.bench.PARTS]
    eager = list(bench.bench.eager_costs("GeometricLossBalancer"))
    assert next(row for row in eager if row["side"] == "floor")["kernels"] == [2, 2, 0]
    assert all(0 < row["saved"] <= row["most"] or row["side"] == "floor" for row in eager)
    found = {"times": rows, "eager": eager, "compilation": [], "imports": [], "rounds": 2, "versions": {}, "date": ""}
    text = bench.bench.page({**found, "device": {"name": "a processor", "cores": 2}})
    assert f"| Geometric | by hand | torch eager | {bench.bench.ratio(rows[4])}" in text


def test_a_line_of_the_plot_goes_from_few_losses_to_many(bench):
    """The balancers' own table has three losses, and comes after the thousand."""
    row = {"balancer": "StaticLossBalancer", "way": "torch eager", "dtype": "float32", "what": "forward, backward", "peer": "floor"}
    figure = bench.bench.plot([{**row, "kd": kd, "ratio": 1.0 + kd} for kd in (1, 1000, bench.bench.FEW)])
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "torch eager, floor")
    assert line.get_xydata().tolist() == [[1, 2], [3, 4], [1000, 1001]]


@pytest.mark.filterwarnings("ignore:`StaticLossBalancer` weights do not sum")  # ModelOpt's, though there is a student loss
@pytest.mark.parametrize("name", SETTINGS)
def test_modelopt_stands_beside_the_two_balancers_that_it_has(bench, name):
    sides = bench.sides.torch_sides(name, KD, "float32", compiled=False)
    assert ("ModelOpt" in sides) is (name in {"StaticLossBalancer", "LogitsAndIntermediatesLossBalancer"})
    if "ModelOpt" in sides:
        ours, theirs = (sides[peer]().forward().item() for peer in ("ours", "ModelOpt"))
        assert theirs == pytest.approx(ours, rel=1e-6)
