"""Distil a classifier of handwritten digits with accelerate, each loss divided by its running mean.

The student learns from the labels and from the teacher. A batch is two micro-batches.
"""

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def main() -> None:
    torch.set_num_threads(1)  # for layers this small, one is fastest
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    few, rest = torch.utils.data.random_split(data, [200, len(data) - 200])

    teacher = classifier(128)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(10):
        for x, labels in DataLoader(rest, 50, shuffle=True):
            F.cross_entropy(teacher(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    teacher.requires_grad_(False)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    student = classifier(16)
    balancer = EMANormalizedLossBalancer(("KLDivLoss_0", "student_loss"), lagged=True).to(accelerator.device)  # balancer
    accelerator.register_for_checkpointing(balancer)  # balancer
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    student, optimizer, loader = accelerator.prepare(student, optimizer, DataLoader(few, 10, shuffle=True))
    for _ in range(100):
        for x, labels in loader:
            with accelerator.accumulate(student):
                output, target = student(x), teacher(x)
                losses = {
                    "student_loss": F.cross_entropy(output, labels),
                    "KLDivLoss_0": F.kl_div((output / 4).log_softmax(-1), (target / 4).softmax(-1), reduction="batchmean") * 16,
                }
                accelerator.backward(balancer(losses))  # balancer
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:  # balancer
                    balancer.step()  # balancer
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)

    x, labels = rest[:]
    with torch.no_grad():
        right = (student(x).argmax(1) == labels).float().mean()
    print(f"{right:.1%} of the labels, from 200 labelled images")


if __name__ == "__main__":
    main()
