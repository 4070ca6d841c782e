"""Hugging Face's `Trainer` with `BalancerCallback`: accumulation, evaluation, checkpoints, skipped steps, logs, two processes."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hf_trainer_runs import BALANCERS, Distiller, Recorder, arguments, micro_batches, mlp, rows
from hosts import NAMES, ROOT
from transformers import EarlyStoppingCallback, TrainerCallback

from loss_balancers.spec import errors
from loss_balancers.torch import DistillationLossBalancer, EMANormalizedLossBalancer, StaticLossBalancer, UncertaintyLossBalancer
from loss_balancers.torch.transformers import BalancerCallback

pytestmark = pytest.mark.usefixtures("one_thread")


def ema():
    return EMANormalizedLossBalancer(NAMES, lagged=True)


# --- accumulation ---------------------------------------------------------------------------------------------------


def accumulated(folder, items, kind, size, balancer, callback=True):
    """Trains on the losses of 64 items: 4 steps of 16, in micro-batches of ``size``. Returns the Trainer."""
    args = arguments(folder, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size, learning_rate=1.0)
    callbacks = [BalancerCallback(balancer)] if callback else []
    trainer = Recorder(kind, balancer, args=args, train_dataset=rows(items, 64), callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["means", "shares"])
def test_accumulation_does_not_change_weights_or_state(exact_losses, state_of, tmp_path, kind):
    runs = {}
    for size in (16, 4, 1):
        trainer = accumulated(tmp_path, exact_losses(64), kind, size, balancer := ema())
        weights = trainer.weights
        parts = 16 // size
        assert len(weights) == 4 * parts
        assert all(weights[i] == weights[i - i % parts] for i in range(len(weights)))  # constant within a step
        runs[size] = weights[::parts], state_of(balancer)
        assert balancer.steps == 4
    assert runs[16] == runs[4] == runs[1]
    assert len(set(map(str, runs[16][0]))) == 4  # and they do change from step to step


def test_without_share_the_weights_depend_on_the_accumulation(exact_losses, tmp_path):
    """Else the test above says nothing."""
    runs = [accumulated(tmp_path, exact_losses(64), "unsaid shares", size, ema()) for size in (4, 1)]
    assert runs[0].weights[-1] != runs[1].weights[-1]


def test_shares_of_unequal_micro_batches_add_up_to_one(exact_losses, tmp_path):
    trainer = accumulated(tmp_path, exact_losses(64), "shares", 4, ema())
    assert [sum(trainer.shares[i : i + 4]) for i in range(0, 16, 4)] == [1.0] * 4
    assert len(set(trainer.shares)) > 1


@pytest.mark.parametrize("kind", ["means", "shares"])
def test_the_trainer_scales_the_gradient_as_the_recipe_says(exact_losses, tmp_path, kind):
    """The gradient of the parameter is the sum of the weights, however the batch is split: here to the bit, since it is 1."""
    for size in (16, 1):
        trainer = accumulated(tmp_path, exact_losses(64), kind, size, StaticLossBalancer([0.25, 0.25]))
        assert trainer.model.p == -4.0  # 4 steps of learning rate 1


# --- evaluation -----------------------------------------------------------------------------------------------------


class Guarded(Distiller):
    """Looks at state before and after each evaluation."""

    def __init__(self, state_of, **given):
        self.state_of, self.evaluations = state_of, []
        super().__init__(**given)

    def evaluate(self, *args, **kwargs):
        before = self.state_of(self.balancer)
        result = super().evaluate(*args, **kwargs)
        self.evaluations.append(self.state_of(self.balancer) == before)
        return result


@pytest.mark.parametrize("place", ["trainer", "model"])
def test_no_evaluation_is_observed(state_of, tmp_path, place):
    balancer = ema()
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True, max_steps=6)
    data, callbacks = micro_batches(32), [BalancerCallback(balancer)]
    trainer = Guarded(state_of, balancer=balancer, place=place, args=args, eval_dataset=data, callbacks=callbacks)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.predict(data)
    assert trainer.evaluations == [True] * 6
    assert balancer.steps == 6
    assert balancer.pending.count_nonzero() == 0
    assert balancer.training == trainer.model.training


def test_without_the_callback_an_evaluation_is_observed(state_of, tmp_path):
    """What the callback is for: a balancer that hangs on the Trainer does not get the model's mode."""
    trainer = Guarded(state_of, balancer=ema(), place="trainer", args=arguments(tmp_path), eval_dataset=micro_batches(32))
    trainer.evaluate()
    assert trainer.evaluations == [False]


def test_a_trainer_that_never_steps_is_warned(tmp_path):
    args = arguments(tmp_path, max_steps=60, gradient_accumulation_steps=2)
    trainer = Distiller(balancer=ema(), place="trainer", args=args)
    with pytest.warns(UserWarning, match=r"`step\(\)` was not called in 100 training forwards"):
        trainer.train()


