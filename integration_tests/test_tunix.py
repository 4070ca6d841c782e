"""Tunix with `loss_balancers.jax.tunix.BalancedTrainer`: full and LoRA students, accumulation, evaluation, restarts."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hosts import NAMES
from tunix.distillation import strategies
from tunix.distillation.distillation_trainer import DistillationTrainer, TrainingConfig, TrainingInput

import loss_balancers.jax
from loss_balancers.jax.tunix import BalancedTrainer
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import errors
from loss_balancers.spec.formats import round_to
from loss_balancers.spec.schedules import linear

PAIR = ("student_loss", "KLDivLoss_0")
#: Of Tunix: how it looks for the mesh, and the norm of gradients.
pytestmark = [
    pytest.mark.filterwarnings("ignore:jax.interpreters.pxla.thread_resources is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning"),
]
LORA = [pytest.param(False, id="full"), pytest.param(True, id="lora")]


class Student(nnx.Module):
    """A language model of 16 words that looks at one word; with ``lora`` its last layer has LoRA parameters."""

    def __init__(self, width: int, seed: int, lora: bool = False) -> None:
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(16, width, rngs=rngs)
        self.head = nnx.LoRALinear(width, 16, lora_rank=2, rngs=rngs) if lora else nnx.Linear(width, 16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.embed(x))


def answers(model: Any, input_tokens: Any, input_mask: Any) -> Any:
    del input_mask
    return model(input_tokens)


def labels(input_tokens: Any, input_mask: Any) -> Any:
    del input_mask
    return jax.nn.one_hot(jnp.roll(input_tokens, -1, 1), 16)


def logits(alpha: float = 0.5) -> strategies.LogitStrategy:
    return strategies.LogitStrategy(answers, answers, labels, alpha=alpha)


def tokens(batches: int) -> list[TrainingInput]:
    rng = np.random.default_rng(0)
    return [TrainingInput(input_tokens=rng.integers(0, 16, (4, 8)), input_mask=np.ones((4, 8), bool)) for _ in range(batches)]


def make(name: str, auto_step: int | None) -> Any:
    """A new balancer for the losses of Tunix's `LogitStrategy`."""
    if name == "static":
        return loss_balancers.jax.StaticLossBalancer(0.3)
    if name.startswith("scheduled"):
        return loss_balancers.jax.ScheduledLossBalancer(
            {"KLDivLoss_0": linear(0.2, 0.8 if name == "scheduled" else 0.4, 6)}, auto_step=auto_step
        )
    return loss_balancers.jax.EMANormalizedLossBalancer(PAIR, beta=0.9, lagged=name == "ema-lagged", auto_step=auto_step)


class Written:
    """Keeps the losses that a trainer writes, as bytes: Tunix logs their mean."""

    losses: list[bytes]
    seen: list[tuple[np.float32, np.float32]]

    def _post_process_train_step(self, aux: Any) -> None:
        self.seen = [*getattr(self, "seen", []), tuple(np.float32(aux[f"distill/{kind}_loss"]) for kind in ("hard", "soft"))]
        super()._post_process_train_step(aux)  # type: ignore[misc]

    def _write_metrics(self, metrics_buffer: Any) -> None:
        if self._mode.value == "train":  # type: ignore[attr-defined]
            self.losses = [*getattr(self, "losses", []), *(np.asarray(x).tobytes() for x in metrics_buffer.losses)]
        super()._write_metrics(metrics_buffer)  # type: ignore[misc]


class Balanced(Written, BalancedTrainer):
    pass


class Own(Written, DistillationTrainer):
    pass


def config(steps: int, accumulated: int | None = None, folder: Any = None, every: int = 1) -> TrainingConfig:
    options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=3)
    return TrainingConfig(
        eval_every_n_steps=2,
        max_steps=steps,
        gradient_accumulation_steps=accumulated,
        checkpoint_root_directory=folder and str(folder),
        checkpointing_options=options,
    )


def trained(name: str, steps: int, *, folder: Any = None, lora: bool = False, every: int = 1) -> dict[str, Any]:
    """What a run to so many steps of two batches leaves, from a checkpoint if there is one: all of it as bytes."""
    student, balancer = Student(4, 0, lora), make(name, 2)
    trainer = Balanced(
        student, Student(8, 1), logits(), optax.adam(1e-2), config(steps, 2, folder, every), balancer=balancer
    )  # fmt: skip
    began = trainer.train_steps
    trainer.train(tokens(20))
    found = {".".join(map(str, path)): np.asarray(x[...]).tobytes() for path, x in nnx.to_flat_state(nnx.state(student))}
    state = {} if name == "static" else balancer.export_state()["state"]
    optimizer = [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(trainer.optimizer, nnx.optimizer.OptState))]
    state = {key: x.tobytes() for key, x in state.items()}
    table = np.asarray(balancer._table[...]).tobytes() if name.startswith("scheduled") else b""
    return {"began": began, "table": table, "losses": trainer.losses, "student": found, "optimizer": optimizer, "state": state}


