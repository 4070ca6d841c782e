"""Distil a classifier of handwritten digits with Lightning, each loss divided by its running mean.

The student learns from the labels and from the teacher. A batch is two micro-batches.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Student(lightning.LightningModule):
    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.student = classifier(16)
        self.balancer = EMANormalizedLossBalancer(("KLDivLoss_0", "student_loss"), lagged=True)  # balancer

    def training_step(self, batch):
        x, labels = batch
        output, target = self.student(x), self.teacher(x)
        losses = {
            "student_loss": F.cross_entropy(output, labels),
            "KLDivLoss_0": F.kl_div((output / 4).log_softmax(-1), (target / 4).softmax(-1), reduction="batchmean") * 16,
        }
        return self.balancer(losses)  # balancer

    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters(), lr=1e-2)

    def optimizer_step(self, *args, **kwargs):  # balancer
        super().optimizer_step(*args, **kwargs)  # balancer
        self.balancer.step()  # balancer


class Teacher(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = classifier(128)

    def training_step(self, batch):
        x, labels = batch
        return F.cross_entropy(self.model(x), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)  # for layers this small, one is fastest
    lightning.seed_everything(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    few, rest = torch.utils.data.random_split(data, [200, len(data) - 200])
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "devices": 1}

    teacher = Teacher()
    lightning.Trainer(max_epochs=10, **quiet).fit(teacher, DataLoader(rest, 50, shuffle=True))
    student = Student(teacher.model)
    trainer = lightning.Trainer(max_epochs=100, accumulate_grad_batches=2, **quiet)
    trainer.fit(student, DataLoader(few, 10, shuffle=True))

    x, labels = rest[:]
    with torch.no_grad():
        right = (student.student(x).argmax(1) == labels).float().mean()
    print(f"{trainer.global_step} optimizer steps, {right:.1%} of the labels, from 200 labelled images")
