"""The demo runs and its balancers agree; and its comparison reports balancers that do not."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import typer
from flax import nnx
from rich.console import Console

import loss_balancers.jax
from loss_balancers.spec import schedules
from loss_balancers.spec.registry import SETTINGS

EXAMPLE = Path(__file__).parents[2] / "examples" / "distill_digits.py"
DOCS = EXAMPLE.parents[1] / "docs"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distill_digits", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["distill_digits"] = module  # its dataclass and its NamedTuple look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def over_time(example, monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    module = importlib.import_module("weights_over_time")
    yield module
    del sys.modules["weights_over_time"]


@pytest.fixture
def _torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_example_runs_and_its_balancers_agree(tmp_path):
    out = tmp_path / "figures" / "digits"
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE, "--out", out, "--epochs", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 of 20" in run.stdout
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "results.json"]  # no half-written file beside them
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert results["steps"] == 10
    assert results["aggregates_compared"] == 20
    assert results["aggregates_that_differ"] == 0
    assert len(results["training_loss"]["torch"]) == len(results["training_loss"]["jax"]) == 10
    # The same weights, batches and losses: what remains is rounding, TF32's where JAX finds a GPU.
    np.testing.assert_allclose(results["training_loss"]["torch"], results["training_loss"]["jax"], rtol=1e-2)


@pytest.mark.usefixtures("_torch_threads")
def test_the_example_fails_where_a_weight_is_one_ulp_off(example, tmp_path, monkeypatch, capsys):
    balancer = example.JaxStaticLossBalancer
    one_ulp_more = float(np.nextafter(np.float32(0.4), np.float32(1)))
    monkeypatch.setattr(example, "JaxStaticLossBalancer", lambda weights: balancer([one_ulp_more, *weights[1:]]))
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(typer.Exit) as exit_info:
        example.main(out=tmp_path, epochs=1, seed=0)
    assert exit_info.value.exit_code == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 < results["aggregates_that_differ"] <= results["aggregates_compared"]
    assert "The balancers differ at step " in capsys.readouterr().out


@pytest.mark.parametrize("losses_of", ["torch", "jax"])
def test_a_difference_of_one_ulp_is_reported(example, losses_of):
    x = np.array(1.5, np.float32)
    comparison = example.Comparison(7, losses_of, x, np.nextafter(x, np.float32(2)))
    assert not comparison.same_bits
    assert str(comparison) == (
        f"step 7, on the losses of {losses_of}: 0x1.8000000000000p+0 (float32) in torch, 0x1.8000020000000p+0 (float32) in jax"
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        pytest.param(np.array(1.5, np.float32), np.array(1.5, np.float32), True, id="equal"),
        pytest.param(np.array(np.nan, np.float32), np.array(np.nan, np.float32), True, id="the same NaN"),
        pytest.param(np.array(np.nan, np.float32), -np.array(np.nan, np.float32), False, id="another NaN"),
        pytest.param(np.array(0.0, np.float32), np.array(-0.0, np.float32), False, id="signed zeros"),
        pytest.param(np.array(1.5, np.float32), np.array(1.5, np.float64), False, id="float64"),
        pytest.param(np.array(1.5), np.array(1.5), False, id="float64 twice"),
        pytest.param(np.array([1.5], np.float32), np.array(1.5, np.float32), False, id="another shape"),
    ],
)
def test_only_the_same_bits_are_the_same(example, a, b, same):
    assert example.Comparison(0, "torch", np.asarray(a), np.asarray(b)).same_bits is same


def test_every_balancer_runs_in_the_example_and_agrees(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE.with_name("weights_over_time.py"), "--out", tmp_path / "out", "--epochs", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["weights.json", "weights.png"]
    assert (tmp_path / "out" / "weights.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert list(results) == list(SETTINGS)
    lines = run.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("Wrote "))
    for name, result in results.items():
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [name.removesuffix("LossBalancer")])
        assert [line.split()[0] for line in lines[at + 1 : at + 4]] == list(result["weights"])
        assert (result["numbers_compared"], result["numbers_that_differ"], result["same_state"]) == (40, 0, True)
        assert all(len(curve) == 5 for curve in result["weights"].values())
        still = all(len(set(curve)) == 1 for curve in result["weights"].values())
        assert still == (SETTINGS[name].weights_are == "constants")


@pytest.mark.usefixtures("_torch_threads")
def test_the_example_of_all_balancers_fails_where_one_weight_is_one_ulp_off(over_time, tmp_path, monkeypatch, capsys):
    def make(settings, module):
        off = float(np.nextafter(np.float32(0.4), np.float32(1))) if module is loss_balancers.jax else 0.4
        return module.ScheduledLossBalancer([schedules.tabulate([0.4, off].__getitem__, 2), 0.2], over_time.NAMES)

    monkeypatch.setattr(over_time, "make", make)
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(typer.Exit) as exit_info:
        over_time.main(balancer="ScheduledLossBalancer", out=tmp_path, epochs=1, seed=0)
    assert exit_info.value.exit_code == 1
    assert json.loads((tmp_path / "weights.json").read_text())["ScheduledLossBalancer"]["numbers_that_differ"] > 0
    assert "ScheduledLossBalancer differs at step 1, " in capsys.readouterr().out


class TrainedInTorch(torch.nn.Module):
    """A balancer with a parameter, which the optimizer trains, and with an `update`."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def breakdown(self, losses):
        return {f"{name}/weight": self.scale.detach() for name in self.names}

    def forward(self, losses):
        return self.scale * losses[self.names[0]]

    def update(self, losses):
        self.seen = losses[self.names[0]] + self.scale.detach()

    def step(self):
        pass

    def export_state(self):
        return {"state": {"scale": self.scale.detach().numpy(), "seen": self.seen.numpy()}}