@pytest.fixture
def from_data(exact_losses):
    """A strategy whose losses are columns of the data, and batches of 5 optimizer steps of 16 items in so many parts."""

    class FromData(strategies.BaseStrategy):
        def __init__(self, form: str) -> None:
            super().__init__(lambda model, **_: model(jnp.zeros((1, 1), int)), lambda model, **_: jnp.zeros(()), lambda **_: 0)
            self.form = form

        def compute_loss(self, student_output, teacher_output, labels):
            raise AssertionError

        def compute_eval_loss(self, student_output, labels):
            return student_output.sum(), {}

        def get_train_loss(self, student_model, teacher_output, inputs):
            x, touched = inputs["input_tokens"], self.get_student_outputs(student_model, inputs).sum() * 0
            reduced = x.sum(0) / (16 if self.form == "share" else len(x))
            amounts = {"items": jnp.float32(len(x)), "part": jnp.float32(len(x) / 16)}
            return reduced.sum(), {name: reduced[i] + touched for i, name in enumerate(NAMES)} | amounts

    x = np.stack([exact_losses(80)[name] for name in NAMES], axis=1)
    return FromData, lambda parts: [TrainingInput(input_tokens=part, input_mask=part) for part in np.split(x, 5 * parts)]


@pytest.mark.parametrize("form", ["mean", "count", "share"])
def test_accumulation_gives_the_weights_of_one_batch(from_data, state_of, form):
    strategy, batches = from_data
    states, weights = [], []
    for parts, how in ((1, "mean"), (4, form), (16, form)):
        balancer = loss_balancers.jax.EMANormalizedLossBalancer(NAMES, lagged=True, auto_step=parts)
        amounts = {"count": {"count": "items"}, "share": {"share": "part"}}.get(how, {})
        losses = {name: name for name in NAMES}
        trainer = BalancedTrainer(
            Student(4, 0), Student(8, 1), strategy(how), optax.sgd(0.1), config(5, parts if parts > 1 else None),
            balancer=balancer, losses=losses, **amounts,
        )  # fmt: skip
        trainer.train(batches(parts), batches(parts)[:1])
        balancer.step()  # the last optimizer step, which the next call would commit
        states.append(state_of(balancer))
        weights.append(balancer.weights({name: jnp.ones(()) for name in NAMES}))
        assert int(balancer.steps[...]) == 5
    assert len({float(x) for x in weights[0].values()}) == 3
    for state, found in zip(states[1:], weights[1:], strict=True):
        assert state == states[0]
        for name, x in found.items():
            assert_same_bits(np.asarray(x), np.asarray(weights[0][name]))


@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize("name", ["scheduled", "ema", "ema-lagged"])
def test_evaluation_is_not_observed(state_of, name, lora):
    states = []
    for evaluated in (None, tokens(3)):
        balancer = make(name, 2)
        trainer = BalancedTrainer(
            Student(4, 0, lora), Student(8, 1), logits(), optax.adam(1e-2), config(4, 2), balancer=balancer
        )  # fmt: skip
        trainer.train(tokens(8), evaluated)
        states.append(state_of(balancer))
    assert states[0] == states[1]
    assert np.frombuffer(states[0]["steps"], np.int32) == 3  # of 4: the last is pending


@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize(("name", "every"), [("static", 1), ("scheduled", 1), ("ema", 1), ("ema-lagged", 1), ("ema-lagged", 100)])
def test_a_run_resumes_from_a_checkpoint_with_the_same_bits(tmp_path, name, lora, every):
    at = int(np.random.default_rng(len(name) + lora + every).integers(2, 8))
    whole = trained(name, 9, lora=lora)
    before = trained(name, at, folder=tmp_path, lora=lora, every=every)
    after = trained(name, 9, folder=tmp_path, lora=lora, every=every)
    assert (before.pop("began"), after.pop("began"), whole.pop("began")) == (0, at, 0)
    assert before["losses"] + after.pop("losses") == whole.pop("losses")
    assert after == whole


