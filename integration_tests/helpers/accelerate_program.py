"""Runs of accelerate with a balancer; and as a program, one of two processes: `python accelerate_program.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from in_torch import TAUGHT as NAMES
from in_torch import Pair, Rows, batch, exact_rows, make

ITEMS, STEPS = 16, 6


class Student(Pair):
    """A call gives the losses."""

    def __init__(self, seed: int = 0, balancer: Any = None) -> None:
        super().__init__(balancer, seed)

    def forward(self, i: int) -> dict[str, torch.Tensor]:
        return self.losses(*batch(i))


def trained(accelerator: Accelerator, model: Any, balancer: Any, optimizer: Any, batches: Iterable[int]) -> dict[str, torch.Tensor]:
    """The total of each micro-batch, as docs/hosts/accelerate_loop.md shows."""
    totals = {}
    for i in batches:
        with accelerator.accumulate(model):
            total = balancer(model(i))
            accelerator.backward(total)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                balancer.step()
        totals[str(i)] = total.detach()
    return totals


def exact_run(parts: int, amounts: str = "means") -> list[Any]:
    """Weights and state after each optimizer step: the balancer stands beside a model that may be wrapped."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    rank, world = accelerator.process_index, accelerator.num_processes
    balancer = make("ema", NAMES).to(accelerator.device)
    model = Rows()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    for i in range(STEPS * parts):
        step, part = divmod(i, parts)
        with accelerator.accumulate(model):
            rows = model(exact_rows(step).chunk(parts * world)[part * world + rank])
            if amounts == "means":
                total = balancer(dict(zip(NAMES, rows.mean(0).unbind(), strict=True)))
            else:
                losses = dict(zip(NAMES, (rows.sum(0) / ITEMS).unbind(), strict=True))
                total = balancer(losses, share=len(rows) / ITEMS) * parts  # accelerate divides by the number of parts
            accelerator.backward(total)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                balancer.step()
                weights = balancer.weights({name: torch.ones(()) for name in NAMES})
                state = balancer.state_dict()
                seen.append(
                    [{name: [float(x).hex() for x in v.flatten()] for name, v in each.items()} for each in (weights, state)]
                )
    return seen


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    seen = exact_run(2)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()  # else its threads may abort the process as it ends
