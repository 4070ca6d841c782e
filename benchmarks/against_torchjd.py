"""Are our adaptive balancers as fast as TorchJD's scalarizers of the same methods, in eager PyTorch on a CPU?

One call is a training step without the model: forward, backward to the losses and to the balancer's parameters, and what the method
does at an optimizer step, which is `step()`, and `update()` with the losses after it where there is one. One thread, float32
scalars that are leaves, as in `against_modelopt.py`. Theirs takes a vector, so its side stacks the losses first, as its users must.

Which of our balancers have a peer follows from names: ours without "LossBalancer" is theirs, or stands in `NAMES_THERE`. Each has
the defaults of its class and the same number of losses. Of DWA an epoch is ten steps, on both sides.

The kernels of a step stand beside the times; `kernels.py` says what is counted.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from harness import Comparison, compare, environment
from kernels import kernels
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torchjd import scalarization  # type: ignore[reportMissingImports]  # of the extra [hosts]

import loss_balancers.torch
from loss_balancers.parity.files import write_json, write_text
from loss_balancers.spec.registry import SETTINGS

PAGE = Path(__file__).parent.parent / "docs" / "evidence" / "against-torchjd.md"
COMMAND = "python benchmarks/against_torchjd.py --write"
#: What TorchJD calls a method that we call otherwise.
NAMES_THERE = {"Geometric": "GeometricMean", "IMTL": "IMTLL", "Uncertainty": "UW"}
#: What is given beside the names, here and there, where there is no default.
SETTINGS_HERE: dict[str, dict[str, Any]] = {"DWA": {"epoch_steps": 10}}
SETTINGS_THERE: dict[str, dict[str, Any]] = {"STCH": {"mu": 1.0}}
EPOCH = {"DWA": 10}
LOSSES = (3, 8)


class Side(NamedTuple):
    """A step in its parts."""

    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], object]
    commit: Callable[[], object]

    def __call__(self) -> object:
        """All of it."""
        gradients = self.backward(self.forward())
        self.commit()
        return gradients

    def kernels(self) -> tuple[int, int, int]:
        """How many each part takes."""
        kept: list[torch.Tensor] = []
        parts = (lambda: kept.append(self.forward()), lambda: self.backward(kept[0]), self.commit)
        forward, backward, commit = (kernels(part).total() for part in parts)
        return forward, backward, commit


class Row(NamedTuple):
    """What was measured of a balancer with so many losses."""

    balancer: str
    peer: str
    losses: int
    times: Comparison
    theirs: tuple[int, int, int]
    ours: tuple[int, int, int]


def peer_of(balancer: str) -> str | None:
    """The name of TorchJD's class for a balancer; None if there is none."""
    method = balancer.removesuffix("LossBalancer")
    name = NAMES_THERE.get(method, method)
    return name if name in scalarization.__all__ else None


def names_of(count: int) -> tuple[str, ...]:
    """Names of losses."""
    return (*(f"MSELoss_{i}" for i in range(count - 1)), "student_loss")


