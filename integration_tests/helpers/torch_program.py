"""One of two processes that resume a sharded model from a distributed checkpoint: `python torch_program.py FOLDER KIND RANK`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from in_torch import TAUGHT as NAMES
from in_torch import Pair, assert_same, batch, make
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WORLD = 2


class Student(Pair):
    """A call gives the total."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.balancer(self.losses(x, labels))


def started(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sharded model and its optimizer."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model = Student(make(kind, NAMES), seed)
    fully_shard(model.student, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.Adam(model.student.parameters(), lr=1e-2)


def trained(model: Any, optimizer: torch.optim.Optimizer, steps: range, rank: int) -> dict[str, torch.Tensor]:
    """The totals of this rank; each has its own data."""
    totals = {}
    for step in steps:
        total = model(*batch(WORLD * step + rank))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.balancer.step()
        totals[str(step)] = total.detach()
    return totals


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a distributed checkpoint saves."""
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer}


def main(folder: str, kind: str, rank: int) -> None:
    """A run that is saved and goes on, and one that is resumed."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timedelta(seconds=600))
    model, optimizer = started(kind, seed=0)
    trained(model, optimizer, range(4), rank)
    checkpoint.save(state_of(model, optimizer), checkpoint_id=f"{folder}/checkpoint")
    totals = trained(model, optimizer, range(4, 9), rank)

    other, its_optimizer = started(kind, seed=7)
    state = state_of(other, its_optimizer)
    checkpoint.load(state, checkpoint_id=f"{folder}/checkpoint")
    set_state_dict(other, its_optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert_same(trained(other, its_optimizer, range(4, 9), rank), totals)
    ends = [{name: getattr(x, "to_local", lambda x=x: x)() for name, x in each.state_dict().items()} for each in (other, model)]
    assert_same(*ends)
    if kind != "static":
        assert other.balancer.steps == 9
    (Path(folder) / f"{rank}.same").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
