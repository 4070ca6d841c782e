"""TRL's `GKDTrainer` with `BalancerCallback`: the trainer of the example, with its tokens, collator and loop."""

import importlib.util
import random
import re
import warnings

import pytest
from datasets import Dataset
from hosts import ROOT
from peft import LoraConfig

from loss_balancers.spec import schedules
from loss_balancers.torch import EMANormalizedLossBalancer, ScheduledLossBalancer, StaticLossBalancer
from loss_balancers.torch.transformers import BalancerCallback

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # TRL's own default
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]
NAMES = ("student_loss", "JSDLoss_0")
BALANCERS = {
    "static": lambda: StaticLossBalancer(0.5),
    "scheduled": lambda: ScheduledLossBalancer(schedules.linear(0.0, 1.0, steps=5), names=NAMES),
    "ema": lambda: EMANormalizedLossBalancer(NAMES, lagged=True),
}


@pytest.fixture(scope="module")
def example():
    """The example as a module; TRL says at import that its part is experimental."""
    spec = importlib.util.spec_from_file_location("trl_gkd_example", ROOT / "examples/hosts/trl_gkd.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(example, monkeypatch, tmp_path):
    """Trains the example's student with another balancer, and returns the Trainer; it records weights and losses of each call."""

    def trained(balancer, trainer=None, resume=None, peft_config=None, **given):
        class Recorded:
            """The balancer, where the example calls it."""

            def __call__(self, losses, share):
                weights = {name: float(x) for name, x in balancer.weights(losses, share=share).items()}
                total = balancer(losses, share=share)
                if balancer.training:
                    student.calls.append((weights, float(share), float(total.detach())))
                return total

        monkeypatch.setattr(example, "balancer", Recorded())
        settings = {
            "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.01,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_length": 32, "dataloader_pin_memory": False,
            "train_sampling_strategy": "sequential", "lmbda": 0.0, "logging_steps": 1, "optim": "sgd", "max_steps": 4,
        } | given  # fmt: skip
        teacher, args = example.language_model(32), example.GKDConfig(str(tmp_path / "out"), **settings)
        data = {"train_dataset": exact_rows(), "eval_dataset": exact_rows(), "processing_class": example.tokenizer()}
        make = example.Distiller if trainer is None else trainer(example)
        data |= {"peft_config": peft_config, "callbacks": [BalancerCallback(balancer)]}
        student = make(example.language_model(16), teacher, args, **data)
        student.calls = []
        student.train(resume_from_checkpoint=resume)
        return student

    return trained


def exact_rows() -> Dataset:
    """Any 16 rows have 64 tokens to learn, a power of two; a micro-batch of 4 has 8 or 24 of them."""
    texts = []
    rng = random.Random(0)
    digits = "one two three four five".split()  # noqa: SIM905
    for i in range(64):
        count = 1 if i % 8 < 4 else 5
        texts.append(" ".join(rng.choice(digits) for _ in range(count)))
    return Dataset.from_list(
        [{"messages": [{"role": "user", "content": "is"}, {"role": "assistant", "content": text}]} for text in texts]
    )


def exact(example):
    """The example's trainer with losses whose sums are exact: those of a token are small multiples of 1/64."""

    class Exact(example.Distiller):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            targets = inputs["labels"][:, 1:]
            found, zero = targets[targets.ne(-100)], outputs.logits.sum() * 0.0
            ce, kd = found.sum() / 64 / num_items_in_batch + zero, (found * found).sum() / 64 / num_items_in_batch + zero
            return example.balancer({"student_loss": ce, "JSDLoss_0": kd}, share=len(found) / num_items_in_batch)

    return Exact


def test_accumulation_does_not_change_weights_or_state(train, state_of):
    runs = {}
    for size in (4, 1):
        parts = 16 // size
        student = train(balancer := BALANCERS["ema"](), exact, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        assert len(student.calls) == 4 * parts
        shares = [share for _, share, _ in student.calls]
        assert [sum(shares[i : i + parts]) for i in range(0, len(shares), parts)] == [1.0] * 4
        assert len(set(shares)) == 2
        runs[size] = [weights for weights, _, _ in student.calls[::parts]], state_of(balancer)
        assert balancer.steps == 4
    assert runs[4] == runs[1]
    assert len(set(map(str, runs[4][0]))) == 4


def test_the_losses_of_the_example_are_shares_and_add_up(train):
    """The aggregates of a step add up to that of one batch, up to the rounding of the model's sums."""
    sums = [
        train(StaticLossBalancer(0.5), per_device_train_batch_size=size, gradient_accumulation_steps=16 // size, max_steps=1)
        for size in (16, 4, 1)
    ]
    totals = [sum(total for _, _, total in student.calls) for student in sums]
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
    assert totals[2] == pytest.approx(totals[0], rel=1e-5)


def test_no_evaluation_is_observed(train, state_of):
    balancer, same = BALANCERS["ema"](), []

    def guarded(example):
        class Guarded(example.Distiller):
            def evaluate(self, *args, **kwargs):
                before = state_of(balancer)
                result = super().evaluate(*args, **kwargs)
                same.append(state_of(balancer) == before)
                return result

        return Guarded

    train(balancer, guarded, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    assert same == [True] * 5
    assert balancer.steps == 4


@pytest.mark.parametrize(("name", "lora"), [*((name, False) for name in BALANCERS), ("ema", True)])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(train, state_of, tmp_path, name, lora):
    step = random.Random(name).randrange(1, 4)
    given = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None}
    whole = train(ours := BALANCERS[name](), save_strategy="steps", save_steps=step, **given)
    again = train(theirs := BALANCERS[name](), resume=str(tmp_path / f"out/checkpoint-{step}"), **given)
    assert (tmp_path / f"out/checkpoint-{step}/adapter_config.json").exists() == lora
    assert again.calls == whole.calls[4 * step :]
    assert state_of(theirs) == state_of(ours)
    bits = [[x.detach().numpy().tobytes() for x in student.model.parameters()] for student in (again, whole)]
    assert bits[0] == bits[1]


def test_the_example_runs(run_example, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "balancer/JSDLoss_0/weight" in run_example("trl_gkd")


def test_the_page_shows_the_example():
    """Its code is not run by itself: it is a part of the example."""
    page = (ROOT / "docs/hosts/trl_gkd.md").read_text("utf-8")
    (shown,) = re.findall(r"    (class Distiller\(GKDTrainer\):\n(?:    .*\n|\n)*?)\n    trainer =", page)
    text = (ROOT / "examples/hosts/trl_gkd.py").read_text("utf-8")
    assert re.sub(r"^    ", "", shown, flags=re.MULTILINE) in re.sub(r"  # .*", "", text)
