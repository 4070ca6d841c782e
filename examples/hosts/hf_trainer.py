"""Distils a classifier of digits with Hugging Face's `Trainer`: `make host HOST=hf_trainer`."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss
from transformers import Trainer, TrainingArguments

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer
from loss_balancers.torch.transformers import BalancerCallback  # balancer

NAMES = ("student_loss", "KLDivLoss_0", "MSELoss_1")
balancer = EMANormalizedLossBalancer(NAMES, beta=0.9, target="student_loss", lagged=True)  # balancer


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Distiller(Trainer):
    loss_is_scaled_for_ga = False  # the losses are means over a micro-batch
    teacher: nn.Module

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        with torch.no_grad():
            target = self.teacher(**inputs)["logits"]
        logits = output["logits"]
        losses = {
            "student_loss": output["loss"],
            "KLDivLoss_0": kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"),
            "MSELoss_1": mse_loss(logits, target),
        }
        loss = balancer(losses)  # balancer
        return (loss, output) if return_outputs else loss


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = [{"x": torch.tensor(x, dtype=torch.float32) / 16, "labels": int(y)} for x, y in zip(images, labels, strict=True)]
    given = {"train_dataset": data[:1500], "eval_dataset": data[1500:], "compute_metrics": accuracy}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=16, learning_rate=0.02,
            gradient_accumulation_steps=2, num_train_epochs=3, logging_steps=47, save_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        teacher = Trainer(Net(128), args, **given)
        teacher.train()
        given["callbacks"] = [BalancerCallback(balancer)]  # balancer
        student = Distiller(Net(32), args, **given)
        student.teacher = teacher.model
        student.train()
        print("accuracy of the student:", round(student.evaluate()["eval_accuracy"], 3))


if __name__ == "__main__":
    main()
