"""Distils a classifier of digits on the ranks that `torchrun` starts. Started again, it goes on from its checkpoint."""

import argparse
import hashlib
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
options = parser.parse_args()
alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29599"}  # without `torchrun`
os.environ |= {name: value for name, value in alone.items() if name not in os.environ}
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

images, labels = load_digits(return_X_y=True)
teacher = LogisticRegression(max_iter=200).fit(images / 16, labels).predict_log_proba(images / 16)
x, y, taught = torch.tensor(images / 16).float(), torch.tensor(labels), torch.tensor(teacher).float()


class Distilled(torch.nn.Module):
    """A student, and the loss that it is trained on."""

    def __init__(self):
        super().__init__()
        self.student = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        self.balancer = EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0"), lagged=True)  # balancer

    def forward(self, x, y, taught):
        """The aggregate of a batch."""
        log_p = F.log_softmax(self.student(x), dim=1)
        kd = F.kl_div(log_p, taught, reduction="batchmean", log_target=True)
        return self.balancer({"student_loss": F.nll_loss(log_p, y), "KLDivLoss_0": kd})  # balancer


torch.manual_seed(0)
model = DistributedDataParallel(Distilled())
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
start = 0
if options.checkpoint.exists():
    held = torch.load(options.checkpoint)
    model.module.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    start = held["step"]
for step in range(start, options.steps):
    rows = torch.randint(0, len(x), (64,), generator=torch.Generator().manual_seed(step))[rank::ranks]
    optimizer.zero_grad()
    loss = model(x[rows], y[rows], taught[rows])
    loss.backward()
    optimizer.step()
    model.module.balancer.step()  # balancer
    if (step + 1) % 20 == 0 and rank == 0:
        partial = options.checkpoint.with_suffix(".partial")
        torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial)
        partial.replace(options.checkpoint)

held = b"".join(value.numpy().tobytes() for value in model.module.state_dict().values())
digest = hashlib.sha256(held).hexdigest()[:16]
print(f"rank {rank} of {ranks}, step {options.steps} from {start}: model and state {digest}", flush=True)
dist.destroy_process_group()
