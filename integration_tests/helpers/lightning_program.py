"""A run of Lightning with a balancer: a module, and a program with two processes, `python lightning_program.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from in_torch import TAUGHT, Pair, Rows, batch, exact_rows, make

ITEMS, STEPS = 16, 6


class Loader:
    """The numbers of an epoch's batches; it says where it is, so that Lightning resumes within an epoch."""

    def __init__(self, batches: int) -> None:
        self.batches, self.begin = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        begin, self.begin = self.begin, 0
        for i in range(begin, self.batches):
            self.at = i + 1
            yield i

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"] % self.batches


class Distillation(Pair, lightning.LightningModule):
    """A student, its teacher and a balancer: what docs/hosts/lightning_fit.md shows. It notes total and weights of each batch."""

    names = TAUGHT

    def __init__(self, balancer: Any, seed: int = 0) -> None:
        super().__init__(balancer, seed)
        self.totals: dict[str, Any] = {}

    def training_step(self, i: int) -> torch.Tensor:
        losses = self.losses(*batch(i + 100 * self.current_epoch))
        self.log_dict(self.balancer.breakdown(losses))
        total = self.balancer(losses)
        self.totals[f"{self.current_epoch}.{i}"] = total.detach()
        return total

    def validation_step(self, i: int) -> None:
        self.log("val", self.balancer(self.losses(*batch(10_000 + i))), batch_size=ITEMS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=1e-2)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.balancer.step()


class Exact(Distillation):
    """The same with losses that are data, parted as the loader says."""

    def __init__(self, balancer: Any, parts: int, amounts: str = "means", rank: int = 0, world: int = 1) -> None:
        super().__init__(balancer)
        self.student = Rows()
        self.parts, self.amounts, self.rank, self.world = parts, amounts, rank, world
        self.seen: list[Any] = []

    def training_step(self, i: int) -> torch.Tensor:
        step, part = divmod(i, self.parts)
        rows = self.student(exact_rows(step)).chunk(self.parts * self.world)[part * self.world + self.rank]
        if self.amounts == "means":
            return self.balancer(dict(zip(self.names, rows.mean(0).unbind(), strict=True)))
        losses = dict(zip(self.names, (rows.sum(0) / ITEMS).unbind(), strict=True))
        return self.balancer(losses, share=len(rows) / ITEMS) * self.parts  # Lightning divides by the number of parts

    def validation_step(self, i: int) -> None:
        """Nothing to validate."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        probe = {name: torch.ones(()) for name in self.names}
        weights = {name: float(x).hex() for name, x in self.balancer.weights(probe).items()}
        state = {name: [float(x).hex() for x in value.flatten()] for name, value in self.balancer.state_dict().items()}
        self.seen.append([weights, state])


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """A quiet one."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(**(quiet | {"accelerator": "cpu", "devices": 1, "default_root_dir": folder} | options))


def exact_run(folder: Path, parts: int, amounts: str = "means", **options: Any) -> list[Any]:
    """Weights and state after each optimizer step."""
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), options.get("devices", 1)
    module = Exact(make("ema", Distillation.names), parts, amounts, rank, world)
    options |= {"accumulate_grad_batches": parts, "max_epochs": 1, "use_distributed_sampler": False}
    trainer(folder, **options).fit(module, Loader(STEPS * parts))
    return module.seen


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    seen = exact_run(folder, 2, devices=2, strategy="ddp")
    (folder / f"{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()  # else its threads may abort the process as it ends
