"""Distil a classifier of handwritten digits with NVIDIA ModelOpt, its three losses weighed by a balancer.

The student learns from the labels, from the teacher's logits and from the teacher's hidden layer, whose loss is on another scale.
`EMANormalizedLossBalancer` divides each by its running mean.
"""

import modelopt.torch.distill as mtd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer
from loss_balancers.torch.modelopt import as_modelopt  # balancer


class Classifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.narrow = nn.Linear(width, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.narrow(self.hidden(x).relu()).relu())


def fit(model, x, labels, loss_of, epochs, after=lambda: None):
    """Trains ``model`` on batches of 20; ``loss_of`` its output and the labels is what is minimized."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(20):
            loss_of(model(x[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            after()


torch.set_num_threads(1)  # for layers this small, one is fastest
torch.manual_seed(0)
digits = load_digits()
x, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
few, rest = slice(0, 200), slice(200, None)

teacher = Classifier(128)
fit(teacher, x[rest], labels[rest], F.cross_entropy, epochs=10)

names = ("LogitsDistillationLoss_0", "MSELoss_1", "student_loss")  # balancer
config = {
    "teacher_model": teacher,
    "criterion": {("head", "head"): mtd.LogitsDistillationLoss(4.0, "batchmean"), ("narrow", "narrow"): nn.MSELoss()},
    "loss_balancer": as_modelopt(EMANormalizedLossBalancer(names)),  # balancer
}
student = mtd.convert(Classifier(16), mode=[("kd_loss", config)])


def total(output, labels):
    return student.compute_kd_loss(student_loss=F.cross_entropy(output, labels))


fit(student, x[few], labels[few], total, epochs=100, after=student.loss_balancer.step)  # balancer

with torch.no_grad():
    student.eval()
    output = student(x[rest])
    print(f"aggregate {total(output, labels[rest]):.3f} after {student.loss_balancer.steps} steps")  # balancer
student = mtd.export(student)
print(f"{(output.argmax(1) == labels[rest]).float().mean():.1%} of the labels, from 200 labelled images")