def test_a_checkpoint_holds_no_table_so_the_schedule_that_is_given_counts(tmp_path):
    before = trained("scheduled", 4, folder=tmp_path)
    described = (tmp_path / "4/model_params/_METADATA").read_text("utf-8")
    assert "pending" in described
    assert "_table" not in described
    after = trained("scheduled-elsewhere", 9, folder=tmp_path)
    assert after["began"] == 4
    assert after["table"] == np.asarray(make("scheduled-elsewhere", 2)._table[...]).tobytes() != before["table"]


def test_a_lora_checkpoint_of_tunix_itself_would_lose_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(BalancedTrainer, "_keep_in_metadata", lambda *_: None)
    whole = trained("ema-lagged", 9, lora=True)
    before = trained("ema-lagged", 4, folder=tmp_path, lora=True)
    after = trained("ema-lagged", 9, folder=tmp_path, lora=True)
    assert before["losses"] + after["losses"] != whole["losses"]
    assert after["state"] != whole["state"]


def own_and_balanced(alpha: float, steps: int = 200) -> list[Any]:
    """A trainer that Tunix weighs by itself, and one with a balancer; each has been trained, from the same beginning."""
    trainers: list[Any] = []
    for own in (True, False):
        arguments = (Student(4, 0), Student(8, 1), logits(alpha), optax.adam(1e-2), config(steps))
        balanced = {"balancer": loss_balancers.jax.StaticLossBalancer(alpha)}
        trainers.append(Own(*arguments) if own else Balanced(*arguments, **balanced))
        trainers[-1].train(tokens(steps))
        assert len(trainers[-1].losses) == steps
        assert len(set(trainers[-1].losses)) > steps / 2
    return trainers


def parameters_of(trainer: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(trainer.model))]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_200_steps_have_the_bits_of_tunix_that_weighs_by_itself(alpha):
    """No product of these weights is rounded, so it does not matter whether XLA fuses one with the sum."""
    own, balanced = own_and_balanced(alpha)
    assert balanced.losses == own.losses
    assert parameters_of(balanced) == parameters_of(own)


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_with_other_weights_each_loss_is_what_the_spec_says_and_tunix_may_fuse_one_product(alpha):
    """Of the spec (A5): each product is rounded, then the sum. XLA may round Tunix's sum with an exact product in it."""
    own, balanced = own_and_balanced(alpha, 100)
    assert parameters_of(balanced) == parameters_of(own)  # so both saw the same losses
    assert balanced.seen == own.seen
    kd, student = np.float32(alpha), np.float32(1 - alpha)
    for ours, theirs, (hard, soft) in zip(balanced.losses, own.losses, balanced.seen, strict=True):
        rounded = kd * soft + student * hard
        fused = [fma(kd, soft, student * hard), fma(student, hard, kd * soft)]
        assert ours == rounded.tobytes()
        assert theirs in [x.tobytes() for x in (rounded, *fused)]


def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """``a * b + c``, rounded once."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    return np.float32(round_to(exact, "f32"))


def test_the_student_comes_back_without_the_balancer():
    student = Student(4, 0)
    before = nnx.graphdef(student)
    trainer = BalancedTrainer(student, Student(8, 1), logits(), optax.adam(1e-2), config(2), balancer=make("ema", 1))
    assert isinstance(student.balancer, loss_balancers.jax.DistillationLossBalancer)
    trainer.train(tokens(2))
    assert nnx.graphdef(student) == before


def test_errors_in_words():
    def trainer(balancer: Any, accumulated: int | None = None, **more: Any) -> BalancedTrainer:
        arguments = (Student(4, 0), Student(8, 1), logits(), optax.adam(1e-2), config(2, accumulated))
        return BalancedTrainer(*arguments, balancer=balancer, **more)

    for accumulated, auto_step in ((None, None), (4, 1), (None, 4)):
        with pytest.raises(ValueError, match="auto_step") as error:
            trainer(make("ema", auto_step), accumulated)
        assert str(error.value) == str(errors.tunix_auto_step(accumulated or 1, auto_step))
    with pytest.raises(ValueError, match="metrics") as error:
        trainer(make("ema", 1), losses={"student_loss": "distill/hard_loss", "KLDivLoss_0": "features"}).train(tokens(2))
    received = ["distill/soft_loss", "distill/hard_loss", "distill/kl_div", "distill/teacher_loss"]
    assert str(error.value) == str(errors.tunix_metrics(["features"], received))


def test_the_state_of_other_settings_is_refused(tmp_path):
    trained("ema", 2, folder=tmp_path, lora=True)
    with pytest.raises(ValueError, match="The state must have the settings of this balancer"):
        trained("ema-lagged", 4, folder=tmp_path, lora=True)


def test_the_example_runs(run_example):
    assert "student" in run_example("tunix_distill")


def test_the_page_runs(run_page):
    run_page("tunix_distill")