def drawn(count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses, which are leaves, and those after a step."""
    generator = torch.Generator().manual_seed(count)
    before = [x.clone().requires_grad_() for x in torch.rand(count, generator=generator) + 0.5]
    return before, [x.detach() * 0.9 for x in before]


def here(balancer: str, count: int) -> Side:
    """A step of ours."""
    method = balancer.removesuffix("LossBalancer")
    made = getattr(loss_balancers.torch, balancer)(names_of(count), **SETTINGS_HERE.get(method, {}))
    before, after = (dict(zip(names_of(count), losses, strict=True)) for losses in drawn(count))
    leaves = [*before.values(), *made.parameters()]
    update, step = getattr(made, "update", None), made.step

    def commit() -> None:
        if update is not None:
            update(after)
        step()

    return Side(lambda: made(before), lambda aggregate: torch.autograd.grad(aggregate, leaves), commit)


def there(peer: str, count: int) -> Side:
    """A step of theirs."""
    kind = getattr(scalarization, peer)
    arguments = (count,) if "shape" in inspect.signature(kind.__init__).parameters else ()
    made = kind(*arguments, **SETTINGS_THERE.get(peer, {}))
    before, after = drawn(count)
    # FAMO's logits are a parameter that it trains itself.
    leaves = [*before, *(parameter for name, parameter in made.named_parameters() if not name.startswith("_"))]
    update, epoch, steps = getattr(made, "update", None), EPOCH.get(peer), 0

    def commit() -> None:
        nonlocal steps
        if update is not None:
            update(torch.stack(after))
        steps += 1
        if epoch and steps % epoch == 0:
            made.step()

    return Side(lambda: made(torch.stack(before)), lambda value: torch.autograd.grad(value, leaves), commit)


def measured(balancer: str, peer: str, count: int, rounds: int) -> Row:
    """Times both sides, and counts the kernels of one step of each."""
    theirs, ours = there(peer, count), here(balancer, count)
    for side in (theirs, ours):
        for _ in range(25):
            side()
    return Row(balancer, peer, count, compare(theirs, ours, rounds=rounds), theirs.kernels(), ours.kernels())


HEADINGS = ("losses", "theirs, us", "ours, us", "ratio", "quartiles", "kernels, theirs", "kernels, ours")
SHORT = ("losses", "theirs us", "ours us", "ratio", "quartiles", "kernels", "ours")


def cells(row: Row, parts: bool) -> list[str]:
    """What the tables show: the kernels in parts, or all together."""
    low, high = row.times.quartiles
    times = f"{row.times.peer * 1e6:.0f}", f"{row.times.ours * 1e6:.0f}", f"{row.times.ratio:.2f}x", f"{low:.2f}-{high:.2f}"
    return [f"{row.losses}", *times, *(" + ".join(map(str, each)) if parts else f"{sum(each)}" for each in (row.theirs, row.ours))]


TOP = """\
# Against TorchJD

Written by `{command}`, from what it measured: a training step without the model in eager PyTorch. That is
forward, backward to the losses and to parameters, `step()`, and `update()` where there is one. Both sides run in one process on one
thread of a CPU, in {rounds} rounds in which each is timed in turn. Times are medians; the ratio, with its quartiles, is that within
a round, and above 1 where ours is faster. Losses are float32 scalars; TorchJD takes a vector, so its side stacks them first, as its
users must.

| balancer | TorchJD's class | {headings} |
| --- | --- | {aligned} |
{rows}

{told}

## Where ours is slower, and why

The kernels say most of it. They are counted in the forward, the backward and the commit, which is `update()` and `step()`. On
scalars each costs about the same, whatever it does. Ours are more for these reasons.

- Bits: a product is rounded by itself before it is added, numbers that count as zero are made zero, and `exp` and `log` are
  correctly rounded, by way of float64: four kernels in place of one.
- State: ours observes the losses in the forward and commits their mean in `step()`, on the device, where a mean that is not finite
  is passed over. TorchJD keeps what the last call had, and commits nothing but DWA's averages, at the end of an epoch, and what
  FAMO's `update()` makes.
- Draws: the numbers of `RandomLossBalancer` are made by a generator of integers, written out, so that they are the same in JAX.
  TorchJD calls PyTorch's generator, which is one kernel. On a CPU ours makes the numbers of 64 steps at once. The step that does so
  takes about 170 kernels more, and the medians do not show it: the mean of `step()` is a fifth above its median.
- Epochs: the tenth step, in which `DWALossBalancer` ends an epoch and makes new weights, takes 51 kernels more than the others,
  which are what is counted.

Beside the kernels, ours brings a dict of losses into canonical order and checks it at each call, and each function that has a
derivative of its own is a node of autograd made in Python: `STCHLossBalancer` is slower with as many kernels as TorchJD's.

This is eager code. `torch.compile` and `jax.jit` put most of these kernels into one.

{processor}, Python {python}, PyTorch {torch}, TorchJD {torchjd}; {date}.
"""


def told(rows: list[Row]) -> str:
    """How many are faster."""
    faster = [row for row in rows if row.times.ratio > 1]
    if not faster:
        return f"Ours is faster in 0 of {len(rows)} rows."
    words = ", ".join(f"`{row.balancer}` of {row.losses} losses" for row in faster)
    return f"Ours is faster in {len(faster)} of {len(rows)} rows: {words}."


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count, for each balancer and number of losses.")] = 200,
    balancer: Annotated[list[str] | None, typer.Option(help="The class's name; may be given again. All without it.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/evidence/against-torchjd.md.")] = False,
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
) -> None:
    """Measures forward, backward and update against TorchJD's scalarizers of the same methods."""
    torch.set_num_threads(1)
    pairs = [(name, peer) for name in balancer or SETTINGS if (peer := peer_of(name)) is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a parameter does not change
        todo = [(name, peer, count) for name, peer in pairs for count in LOSSES]
        rows = [measured(*each, rounds) for each in track(todo, "Against TorchJD")]
    columns = [Column(each, no_wrap=True) for each in ("…LossBalancer", *SHORT)]
    shown = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(row.balancer.removesuffix("LossBalancer"), *cells(row, parts=False))
    Console().print(shown)
    print(told(rows).replace("`", ""))
    where = environment("torch", "torchjd", "loss-balancers", "numpy")
    if json is not None:
        results = [{**row._asdict(), "times": row.times._asdict()} for row in rows]
        write_json(json, {"benchmark": "against_torchjd", "rounds": rounds, **where, "results": results})
    if write:
        table = "\n".join(f"| `{row.balancer}` | `{row.peer}` | {' | '.join(cells(row, parts=True))} |" for row in rows)
        words = {
            "headings": " | ".join(HEADINGS),
            "aligned": " | ".join(["--:"] * len(HEADINGS)),
            "rows": table,
            "told": told(rows),
        }
        words |= {"command": COMMAND, "rounds": rounds, "processor": where["device"]["name"], "date": where["date"]}
        write_text(PAGE, TOP.format(**words, **where["versions"]))


if __name__ == "__main__":
    typer.run(main)