class TrainedInJax(nnx.Module):
    """The same."""

    def __init__(self, names):
        self.names = nnx.static(names) if hasattr(nnx, "static") else names
        self.scale = nnx.Param(jnp.ones(()))
        self.seen = nnx.Variable(jnp.zeros(()))

    def breakdown(self, losses):
        return {f"{name}/weight": jax.lax.stop_gradient(self.scale[...]) for name in self.names}

    def __call__(self, losses):
        return self.scale[...] * losses[self.names[0]]

    def update(self, losses):
        self.seen[...] = losses[self.names[0]] + self.scale[...]

    def step(self):
        pass

    def export_state(self):
        return {"state": {"scale": np.asarray(self.scale[...]), "seen": np.asarray(self.seen[...])}}


@pytest.mark.usefixtures("_torch_threads")
def test_parameters_are_trained_and_moved_and_an_update_gets_the_losses_after_the_step(over_time, monkeypatch):
    made = []

    def make(names, module):
        made.append((TrainedInJax if module is loss_balancers.jax else TrainedInTorch)(names))
        return made[-1]

    monkeypatch.setattr(over_time, "make", make)
    task = over_time.task(0, 1)
    outcome = over_time.distill(over_time.NAMES, task.data, task.order, 0, task.test)
    assert (len(outcome.comparisons), outcome.differing, outcome.same_state) == (40, [], True)
    assert len(set(outcome.weights[:, 0].tolist())) == len(task.order)  # trained at each step
    assert all(float(balancer.seen) > 0 for balancer in made[:2])


def test_the_gallery_is_what_its_numbers_say(example, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    gallery = importlib.import_module("gallery")
    record = json.loads((DOCS / "gallery" / "gallery.json").read_text("utf-8"))
    assert gallery.page(record) == (DOCS / "gallery.md").read_text("utf-8")
    assert not any(gallery.Found(**told).differs for told in record["balancers"].values())
    sizes = [plot.stat().st_size for plot in (DOCS / "gallery").glob("*.png")]
    assert len(sizes) == len(record["balancers"])
    assert max(sizes) < 60_000
    assert sum(sizes) < 600_000
    with (console := Console(width=80, file=io.StringIO())).capture() as capture:
        console.print(gallery.table(record))
    assert all(name.removesuffix("LossBalancer") in capture.get() for name in record["balancers"])
    monkeypatch.delitem(sys.modules, "weights_over_time")


def test_what_the_spread_allows_to_say(example, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    gallery = importlib.import_module("gallery")
    near, far = [0.9, 0.92], [0.5, 0.52]
    found = {name: gallery.Found({}, {"torch": of, "jax": of}) for name, of in (("A", near), ("B", far), ("C", [0.89, 0.92]))}
    assert gallery.told(found).startswith(
        "In both frameworks `A` has the highest mean. Its range, mean ± deviation, overlaps with the ranges"
    )
    assert "of all other balancers but `B`." in gallery.told(found)
    assert "of all other balancers." in gallery.told({name: found[name] for name in "AC"})
    found["B"].accuracy["jax"] = near
    assert "In PyTorch `A`" in gallery.told(found)


def test_a_balancer_that_does_not_exist_is_refused(over_time):
    with pytest.raises(typer.BadParameter, match="'UW' is none of all, StaticLossBalancer"):
        over_time.chosen("UW")
