"""Is our `StaticLossBalancer` as fast as ModelOpt's, from which people come?

One call is ``torch.autograd.grad(balancer(losses), leaves)``: forward, and backward to the losses, in eager mode on the CPU, one
thread. The losses are float32 scalars and leaves, so that the call holds all of a balancer's own work and nothing of what
made the losses, which would be the same on both sides and hide a difference. ``--measure backward`` calls ``.backward()``
instead: that also stores a gradient in each leaf, which in training happens at the parameters and not at the losses.

Scalars on a CPU are the hard case for us: what counts there is Python and kernel launches, and the bits that the spec prescribes
take more kernels than ModelOpt's multiply and add (`keep`). Hence a bar below 1 for one KD loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness import Comparison, compare, environment
from modelopt.torch.distill.loss_balancers import StaticLossBalancer as Peer
from rich.console import Console
from rich.table import Table

from loss_balancers.parity.files import write_json
from loss_balancers.torch import STUDENT_LOSS_KEY, StaticLossBalancer

#: KD losses -> how many times faster than ModelOpt ours has to be.
BARS = {1: 0.9, 4: 1.25, 16: 1.7, 64: 2.0}


class Measure(StrEnum):
    """What is done with the aggregate."""

    GRAD = "grad"
    BACKWARD = "backward"


def losses_and_balancers(kd: int) -> tuple[dict[str, torch.Tensor], Peer, StaticLossBalancer]:
    """``kd`` KD losses and a student loss, and both balancers with a weight for each."""
    torch.manual_seed(kd)
    losses = {f"MSELoss_{i}": torch.rand(()).requires_grad_() for i in range(kd)}
    losses[STUDENT_LOSS_KEY] = torch.rand(()).requires_grad_()
    weights = [1 / (kd + 1)] * kd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ModelOpt's, that a student loss is needed: there is one
        return losses, Peer(weights), StaticLossBalancer(weights)


def step(balancer: Callable[[Any], torch.Tensor], losses: dict[str, torch.Tensor], measure: Measure) -> Callable[[], object]:
    """One call of ``balancer``, forward and backward."""
    leaves = list(losses.values())

    def grad() -> object:
        return torch.autograd.grad(balancer(losses), leaves)

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        balancer(losses).backward()

    return grad if measure is Measure.GRAD else backward


def assert_same_bits(losses: dict[str, torch.Tensor], peer: Peer, ours: StaticLossBalancer) -> None:
    """Both compute the same, or there is nothing to compare."""
    leaves = list(losses.values())
    aggregates = peer(losses), ours(losses)
    gradients = [torch.stack(torch.autograd.grad(aggregate, leaves)) for aggregate in aggregates]
    for theirs, own in (aggregates, gradients):
        if not torch.equal(theirs.detach().view(torch.int32), own.detach().view(torch.int32)):
            raise AssertionError(f"{len(leaves) - 1} KD losses: ModelOpt computes {theirs}, ours {own}")


def table(results: dict[int, Comparison]) -> Table:
    """The results as people read them."""
    shown = Table("K", "ModelOpt us", "ours us", "ratio", "quartiles", "bar", "ok", title="forward and backward of one call")
    for kd, result in results.items():
        low, high = result.quartiles
        ok = "yes" if result.ratio >= BARS[kd] else "NO"
        cells = f"{result.peer * 1e6:.1f}", f"{result.ours * 1e6:.1f}", f"{result.ratio:.2f}x", f"{low:.2f}-{high:.2f}"
        shown.add_row(str(kd), *cells, f"{BARS[kd]}x", ok)
    return shown


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count, for each number of losses.")] = 300,
    measure: Annotated[Measure, typer.Option(help="What is done with the aggregate.")] = Measure.GRAD,
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
) -> None:
    """Measures forward and backward against ModelOpt's `StaticLossBalancer`. Exit status 1 if a bar is missed."""
    torch.set_num_threads(1)
    results = {}
    for kd in BARS:
        losses, peer, ours = losses_and_balancers(kd)
        assert_same_bits(losses, peer, ours)
        results[kd] = compare(step(peer, losses, measure), step(ours, losses, measure), rounds=rounds)
    Console().print(table(results))
    met = all(result.ratio >= BARS[kd] for kd, result in results.items())
    if json is not None:
        rows = [{"kd_losses": kd, "bar": BARS[kd], **result._asdict()} for kd, result in results.items()]
        where = environment("torch", "nvidia-modelopt", "loss-balancers", "numpy")
        write_json(json, {"benchmark": "against_modelopt", "measure": measure, "met": met, **where, "results": rows})
    raise typer.Exit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
