"""A plain loop in PyTorch: accumulation, validation, checkpoints, skipped steps, averaged models and sharded ones.

DDP, FSDP, both kinds of activation checkpointing and compiled steps are tested in torch_impl/tests.
"""

import random
import subprocess
import sys

import pytest
import torch
import torch_program as program
from in_torch import KINDS, Rows, assert_same, batch, exact_rows, make
from torch.optim.swa_utils import AveragedModel
from torch_program import NAMES, Student


def trained(model, optimizer, steps):
    """The total of each step, two micro-batches."""
    totals = {}
    for step in steps:
        for part in range(2):
            total = model(*batch(2 * step + part))
            (total / 2).backward()
            totals[f"{step}.{part}"] = total.detach()
        optimizer.step()
        optimizer.zero_grad()
        model.balancer.step()
    return totals


def started(kind, seed=0):
    model = Student(make(kind, NAMES), seed)
    return model, torch.optim.Adam(model.student.parameters(), lr=1e-2)


@pytest.mark.parametrize("amounts", ["means", "shares"])
def test_weights_do_not_depend_on_how_a_batch_is_accumulated(amounts, state_of):
    seen = {}
    for parts in (1, 4, 16):
        balancer, model = make("ema", NAMES), Rows()
        seen[parts] = []
        for step in range(6):
            for rows in model(exact_rows(step)).chunk(parts):
                if amounts == "means":
                    (balancer(dict(zip(NAMES, rows.mean(0).unbind(), strict=True))) / parts).backward(retain_graph=True)
                else:
                    losses = dict(zip(NAMES, (rows.sum(0) / 16).unbind(), strict=True))
                    balancer(losses, share=len(rows) / 16).backward(retain_graph=True)
            balancer.step()
            weights = balancer.weights({name: torch.ones(()) for name in NAMES})
            seen[parts].append((state_of(balancer), {name: x.numpy().tobytes() for name, x in weights.items()}))
    assert len({bytes(weights["MSELoss_1"]) for _, weights in seen[1]}) == 6  # weights that move
    assert seen[1] == seen[4] == seen[16]


@pytest.mark.parametrize("kind", KINDS)
def test_validation_during_training_is_not_observed(kind, state_of):
    model, optimizer = started(kind)
    trained(model, optimizer, range(3))
    model(*batch(6))  # something is pending
    before = state_of(model.balancer)
    model.eval()
    for i in range(100, 105):
        model(*batch(i))
    model.train()
    assert state_of(model.balancer) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_resumed_goes_on_to_the_bit(kind, tmp_path, state_of):
    stop = random.Random(f"{kind} of PyTorch").randrange(1, 12)
    model, optimizer = started(kind)
    trained(model, optimizer, range(stop))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    totals = trained(model, optimizer, range(stop, 12))

    other, optimizer = started(kind, seed=7)
    saved = torch.load(tmp_path / "checkpoint.pt")
    other.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert_same(trained(other, optimizer, range(stop, 12)), totals)
    assert_same(other.state_dict(), model.state_dict())
    assert state_of(other.balancer) == state_of(model.balancer)


def committed_by_hook(model, optimizer, scaler):
    """The first recipe on the page."""
    scaler.step(optimizer)
    scaler.update()
    model.balancer.discard()


def committed_by_scale(model, optimizer, scaler):
    """The second, for an optimizer that skips a step by itself."""
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < scale:
        model.balancer.discard()
    else:
        model.balancer.step()


@pytest.mark.parametrize(
    ("commit", "fused"),
    [(committed_by_hook, False), (committed_by_scale, False), (committed_by_scale, True)],
    ids=["hook", "scale", "scale, fused"],
)
@pytest.mark.parametrize("kind", ["scheduled", "ema"])
def test_a_step_that_the_scaler_skips_leaves_no_trace(kind, commit, fused, state_of):
    """Losses are finite, a gradient is not. State, weights and parameters are those of a run that never saw that step."""
    runs = []
    for skipped in ((2, 5), ()):
        model = Student(make(kind, NAMES))
        optimizer = torch.optim.Adam(model.student.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6, backoff_factor=0.5)
        if commit is committed_by_hook:
            optimizer.register_step_post_hook(lambda *_, model=model: model.balancer.step())
        for step in range(8):
            if step in (2, 5) and step not in skipped:
                continue
            total = model(*batch(step))
            scaler.scale(total).backward()
            if step in skipped:
                next(model.student.parameters()).grad[0] = torch.inf
            commit(model, optimizer, scaler)
            optimizer.zero_grad()
        runs.append((state_of(model.balancer), {name: x.numpy().tobytes() for name, x in model.student.state_dict().items()}))
        assert model.balancer.steps == 6
        assert not model.balancer.pending.any()
    assert runs[0] == runs[1]


