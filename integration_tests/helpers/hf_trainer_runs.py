"""Trainers for the tests of `BalancerCallback`; run by `torchrun`, one for each of two processes."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss
from transformers import Trainer, TrainingArguments

from loss_balancers.spec import schedules
from loss_balancers.torch import EMANormalizedLossBalancer, ScheduledLossBalancer, StaticLossBalancer

NAMES = ("student_loss", "MSELoss_0", "KLDivLoss_1")
BALANCERS = {
    "static": lambda: StaticLossBalancer([0.25, 0.5]),
    "scheduled": lambda: ScheduledLossBalancer([schedules.linear(0.0, 0.5, steps=8), 0.25], names=NAMES),
    "ema": lambda: EMANormalizedLossBalancer(NAMES, lagged=True),
    "ema of the current": lambda: EMANormalizedLossBalancer(NAMES, beta=0.5),
}


def arguments(folder, **given) -> TrainingArguments:
    return TrainingArguments(
        str(folder), **{
            "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "steps",
            "logging_steps": 100, "num_train_epochs": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 16,
            "remove_unused_columns": False, "label_names": ["labels"], "train_sampling_strategy": "sequential", "optim": "sgd",
            "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "dataloader_pin_memory": False,
        } | given
    )  # fmt: skip


# --- losses whose sums are exact ------------------------------------------------------------------------------------


class Point(nn.Module):
    """One parameter. Like the models of Transformers it takes keywords for its loss, so the Trainer counts labels."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, **kwargs):
        return self.p - self.p.detach()  # zero, with a gradient


def rows(items: dict[str, np.ndarray], count: int) -> list[dict[str, torch.Tensor]]:
    """The losses of single items as a dataset. Four rows with 3 labels follow four with 1: 32 labels in 16 rows."""
    found = []
    for i in range(count):
        labels = torch.tensor([0, 0, 0, -100]) if i % 8 < 4 else torch.tensor([0, -100, -100, -100])
        found.append({"losses": torch.stack([torch.tensor(items[name][i]) for name in NAMES]), "labels": labels})
    return found


class Recorder(Trainer):
    """Makes losses from those of items. ``kind``: "means" over a micro-batch, "shares", or "unsaid shares", without ``share=``."""

    def __init__(self, kind, balancer, **given):
        super().__init__(Point(), **given)
        self.kind, self.balancer, self.weights, self.shares = kind, balancer, [], []
        self.loss_is_scaled_for_ga = kind != "means"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)  # zero, with a gradient
        if self.kind == "means":
            losses, amount = dict(zip(NAMES, inputs["losses"].mean(0) + output, strict=True)), {}
        else:
            items = inputs["labels"].ne(-100).sum(-1)
            whole = num_items_in_batch / self.accelerator.num_processes
            share = items.sum() / whole
            sums = (inputs["losses"] * items[:, None]).sum(0) / whole
            losses = dict(zip(NAMES, sums + output * share, strict=True))
            amount = {"share": share} if self.kind == "shares" else {}
            self.shares.append(float(share))
        weights = self.balancer.weights(losses, **amount)
        self.weights.append({name: np.float32(float(weight)).tobytes().hex() for name, weight in weights.items()})
        return self.balancer(losses, **amount)


# --- a student and its teacher --------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.25), nn.Linear(16, 4))


def micro_batches(count: int) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(8, generator=rng), "labels": torch.randint(4, (), generator=rng)} for _ in range(count)]


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels=None):
        return self.net(x)


class Distiller(Trainer):
    """Distils a student, by means over micro-batches, and records what each training call was given and gave."""

    loss_is_scaled_for_ga = False

    def __init__(self, *, balancer, place, model=None, **given):
        model = Student() if model is None else model
        if place == "model":
            model.balancer = balancer
        super().__init__(model, train_dataset=micro_batches(512), **given)
        self.balancer = balancer
        self.teacher = mlp().eval()
        self.observed, self.losses, self.weights, self.breakdowns = [], [], [], []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["x"])
        with torch.no_grad():
            target = self.teacher(inputs["x"])
        p, q = logits.log_softmax(-1), target.log_softmax(-1)
        losses = {
            "student_loss": cross_entropy(logits, inputs["labels"]),
            "MSELoss_0": mse_loss(logits, target),
            "KLDivLoss_1": kl_div(p, q, log_target=True, reduction="batchmean"),
        }
        if model.training and hasattr(self.balancer, "weights"):
            self.observed.append({name: x.detach() for name, x in losses.items()})
            self.weights.append({name: float(x) for name, x in self.balancer.weights(losses).items()})
            self.breakdowns.append({name: float(x) for name, x in self.balancer.breakdown(losses).items()})
        loss = self.balancer(losses)
        if model.training:
            self.losses.append(float(loss.detach()))
        return (loss, {"logits": logits}) if return_outputs else loss


def main(folder: Path) -> None:
    """What one rank of two finds: of 4 steps, and of the last 2 of them after a resume."""
    from loss_balancers.torch.transformers import BalancerCallback

    items = dict(np.load(folder / "items.npz"))
    found = []
    for resume in (None, str(folder / "checkpoint-2")):
        balancer = BALANCERS["ema"]()
        args = arguments(folder, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2, ddp_backend="gloo")
        given = {"args": args, "train_dataset": rows(items, 64), "callbacks": [BalancerCallback(balancer)]}
        trainer = Recorder("shares", balancer, **given)
        trainer.train(resume_from_checkpoint=resume)
        state = {name: value.tobytes().hex() for name, value in balancer.export_state()["state"].items()}
        found.append({"weights": trainer.weights, "state": state})
    rank = int(os.environ["RANK"])
    (folder / f"rank{rank}.json").write_text(json.dumps({**found[0], "resumed": found[1]}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()  # else its threads may abort the process as it ends
