"""Distil a classifier of handwritten digits in a plain loop with gradient scaling, each loss divided by its running mean.

The student learns from the labels and from the teacher. The scale of the gradients begins too high, so that the scaler skips the
first steps.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


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

student = classifier(16)
balancer = EMANormalizedLossBalancer(("KLDivLoss_0", "student_loss"))  # balancer
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
optimizer.register_step_post_hook(lambda *_: balancer.step())  # balancer
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
for _ in range(100):
    for x, labels in DataLoader(few, 20, shuffle=True):
        with torch.autocast("cpu", torch.float16):
            output, target = student(x), teacher(x)
        losses = {
            "student_loss": F.cross_entropy(output.float(), labels),
            "KLDivLoss_0": F.kl_div((output.float() / 4).log_softmax(-1), (target / 4).float().softmax(-1), reduction="batchmean"),
        }
        scaler.scale(balancer(losses)).backward()  # balancer
        scaler.step(optimizer)
        scaler.update()
        balancer.discard()  # balancer
        optimizer.zero_grad()

x, labels = rest[:]
with torch.no_grad():
    right = (student(x).argmax(1) == labels).float().mean()
print(f"{balancer.steps} of 1000 steps were taken, {right:.1%} of the labels, from 200 labelled images")  # balancer