def test_without_a_recipe_a_skipped_step_is_counted():
    model, optimizer = started("ema")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(*batch(0))).backward()
    next(model.student.parameters()).grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    model.balancer.step()
    assert model.balancer.steps == 1
    assert model.balancer.fix.any()


def test_a_hook_takes_a_fused_optimizers_skipped_step_for_one():
    """A fused optimizer is always called, and skips on the device: why the page has two recipes."""
    model = Student(make("ema", NAMES))
    optimizer = torch.optim.Adam(model.student.parameters(), lr=1e-2, fused=True)
    optimizer.register_step_post_hook(lambda *_: model.balancer.step())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(*batch(0))).backward()
    next(model.student.parameters()).grad[0] = torch.inf
    committed_by_hook(model, optimizer, scaler)
    assert model.balancer.steps == 1


@pytest.mark.parametrize("kind", ["scheduled", "ema"])
def test_an_averaged_model_averages_counters_too(kind):
    model, optimizer = started(kind)
    averaged = AveragedModel(model, use_buffers=True)
    for step in range(5):
        trained(model, optimizer, range(step, step + 1))
        averaged.update_parameters(model)
    assert model.balancer.steps == 5
    assert averaged.module.balancer.steps != 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_page_says_gives_an_averaged_model_the_state(kind, state_of):
    model, optimizer = started(kind)
    averaged = AveragedModel(model, use_buffers=True)
    for step in range(5):
        trained(model, optimizer, range(step, step + 1))
        averaged.update_parameters(model)
        averaged.module.balancer.load_state_dict(model.balancer.state_dict())
    assert state_of(averaged.module.balancer) == state_of(model.balancer)
    losses = dict(zip(NAMES, torch.tensor([0.3, 0.7, 1.1]).unbind(), strict=True))
    assert_same(averaged.module.balancer.weights(losses), model.balancer.weights(losses))


def test_an_averaged_model_without_buffers_copies_the_state(state_of):
    model, optimizer = started("ema")
    averaged = AveragedModel(model)
    for step in range(5):
        trained(model, optimizer, range(step, step + 1))
        averaged.update_parameters(model)
    assert state_of(averaged.module.balancer) == state_of(model.balancer)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize(("kind", "backend"), [*((kind, "aot_eager") for kind in KINDS), ("ema", "inductor")])
def test_a_whole_step_compiled_has_the_bits_of_eager_on_the_same_losses(kind, backend, state_of):
    """With optimizer and `zero_grad`, at which Dynamo parts the graph. The student's own roundings are the compiler's business."""
    (model, optimizer), eager = started(kind), make(kind, NAMES)

    @torch.compile(backend=backend)
    def train(x, labels):
        losses = model.losses(x, labels)
        total = model.balancer(losses)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.balancer.step()
        return total.detach(), {name: x.detach() for name, x in losses.items()}

    torch._dynamo.reset()
    for step in range(8):
        total, losses = train(*batch(step))
        assert_same({"total": total}, {"total": eager(losses)})
        eager.step()
        assert state_of(model.balancer) == state_of(eager)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distributed_checkpoint_of_a_sharded_model_is_resumed_to_the_bit(kind, tmp_path):
    command = [sys.executable, "-W", "ignore", program.__file__, str(tmp_path), kind]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(program.WORLD)]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert len(list(tmp_path.glob("*.same"))) == program.WORLD


def test_the_page_runs(run_page):
    run_page("plain_torch")


def test_the_example_runs(run_example):
    assert "of the labels" in run_example("plain_torch")