# --- a learned balancer ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_learned_balancer_in_the_model_is_trained_by_the_trainer_s_optimizer(tmp_path):
    balancer = UncertaintyLossBalancer(NAMES)
    trainer = run(tmp_path, balancer, place="model")
    assert balancer.is_optimized_by(trainer.optimizer)
    assert balancer.log_variance.all()


def test_a_learned_balancer_beside_the_model_is_not_and_that_is_said(tmp_path):
    balancer = UncertaintyLossBalancer(NAMES)
    with pytest.warns(UserWarning, match="`log_variance` of this balancer did not change"):
        trainer = run(tmp_path, balancer, place="trainer")
    assert not balancer.is_optimized_by(trainer.optimizer)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def run(folder, balancer, place="trainer", resume=None, model=None, **given):
    args = arguments(folder, max_steps=10, gradient_accumulation_steps=2, **given)
    trainer = Distiller(balancer=balancer, place=place, model=model, args=args, callbacks=[BalancerCallback(balancer)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def parameters_of(trainer) -> list[bytes]:
    return [x.detach().numpy().tobytes() for x in trainer.model.parameters()]


@pytest.mark.parametrize("place", ["trainer", "model"])
@pytest.mark.parametrize("name", BALANCERS)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(state_of, tmp_path, name, place):
    step = random.Random(f"{name} {place}").randrange(1, 10)
    whole = run(tmp_path, ours := BALANCERS[name](), place, save_strategy="steps", save_steps=step)
    saved = tmp_path / f"checkpoint-{step}"
    again = run(tmp_path / "resumed", theirs := BALANCERS[name](), place, str(saved))
    assert again.losses == whole.losses[2 * step :]
    assert again.weights == whole.weights[2 * step :]
    assert len(again.losses) == 2 * (10 - step) > 0
    assert state_of(theirs) == state_of(ours)
    assert parameters_of(again) == parameters_of(whole)
    written = json.loads((saved / "trainer_state.json").read_text("utf-8"))["stateful_callbacks"]["BalancerCallback"]
    assert bool(written["attributes"]) == bool(state_of(ours))  # a balancer without state writes none


def test_without_the_callback_a_resumed_run_differs(state_of, tmp_path):
    whole = run(tmp_path, ours := ema(), save_strategy="steps", save_steps=5)
    args = arguments(tmp_path, max_steps=10, gradient_accumulation_steps=2)
    again = Distiller(balancer=(theirs := ema()), place="trainer", args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert state_of(theirs) != state_of(ours)
    assert again.losses != whole.losses[10:]


@pytest.mark.parametrize("kind", ["static", "ema"])
def test_a_checkpoint_without_state_is_a_warning_and_the_next_one_has_state(tmp_path, kind, recwarn):
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    Distiller(balancer=BALANCERS[kind](), place="trainer", args=args).train()
    if kind == "ema":
        with pytest.warns(UserWarning, match="The checkpoint of step 2 has no state of the balancer"):
            run(tmp_path, BALANCERS[kind](), resume=True, save_strategy="steps", save_steps=4)
    else:
        run(tmp_path, BALANCERS[kind](), resume=True, save_strategy="steps", save_steps=4)
    with_state = json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text("utf-8"))["stateful_callbacks"]
    assert bool(with_state["BalancerCallback"]["attributes"]) == (kind == "ema")


def test_a_checkpoint_of_another_balancer_is_refused(tmp_path):
    run(tmp_path, ema(), save_strategy="steps", save_steps=5)
    with pytest.raises(ValueError, match="beta"):
        run(tmp_path, EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True), resume=True)


def test_what_a_user_may_get_wrong_is_an_error_in_words(tmp_path):
    for wrong in (None, StaticLossBalancer, mlp()):
        with pytest.raises(TypeError) as caught:
            BalancerCallback(wrong)
        assert str(caught.value) == str(errors.callback_without_balancer(wrong))

    balancer = ema()
    both = [BalancerCallback(balancer), BalancerCallback(ema())]
    trainer = Distiller(balancer=balancer, place="trainer", args=arguments(tmp_path, max_steps=1), callbacks=both)
    with pytest.raises(ValueError, match="class names") as caught:
        trainer.train()
    assert str(caught.value) == str(errors.callbacks_of_one_name("BalancerCallback"))


def test_the_trainer_cannot_make_the_callback_anew_and_the_error_says_what_to_set(tmp_path):
    run(tmp_path, ema(), save_strategy="steps", save_steps=5)
    with pytest.raises(TypeError, match="restore_callback_states_from_checkpoint=False"):
        run(tmp_path, ema(), resume=True, restore_callback_states_from_checkpoint=True)


def test_two_balancers_have_a_callback_class_each(state_of, tmp_path):
    class Callback2(BalancerCallback):
        pass

    def both(folder, resume=None):
        balancer, second = ema(), BALANCERS["scheduled"]()
        args = arguments(folder, max_steps=4, save_strategy="steps", save_steps=2)
        callbacks = [BalancerCallback(balancer), Callback2(second)]
        trainer = Distiller(balancer=balancer, place="trainer", args=args, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return state_of(balancer), state_of(second)

    assert both(tmp_path) == both(tmp_path / "resumed", str(tmp_path / "checkpoint-2"))


# --- skipped steps --------------------------------------------------------------------------------------------------


def test_a_step_that_the_scaler_skips_is_dropped_and_not_counted(state_of, tmp_path):
    """The Trainer calls `on_optimizer_step` for it all the same."""

    class Skips(TrainerCallback):
        skipped, kept = 0, []

        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            self.skipped += optimizer.step_was_skipped
            if not optimizer.step_was_skipped:
                self.kept.append(state.global_step)

    balancer, seen = ema(), Skips()
    args = arguments(tmp_path, max_steps=8, gradient_accumulation_steps=2)
    trainer = Distiller(balancer=balancer, place="trainer", args=args, callbacks=[BalancerCallback(balancer), seen])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**66)  # the squares of the first gradients overflow
    trainer.train()
    assert 1 <= seen.skipped <= 7
    assert balancer.steps == 8 - seen.skipped

    alone = ema()
    for step in range(8):
        for losses in trainer.observed[2 * step : 2 * step + 2]:
            alone.observe(losses)
        if step in seen.kept:
            alone.step()
        else:
            alone.discard()
    assert state_of(alone) == state_of(balancer)


def test_an_attempt_that_runs_out_of_memory_leaves_nothing(state_of, tmp_path):
    """With `auto_find_batch_size` the Trainer begins anew, with smaller micro-batches."""

    class Fails(Distiller):
        calls = 0

        def compute_loss(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 2:  # in the first step, when one micro-batch has been observed
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(*args, **kwargs)

    balancer, alone = ema(), ema()
    args = arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2, auto_find_batch_size=True)
    trainer = Fails(balancer=balancer, place="trainer", args=args, callbacks=[BalancerCallback(balancer)])
    trainer.train()
    assert len(trainer.observed) == 5  # one in the first attempt
    for step in range(2):
        for losses in trainer.observed[1 + 2 * step : 3 + 2 * step]:
            alone.observe(losses)
        alone.step()
    assert state_of(balancer) == state_of(alone)


# --- logs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("place", ["trainer", "model"])
def test_the_logs_have_the_breakdown_of_the_last_micro_batch(tmp_path, name, place):
    balancer, logged = BALANCERS[name](), []

    class After(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(dict(logs))

    args = arguments(tmp_path, max_steps=6, gradient_accumulation_steps=2, logging_steps=3, eval_strategy="steps", eval_steps=2)
    callbacks = [BalancerCallback(balancer), After()]
    trainer = Distiller(balancer=balancer, place=place, args=args, eval_dataset=micro_batches(32), callbacks=callbacks)
    trainer.train()
    of_steps = [logs for logs in trainer.state.log_history if "loss" in logs]
    assert [logs["step"] for logs in of_steps] == [3, 6]
    for logs, at in zip(of_steps, (5, 11), strict=True):
        ours = {key.removeprefix("balancer/"): value for key, value in logs.items() if key.startswith("balancer/")}
        assert ours == trainer.breakdowns[at]
        assert len(ours) == 3 * len(NAMES) + 1
    others = [logs for logs in trainer.state.log_history if "loss" not in logs]
    assert len(others) == 4  # three evaluations, two of them at steps that do not log, and the summary
    assert not any(key.startswith("balancer/") for logs in others for key in logs)
    assert [{k: v for k, v in logs.items() if k[:9] == "balancer/"} for logs in logged if "loss" in logs] == [
        {k: v for k, v in logs.items() if k[:9] == "balancer/"} for logs in of_steps
    ]


def test_a_reporter_sees_the_breakdown_if_the_callback_comes_first(tmp_path):
    """Reporters come before the callbacks that a user passes, unless the user puts one first, as the page says."""
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append("balancer/student_loss/weight" in logs)

    for first in (False, True):
        balancer = ema()
        trainer = Distiller(balancer=balancer, place="trainer", args=arguments(tmp_path, max_steps=1, logging_steps=1))
        trainer.add_callback(Reporter)
        callback = BalancerCallback(balancer)
        if first:
            trainer.callback_handler.callbacks.insert(0, callback)
        else:
            trainer.add_callback(callback)
        trainer.train()
    assert seen == [False, False, True, False]  # a step's logs, then the summary


def test_between_logs_nothing_is_read_from_the_device(tmp_path, monkeypatch):
    """Reading a tensor waits for the device. The callback reads one vector at each step that logs, and nothing else."""
    counted, lists, tolist = Counter(), [], torch.Tensor.tolist

    def listed(x):
        if torch._C._len_torch_dispatch_stack():  # within `Reads`: a forward on the CPU may read the weights that it keeps
            lists.append(x)
        return tolist(x)

    monkeypatch.setattr(torch.Tensor, "tolist", listed)

    class Counting(BalancerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            with Reads(counted):
                super().on_optimizer_step(args, state, control, **kwargs)

        def on_log(self, args, state, control, **kwargs):
            with Reads(counted):
                super().on_log(args, state, control, **kwargs)

    balancer = ema()
    args = arguments(tmp_path, max_steps=6, logging_steps=3)
    Distiller(balancer=balancer, place="trainer", args=args, callbacks=[Counting(balancer)]).train()
    assert counted["ops"] > 100
    assert counted["reads"] == 0
    assert len(lists) == 2


def test_a_read_would_be_counted():
    counted = Counter()
    with Reads(counted):
        assert bool(torch.ones(()) > 0)
    assert counted["reads"] == 1


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted["ops"] += 1
        self.counted["reads"] += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# --- what else a Trainer does ---------------------------------------------------------------------------------------


def test_a_balancer_of_ones_own_needs_no_more_than_a_forward(tmp_path):
    class Sum(DistillationLossBalancer):
        def forward(self, loss):
            return sum(self.canonical(loss).values())

    trainer = run(tmp_path, Sum(), logging_steps=1)
    assert trainer.state.global_step == 10


def test_a_copy_of_a_model_with_the_balancer_is_not_the_trainers(tmp_path):
    trainer = run(tmp_path, balancer := ema(), place="model")
    for copied in (copy.deepcopy(trainer.model), pickle.loads(pickle.dumps(trainer.model))):
        before = copied.balancer.pending.clone()
        trainer.model.train()
        copied.eval()
        copied.balancer({name: torch.tensor(1.0) for name in NAMES})
        assert torch.equal(copied.balancer.pending, before)
        assert copied.balancer is not balancer
    assert all(callback._watch.call is None for callback in trainer.callback_handler.callbacks if hasattr(callback, "_watch"))


@pytest.mark.parametrize("place", ["trainer", "model"])
def test_the_watch_breaks_no_graph_and_compiles_once(tmp_path, place):
    balancer = ema()
    trainer = Distiller(balancer=balancer, place=place, args=arguments(tmp_path), callbacks=[BalancerCallback(balancer)])
    model = trainer.model.train()
    objective = torch.compile(balancer, fullgraph=True, backend="eager")
    losses = {name: torch.tensor(1.0, requires_grad=True) for name in NAMES}
    objective(losses)
    assert balancer.pending[-2] == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            balancer.step()
            objective(losses)
    model.eval()
    objective(losses)
    assert balancer.pending[-2] == 1


def test_early_stopping_works_beside_it(tmp_path):
    balancer = ema()
    args = arguments(
        tmp_path, max_steps=40, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2,
        load_best_model_at_end=True, learning_rate=0.0,
    )  # fmt: skip
    callbacks = [BalancerCallback(balancer), EarlyStoppingCallback(2)]
    trainer = Distiller(balancer=balancer, place="trainer", args=args, eval_dataset=micro_batches(32), callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == balancer.steps < 40


# --- processes ------------------------------------------------------------------------------------------------------


def test_two_ranks_have_the_bits_of_one_process_and_resume_with_the_same(exact_losses, state_of, tmp_path):
    items = exact_losses(64)
    np.savez(tmp_path / "items.npz", **items)
    program = ROOT / "integration_tests/helpers/hf_trainer_runs.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text("utf-8")) for rank in range(2))
    assert first == second
    alone = accumulated(tmp_path / "alone", items, "shares", 4, balancer := ema())
    assert first["weights"] == alone.weights[::2]  # two micro-batches of 4 on each of two ranks, against four on one
    assert first["state"] == {name: value.hex() for name, value in state_of(balancer).items()}
    assert first["resumed"] == {"weights": first["weights"][4:], "state": first["state"]}


# --- example and page -----------------------------------------------------------------------------------------------


def test_the_example_runs(run_example, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    printed = run_example("hf_trainer")
    assert "balancer/KLDivLoss_0/weight" in printed
    assert float(printed.split("accuracy of the student: ")[1]) > 0.7


def test_the_page_runs(run_page):
    run_page("hf_trainer")


def test_the_words_for_a_missing_library_name_the_extra():
    code = "import sys; sys.modules['transformers'] = None; import loss_balancers.torch.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert errors.missing_framework("torch.transformers", "transformers", "transformers") in done.stderr
