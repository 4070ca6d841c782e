"""What does tracing and compiling the static aggregate cost, next to the sum that one would write by hand?

One turn is ``jax.jit(function).trace(losses).lower().compile()`` of a fresh function with fresh weights, so that no cache knows it:
float32 scalars, forward alone, and ``jax.value_and_grad``. The peer is ``w0 * x0 + w1 * x1 + ...``, in the same order.
Both sides of a round are a moment apart, the order reversed from round to round; what counts is the ratio within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from harness import environment
from jax import Array
from rich.console import Console
from rich.table import Table

from loss_balancers.jax import STUDENT_LOSS_KEY, StaticLossBalancer
from loss_balancers.parity.files import write_json

#: KD losses -> how many times the hand-written sum's time ours may take.
BARS = {1: None, 4: 1.3, 16: None, 64: 1.3, 256: None, 1000: 1.2}
Losses = Mapping[str, Array]
Aggregate = Callable[[Losses], Array]
STAGES = ("trace", "lower", "compile")


def by_hand(weights: Mapping[str, float]) -> Aggregate:
    """The sum that one would write."""

    def aggregate(losses: Losses) -> Array:
        (first, weight), *others = weights.items()
        total = weight * losses[first]
        for name, weight in others:
            total = total + weight * losses[name]
        return total

    return aggregate


def both(kd: int, turn: int) -> tuple[dict[str, Array], Aggregate, Aggregate]:
    """``kd`` KD losses and a student loss, the sum by hand and ours, with weights that no other turn has."""
    names = [f"MSELoss_{i}" for i in range(kd)]
    weights = [(1 + (i + 1) / (turn + 2) / kd) / (4 * kd) for i in range(kd)]
    losses = {name: jnp.float32(1.0 + i) for i, name in enumerate([*names, STUDENT_LOSS_KEY])}
    ours = StaticLossBalancer(weights)
    return losses, by_hand({**dict(zip(names, weights, strict=True)), STUDENT_LOSS_KEY: ours.student_loss_weight}), ours


def stages(aggregate: Aggregate, losses: Losses, gradient: bool) -> list[float]:
    """How long each stage takes, and all together."""
    function = jax.value_and_grad(aggregate) if gradient else partial(aggregate)  # either is a new function to `jax.jit`
    times = [perf_counter()]
    traced = jax.jit(function).trace(losses)
    times.append(perf_counter())
    lowered = traced.lower()
    times.append(perf_counter())
    lowered.compile()
    times.append(perf_counter())
    return [after - before for before, after in pairwise(times)] + [times[-1] - times[0]]


def measured(kd: int, gradient: bool, rounds: int) -> dict[str, Any]:
    """The medians of both sides, and the quartiles of the ratio within a round; the first round does not count."""
    peers, own = [], []
    for turn in range(-1, rounds):
        losses, peer, ours = both(kd, turn + 1)
        if turn % 2:
            theirs, mine = stages(peer, losses, gradient), stages(ours, losses, gradient)
        else:
            mine, theirs = stages(ours, losses, gradient), stages(peer, losses, gradient)
        if turn >= 0:
            peers.append(theirs)
            own.append(mine)
    ratios = [mine[-1] / theirs[-1] for mine, theirs in zip(own, peers, strict=True)]
    low, times, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    seconds = {
        side: dict(zip((*STAGES, "all"), map(statistics.median, zip(*rows, strict=True)), strict=True))
        for side, rows in (("by_hand", peers), ("ours", own))
    }
    what = "value and gradient" if gradient else "forward"
    return {"kd_losses": kd, "what": what, "times": times, "quartiles": (low, high), "bar": BARS.get(kd), **seconds}


def table(rows: list[dict[str, Any]]) -> Table:
    """The results as people read them: ratios first."""
    shown = Table("K", "what", "times", "quartiles", "bar", *(f"{stage} ms, by hand / ours" for stage in STAGES))
    for row in rows:
        low, high = row["quartiles"]
        bar = "" if row["bar"] is None else f"{row['bar']}x"
        each = [f"{row['by_hand'][stage] * 1e3:.1f} / {row['ours'][stage] * 1e3:.1f}" for stage in STAGES]
        shown.add_row(str(row["kd_losses"]), row["what"], f"{row['times']:.2f}x", f"{low:.2f}-{high:.2f}", bar, *each)
    return shown


def main(
    rounds: Annotated[int, typer.Option(help="Fresh functions of each side that count.")] = 15,
    losses: Annotated[str, typer.Option(help="Numbers of KD losses.")] = ",".join(map(str, BARS)),
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
) -> None:
    """Measures trace and compile against a hand-written sum. Exit status 1 if a bar is missed by its lower quartile."""
    rows = [measured(int(kd), gradient, rounds) for kd in losses.split(",") for gradient in (False, True)]
    Console(width=160).print(table(rows))
    met = all(row["bar"] is None or row["quartiles"][0] <= row["bar"] for row in rows)
    if json is not None:
        where = environment("jax", "jaxlib", "flax", "loss-balancers", "numpy")
        write_json(json, {"benchmark": "jax_tracing", "met": met, **where, "results": rows})
    raise typer.Exit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
