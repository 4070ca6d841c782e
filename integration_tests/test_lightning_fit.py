"""Lightning: accumulation, validation, checkpoints, logging and two processes."""

import json
import random
import subprocess
import sys

import lightning_program as program
import pytest
import torch
from in_torch import KINDS, assert_same, make
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning_program import Distillation, Loader, exact_run, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Of Lightning 2.6 with PyTorch 2.13.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("amounts", ["means", "shares"])
def test_weights_do_not_depend_on_how_a_batch_is_accumulated(amounts, tmp_path):
    one, four, sixteen = (exact_run(tmp_path, parts, amounts) for parts in (1, 4, 16))
    assert len(one) == program.STEPS
    assert len({json.dumps(weights) for weights, _ in one}) == program.STEPS  # weights that move
    assert one == four == sixteen
    assert one == exact_run(tmp_path, 1)  # and means are shares of a whole


def test_two_processes_have_the_bits_of_one(tmp_path):
    """Each process takes a part of every micro-batch; Lightning starts the second one itself."""
    command = [sys.executable, "-W", "ignore", program.__file__, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] == exact_run(tmp_path, 1)


class Watched(Distillation):
    """It compares the state before and after each validation."""

    def __init__(self, balancer, state_of):
        super().__init__(balancer)
        self.state_of, self.compared = state_of, 0

    def on_validation_start(self):
        self.before = self.state_of(self.balancer)

    def on_validation_end(self):
        assert self.state_of(self.balancer) == self.before
        self.compared += 1


@pytest.mark.parametrize("kind", KINDS)
def test_validation_during_training_is_not_observed(kind, tmp_path, state_of):
    """The check before training, and every three batches: in the middle of an accumulation, where something is pending."""
    module = Watched(make(kind, Distillation.names), state_of)
    trainer(tmp_path, accumulate_grad_batches=2, val_check_interval=3, max_epochs=2).fit(module, Loader(12), Loader(2))
    assert module.compared == 9
    if kind != "static":
        assert module.balancer.steps == 12


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_from_lightnings_checkpoint_goes_on_to_the_bit(kind, tmp_path, state_of):
    stop = random.Random(f"{kind} of Lightning").randrange(1, 12)
    options = {"accumulate_grad_batches": 2, "max_epochs": 2, "enable_checkpointing": True}

    saving = [ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1) for folder in ("whole", "again")]
    whole = Distillation(make(kind, Distillation.names))
    trainer(tmp_path, **options, callbacks=saving[:1]).fit(whole, Loader(12))
    again = Distillation(make(kind, Distillation.names), seed=7)
    run = trainer(tmp_path, **options, callbacks=saving[1:])
    run.fit(again, Loader(12), ckpt_path=tmp_path / f"whole/step={stop}.ckpt", weights_only=True)
    rest = list(whole.totals)[2 * stop :]
    assert_same(again.totals, {name: whole.totals[name] for name in rest})
    assert_same(again.state_dict(), whole.state_dict())
    probe = {name: torch.ones(()) for name in Distillation.names}
    assert_same(again.balancer.weights(probe), whole.balancer.weights(probe))
    assert state_of(again.balancer) == state_of(whole.balancer)


@pytest.mark.parametrize("kind", KINDS)
def test_what_log_dict_is_given_is_logged(kind, tmp_path):
    module = Distillation(make(kind, Distillation.names))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, Loader(5))
    parts = {name for name in run.callback_metrics if name.endswith("/weight")}
    assert parts == {f"{name}/weight" for name in Distillation.names}
    assert_same({"total": run.callback_metrics["total"]}, {"total": module.totals["0.4"]})


AVERAGING = {
    "mean": lambda: WeightAveraging(use_buffers=False),
    "ema": lambda: EMAWeightAveraging(use_buffers=False, decay=0.5),
    "swa": lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1),
}


def fitted(tmp_path, *callbacks):
    module = Distillation(make("ema", Distillation.names))
    trainer(tmp_path, accumulate_grad_batches=2, max_epochs=2, callbacks=list(callbacks)).fit(module, Loader(12))
    return module.balancer


@pytest.mark.parametrize("key", AVERAGING)
def test_averaged_weights_leave_the_state_that_training_ended_with(key, tmp_path, state_of):
    assert state_of(fitted(tmp_path, AVERAGING[key]())) == state_of(fitted(tmp_path))


def test_averaged_buffers_are_another_state(tmp_path, state_of):
    """Lightning's default, of which the page warns."""
    assert state_of(fitted(tmp_path, WeightAveraging())) != state_of(fitted(tmp_path))


def test_the_page_runs(run_page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("lightning_fit")


def test_the_example_runs(run_example):
    assert "of the labels" in run_example("lightning_fit")
