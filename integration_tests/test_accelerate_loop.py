"""accelerate: accumulation, validation, its checkpoints, models that are dispatched, and two processes."""

import json
import os
import random
import subprocess
import sys

import accelerate_program as program
import pytest
import torch
from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.state import AcceleratorState, GradientState
from accelerate_program import NAMES, Student, exact_run, trained
from in_torch import KINDS, assert_same, make


@pytest.fixture(autouse=True)
def of_nobody_else():
    """accelerate keeps its state in the process: another library's run before this one would leave an unfinished loader there."""
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)


def started(kind, where="inside", seed=0):
    """What a run needs: accelerator, model, balancer and optimizer. Two micro-batches a step."""
    balancer = make(kind, NAMES)
    model = Student(seed, balancer if where == "inside" else None)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.student.parameters(), lr=1e-2))
    if where == "beside":
        accelerator.register_for_checkpointing(balancer)
    return accelerator, model, balancer, optimizer


@pytest.mark.parametrize("amounts", ["means", "shares"])
def test_weights_do_not_depend_on_how_a_batch_is_accumulated(amounts):
    one, four, sixteen = (exact_run(parts, amounts) for parts in (1, 4, 16))
    assert len(one) == program.STEPS
    assert len({json.dumps(weights) for weights, _ in one}) == program.STEPS  # weights that move
    assert one == four == sixteen
    assert one == exact_run(1)  # and means are shares of a whole


def test_two_processes_have_the_bits_of_one(tmp_path):
    """Two processes as `torchrun` starts them, each with a part of every micro-batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [program.__file__, str(tmp_path)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] == exact_run(1)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_during_training_is_not_observed(kind, state_of):
    accelerator, model, balancer, optimizer = started(kind)
    trained(accelerator, model, balancer, optimizer, range(7))  # something is pending
    before = state_of(balancer)
    model.eval()
    for i in range(100, 105):
        balancer(model(i))
    model.train()
    assert state_of(balancer) == before
    assert balancer.training


@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_load_state_resumes_goes_on_to_the_bit(kind, where, tmp_path, state_of):
    """The balancer is a part of the model, or beside it and registered."""
    stop = 2 * random.Random(f"{kind} of accelerate").randrange(1, 12)
    accelerator, model, balancer, optimizer = started(kind, where)
    trained(accelerator, model, balancer, optimizer, range(stop))
    accelerator.save_state(tmp_path)
    totals = trained(accelerator, model, balancer, optimizer, range(stop, 24))

    accelerator, other, again, optimizer = started(kind, where, seed=7)
    accelerator.load_state(tmp_path)
    assert_same(trained(accelerator, other, again, optimizer, range(stop, 24)), totals)
    assert_same(other.state_dict(), model.state_dict())
    probe = {name: torch.ones(()) for name in NAMES}
    assert_same(again.weights(probe), balancer.weights(probe))
    assert state_of(again) == state_of(balancer)


def test_a_step_that_the_scaler_skips_is_discarded(state_of):
    """Losses are finite, gradients times the scale are not. Then accelerate says that the step was skipped."""
    balancer, accelerator = make("ema", NAMES), Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # for mixed precision accelerate itself wants a GPU
    model = Student()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.student.parameters(), lr=0.1))
    before = state_of(balancer)
    skipped = []
    for i in range(12):
        with accelerator.accumulate(model):
            accelerator.backward(balancer(model(i)) * 64)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                skipped.append(accelerator.optimizer_step_was_skipped)
                if accelerator.optimizer_step_was_skipped:
                    balancer.discard()
                else:
                    balancer.step()
    assert skipped[0]
    assert not skipped[-1]
    assert balancer.steps == skipped.count(False)
    assert state_of(balancer) != before


ON_DISK = {"teacher": "cpu", "student": "disk", "balancer": "cpu"}


@pytest.mark.parametrize(("devices", "include_buffers"), [({"": "cpu"}, False), ({"": "cpu"}, True), (ON_DISK, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_load_checkpoint_and_dispatch(kind, devices, include_buffers, tmp_path, state_of):
    accelerator, model, balancer, optimizer = started(kind)
    trained(accelerator, model, balancer, optimizer, range(6))
    accelerator.save_model(model, tmp_path / "model")
    with init_empty_weights(include_buffers=include_buffers):
        other = Student(balancer=make(kind, NAMES))
    other = load_checkpoint_and_dispatch(other, tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offloaded")
    assert state_of(other.balancer) == state_of(balancer)
    with torch.no_grad():
        losses, expected = other(50), model(50)
    assert_same(losses, expected)
    assert_same({"total": other.balancer(losses)}, {"total": balancer(expected)})
    other.balancer.step()
    balancer.step()
    assert state_of(other.balancer) == state_of(balancer)


def test_a_table_on_meta_is_not_dispatched(tmp_path):
    """With `include_buffers=True` accelerate has no values for a buffer that is not in the checkpoint, and says so."""
    accelerator, model, *_ = started("scheduled")
    accelerator.save_model(model, tmp_path / "model")
    with init_empty_weights(include_buffers=True):
        other = Student(balancer=make("scheduled", NAMES))
    with pytest.raises(ValueError, match="_table is on the meta device"):
        load_checkpoint_and_dispatch(other, tmp_path / "model", device_map=ON_DISK, offload_folder=tmp_path / "offloaded")


def test_the_page_runs(run_page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("accelerate_loop")


def test_the_example_runs(run_example):
    assert "of the labels" in run_example("accelerate_loop")
