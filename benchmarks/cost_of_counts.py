"""What does `count=` cost? Forward and backward of balancers with state, given how many items a loss is the mean of or not.

One call is ``torch.autograd.grad(balancer(losses), leaves)`` in training mode, eager, on the CPU, one thread, float32 scalars: the
hard case, since there Python and kernel launches count, and a count takes more of both. The peer is the same without a count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness import compare, environment
from rich.console import Console
from rich.table import Table

from loss_balancers.parity.files import write_json
from loss_balancers.torch import EMANormalizedLossBalancer

#: How many times the time without a count the one with a number on the host may take.
BAR = 1.05
COUNTS = {"number": 64, "on the device": torch.tensor(64.0)}


def call(balancer: Any, losses: dict[str, torch.Tensor], **keywords: Any) -> Callable[[], object]:
    """One forward and backward."""
    return lambda: torch.autograd.grad(balancer(losses, **keywords), list(losses.values()))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count, for each number of losses.")] = 300,
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
) -> None:
    """Measures what a count costs `EMANormalizedLossBalancer`. Exit status 1 if the bar is missed."""
    torch.set_num_threads(1)
    shown = Table("losses", "count", "without us", "with us", "times", "bar", title="forward and backward of one call")
    rows, met = [], True
    for losses_of_each in (2, 4, 8):
        names = [*(f"MSELoss_{i}" for i in range(losses_of_each - 1)), "student_loss"]
        losses = {name: torch.tensor(1.0 + i, requires_grad=True) for i, name in enumerate(names)}
        balancer = EMANormalizedLossBalancer(names)
        balancer.step()  # or it would warn, in the 100th forward, that this is never called
        for kind, count in COUNTS.items():
            result = compare(call(balancer, losses), call(balancer, losses, count=count), rounds=rounds)
            times, barred = 1 / result.ratio, kind == "number"
            met = met and (not barred or times <= BAR)
            rows.append({"losses": losses_of_each, "count": kind, "times": times, **result._asdict()})
            us = f"{result.peer * 1e6:.1f}", f"{result.ours * 1e6:.1f}"
            shown.add_row(str(losses_of_each), kind, *us, f"{times:.3f}x", f"{BAR}x" if barred else "")
    Console().print(shown)
    if json is not None:
        where = environment("torch", "loss-balancers", "numpy")
        write_json(json, {"benchmark": "cost_of_counts", "bar": BAR, "met": met, **where, "results": rows})
    raise typer.Exit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
