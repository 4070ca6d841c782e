"""What does a balancer cost, next to its peers, to the method written by hand, and to the floor? `make bench`.

One call is a training step without a model, or the first parts of it: forward; backward to losses and parameters; the commit,
which is `update()` where there is one, and `step()`. On a CPU, one thread, losses that are scalars: the hard case, since there
Python and launches count. Ways: PyTorch eager; PyTorch compiled, the backward by autograd; `jax.jit` of all of it, ours in its
functional form.

Two tables of times. In one the static balancer has 1 to 1,000 KD losses. In the other every balancer has three. `harness.py` says
how they are timed. A ratio is a peer's time over ours, with its quartiles: above 1 ours is faster.

Beside the times: kernels, bytes saved for the backward, the most bytes at once, seconds to compile, and those of the imports.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import jax
import torch
import typer
from harness import compare, environment
from kernels import kernels
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from sides import BY_HAND, OURS, WHATS, Side, jax_sides, torch_sides
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loss_balancers.parity.files import write_json, write_text
from loss_balancers.spec.registry import SETTINGS

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
STATIC = "StaticLossBalancer"
KD = (1, 2, 4, 16, 64, 256, 1000)
WAYS = ("torch eager", "torch compiled", "jax jit")
DTYPES = ("float32", "bfloat16")
#: Ratios that a plot names.
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8)
#: How many KD losses a balancer has in the second table.
FEW = 3


class Case(NamedTuple):
    """One comparison of the plan: all peers, one after the other."""

    balancer: str
    way: str
    dtype: str
    kd: int
    whats: tuple[str, ...]


def plan() -> list[Case]:
    """Numbers of losses with the static balancer, then every balancer: bfloat16 there in whole steps alone."""
    of_counts = [Case(STATIC, way, dtype, kd, WHATS[:2]) for way, dtype, kd in product(WAYS, DTYPES, KD)]
    of_each = [
        Case(balancer, way, dtype, FEW, WHATS if dtype == "float32" else WHATS[2:])
        for balancer, way, dtype in product(SETTINGS, WAYS, DTYPES)
    ]
    return of_counts + of_each


def measured(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each peer and part of a step."""
    calls = _calls(case)
    for what in case.whats:
        ours = calls[OURS](what)
        for peer in (name for name in calls if name != OURS):
            found = compare(calls[peer](what), ours, rounds=rounds, seconds=0.003)
            yield {
                **{name: getattr(case, name) for name in ("balancer", "way", "dtype", "kd")},
                **{"what": what, "peer": peer, "ratio": round(found.ratio, 3), "quartiles": [round(x, 3) for x in found.quartiles]},
                **{"peer_us": round(found.peer * 1e6, 1), "ours_us": round(found.ours * 1e6, 1)},
            }


def _calls(case: Case) -> dict[str, Callable[[str], Callable[[], object]]]:
    """By name of the side what makes a call of a part of its step."""
    if case.way == "jax jit":
        made = {name: side() for name, side in jax_sides(case.balancer, case.kd, case.dtype).items()}
        return {name: (lambda what, side=side: side.call(what, case.dtype)) for name, side in made.items()}
    torch.compiler.reset()  # Dynamo gives up after a few compilations of one function
    sides = torch_sides(case.balancer, case.kd, case.dtype, compiled=case.way == "torch compiled")
    return {name: side().call for name, side in sides.items()}


# --- beside the times -----------------------------------------------------------------------------------------------


class _Living(TorchDispatchMode):
    """The bytes of the tensors that are made in it and live: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = func(*args, **(kwargs or {}))
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(given):
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in old | self._known:
                self._known.add(key)
                self.now += (size := x.untyped_storage().nbytes())
                weakref.finalize(x.untyped_storage(), self._gone, key, size)
        self.most = max(self.most, self.now)
        return given

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def eager_costs(balancer: str) -> Iterator[dict[str, Any]]:
    """Kernels, bytes saved for the backward and the most bytes at once, of a step of each side."""
    for name, side in torch_sides(balancer, FEW, "float32", compiled=False).items():
        made = side()
        for _ in range(3):
            made.call("step")()
        kept: list[Any] = []
        parts = (lambda made=made, kept=kept: kept.append(made.forward()), lambda made=made, kept=kept: made.backward(kept[0]))
        counts = [kernels(part).total() for part in (*parts, made.commit)]
        yield {"balancer": balancer, "side": name, "kernels": counts, "saved": _saved(made), "most": _most(made)}


def _saved(side: Side) -> int:
    """The bytes that autograd keeps from the forward to the backward."""
    sizes: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = side.forward()  # what is saved lives as long as this
    del kept
    return sum(sizes.values())


def _most(side: Side) -> int:
    gc.collect()
    with _Living() as living:
        side.call("step")()
    return living.most


def compile_costs(balancer: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds to compile a step, from nothing, ours and by hand; and the bytes that JAX's program needs beside its arguments."""
    times: dict[tuple[str, str], list[float]] = {}
    needed: dict[str, int] = {}
    for turn in range(rounds):
        for name in (OURS, BY_HAND)[:: 1 if turn % 2 else -1]:
            torch.compiler.reset()
            call = torch_sides(balancer, FEW, "float32", compiled=True)[name]().call("step")
            times.setdefault(("torch compiled", name), []).append(_seconds(call))
            side = jax_sides(balancer, FEW, "float32")[name]()
            jitted, arguments = side.jitted("step"), side.arguments("float32")
            compiled: list[Any] = []
            run = lambda jitted=jitted, arguments=arguments, kept=compiled: kept.append(jitted.lower(*arguments).compile())  # noqa: E731
            times.setdefault(("jax jit", name), []).append(_seconds(run))
            needed[name] = compiled[0].memory_analysis().temp_size_in_bytes
    for way in WAYS[1:]:
        ours, hand = (statistics.median(times[way, name]) for name in (OURS, BY_HAND))
        ratios = [theirs / mine for mine, theirs in zip(times[way, OURS], times[way, BY_HAND], strict=True)]
        low, middle, high = (
            round(x, 3) for x in (statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3)
        )
        row = {
            "balancer": balancer,
            "way": way,
            "ratio": middle,
            "quartiles": [low, high],
            "by_hand": round(hand, 3),
            "ours": round(ours, 3),
        }
        yield row | ({"temporary": needed} if way == "jax jit" else {})


def _seconds(call: Callable[[], object]) -> float:
    gc.collect()
    begun = perf_counter()
    call()
    return perf_counter() - begun


#: What is imported, after what.
IMPORTS = {"loss_balancers.torch": "torch", "loss_balancers.jax": "flax.nnx", "loss_balancers.spec": "numpy"}


def import_costs(rounds: int) -> Iterator[dict[str, Any]]:
    """Milliseconds of the processor that an import takes where its framework is imported, each in a new process.

    Also those without Python's garbage collector, which may look through all objects of the framework once meanwhile.
    """
    for name, after in IMPORTS.items():
        row: dict[str, Any] = {"module": name, "after": after}
        for figure, first in (("milliseconds", "pass"), ("uncollected", "gc.disable()")):
            program = f"import {after}, gc, time; {first}; a = time.process_time(); import {name}; print(time.process_time() - a)"
            command = [sys.executable, "-c", program]
            runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds)]
            row[figure] = round(statistics.median(float(run.stdout) * 1e3 for run in runs), 1)
        yield row


# --- as people read it ----------------------------------------------------------------------------------------------

#: A part of a step, and what losses it has, as a column of the second table.
PARTS = (*((what, "float32") for what in WHATS), (WHATS[2], "bfloat16"))


def ratio(row: dict[str, Any] | None, *, quartiles: bool = True) -> str:
    """A ratio as it stands in a table."""
    if row is None:
        return ""
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f}x" + (f" ({low:.2f}-{high:.2f})" if quartiles else "")


def pivoted(
    rows: list[dict[str, Any]], of_row: tuple[str, ...], of_column: tuple[str, ...]
) -> dict[Any, dict[Any, dict[str, Any]]]:
    """Rows by the values of some names, and each by the values of others."""
    found: dict[Any, dict[Any, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in of_row), {})[tuple(row[name] for name in of_column)] = row
    return found


def of_counts(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The table of the static balancer: a column for each number of KD losses."""
    chosen = [row for row in rows if row["kd"] != FEW]
    return [
        [*head, *(ratio(of.get((kd,))) for kd in KD)]
        for head, of in pivoted(chosen, ("way", "dtype", "what", "peer"), ("kd",)).items()
    ]


def of_each(rows: list[dict[str, Any]], *, quartiles: bool = True) -> list[list[str]]:
    """The table of every balancer: a column for each part of a step."""
    chosen = pivoted([row for row in rows if row["kd"] == FEW], ("balancer", "peer", "way"), ("what", "dtype"))
    return [
        [
            *(balancer.removesuffix("LossBalancer"), peer, way),
            *(ratio(of.get(part), quartiles=quartiles) for part in PARTS),
            f"{of[PARTS[2]]['ours_us']:.0f}",
        ]
        for (balancer, peer, way), of in sorted(chosen.items(), key=lambda item: list(SETTINGS).index(item[0][0]))
    ]


def markdown(heads: Sequence[str], rows: list[list[str]]) -> str:
    """A table; numbers to the right."""
    aligned = ["---" if any(row[i][:1].isalpha() or row[i][:1] == "`" for row in rows) else "--:" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, aligned, *rows))


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Ratios: over the number of losses, and of a whole step of each balancer against the one written by hand."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = [row for row in rows if row["balancer"] == STATIC and row["dtype"] == "float32" and row["what"] == WHATS[1]]
    for way, peer in dict.fromkeys((row["way"], row["peer"]) for row in chosen):
        if len(points := {row["kd"]: row["ratio"] for row in chosen if (row["way"], row["peer"]) == (way, peer)}) > 1:
            left.plot(*zip(*sorted(points.items()), strict=True), marker=".", label=f"{way}, {peer}")
    left.set(xscale="log", yscale="log", xlabel="KD losses", ylabel="their time / ours", title=f"{STATIC}, forward and backward")
    names = list(SETTINGS)
    for place, way in enumerate(WAYS):
        of_way = {
            row["balancer"]: row
            for row in rows
            if (row["way"], row["peer"], row["what"], row["dtype"]) == (way, BY_HAND, WHATS[2], "float32")
        }
        found = [(names.index(name), row["ratio"]) for name, row in of_way.items()]
        right.barh([i + (place - 1) * 0.27 for i, _ in found], [ratio for _, ratio in found], height=0.27, label=way)
    right.set_yticks(range(len(names)), [name.removesuffix("LossBalancer") for name in names])
    right.invert_yaxis()
    right.set(xscale="log", xlabel="time by hand / ours", title=f"a step, {FEW} KD losses and the student's")
    for panel in (left, right):
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
        panel.grid(visible=True, alpha=0.3)
    for panel, line in ((left, left.axhline), (right, right.axvline)):
        line(1, color="black", linewidth=1)
        panel.set_axisbelow(True)
    for axis, ticks in ((left.xaxis, KD), (left.yaxis, RATIOS), (right.xaxis, RATIOS)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    return figure


PAGE = """\
# Benchmarks

Written by `make bench BENCH=--write`, from what it measured: what a balancer costs, next to its peers, to the method written by
hand, and to the floor, which is `stack` and `dot`. One call is a training step without a model, or the first parts of it: forward;
backward to losses and parameters; and in a step the commit, which is `update()` where there is one, and `step()`. Losses are
scalars on a CPU, on one thread: the hard case, since there Python and launches count. Ratios are the peer's time over ours within
a round, medians of {rounds} interleaved rounds with their quartiles: **above 1 ours is faster**. What is written by hand stands in
`benchmarks/by_hand.py`: it guards against nothing, has no prescribed bits and checks no name. All numbers are in
[bench.json](bench.json).

![ratios](bench.png)

## `StaticLossBalancer`, by the number of KD losses

{of_counts}

## Every balancer, {few} KD losses and the student's

{of_each}

## Kernels and bytes of an eager step of PyTorch

Kernels of forward, backward and commit, as `benchmarks/kernels.py` counts them; the bytes that autograd saves for the backward;
the most bytes that live at once of what a step makes. Why ours are more is in
[decision 0013](../decisions/0013-kernels-of-an-eager-step.md).

{eager}

## Compilation of a step

Seconds, from nothing: without a cache, a new function each time.

{compilation}

## Imports

Processor time, where what a module stands on is imported already. Python's garbage collector may look through all objects of the
framework once meanwhile, at the cost of whoever allocates next. The last column is without it.

{imports}

{processor}; {versions}; {date}.
"""


def page(found: dict[str, Any]) -> str:
    """The page as text."""
    eager = [
        [
            row["balancer"].removesuffix("LossBalancer"),
            row["side"],
            " + ".join(map(str, row["kernels"])),
            f"{row['saved']}",
            f"{row['most']}",
        ]
        for row in found["eager"]
    ]
    compilation = [
        [row["balancer"].removesuffix("LossBalancer"), row["way"], ratio(row), f"{row['by_hand']:.2f}", f"{row['ours']:.2f}"]
        for row in found["compilation"]
    ]
    imports = [
        [f"`{row['module']}`", f"`{row['after']}`", f"{row['milliseconds']:.0f}", f"{row['uncollected']:.0f}"]
        for row in found["imports"]
    ]
    words = {
        "rounds": found["rounds"],
        "of_counts": markdown(("way", "dtype", "what", "peer", *map(str, KD)), of_counts(found["times"])),
        "few": FEW,
        "of_each": markdown(("balancer", "peer", "way", *WHATS, f"{WHATS[2]}, bfloat16", "our step, us"), of_each(found["times"])),
        "eager": markdown(("balancer", "side", "kernels", "saved", "most"), eager),
        "compilation": markdown(("balancer", "way", "ratio", "by hand, s", "ours, s"), compilation),
        "imports": markdown(("module", "after", "ms", "ms without the collector"), imports),
        "processor": f"{found['device']['name']}, {found['device']['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "date": found["date"],
    }
    return PAGE.format(**words)


def shown(rows: list[dict[str, Any]]) -> Table:
    """The table of every balancer for a terminal."""
    heads = ("…LossBalancer", "peer", "way", "forward", "+ back", "step", "bf16", "us")
    table = Table(*(Column(head, no_wrap=True) for head in heads), box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name, peer, way, *others in of_each(rows, quartiles=False):
        table.add_row(name[:16], peer, way.replace("torch ", ""), *others)
    return table


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count, for each comparison.")] = 31,
    compilations: Annotated[int, typer.Option(help="How often a step of each balancer is compiled.")] = 3,
    balancer: Annotated[list[str] | None, typer.Option(help="The class's name; may be given again. All without it.")] = None,
    way: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(WAYS)}. All without it.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/evidence/bench.md, .json and .png.")] = False,
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
    png: Annotated[Path | None, typer.Option(help="Where to draw the ratios.")] = None,
) -> None:
    """Measures every balancer next to its peers. Fails at nothing: what noise can turn says so by its quartiles."""
    torch.set_num_threads(1)
    inductor.force_disable_caches = True
    names, ways = balancer or list(SETTINGS), way or list(WAYS)
    cases = [case for case in plan() if case.balancer in names and case.way in ways]
    found: dict[str, Any] = {
        "benchmark": "bench",
        "rounds": rounds,
        **environment("torch", "jax", "flax", "loss-balancers", "numpy"),
    }
    found |= {"times": [], "eager": [], "compilation": []}
    with Progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a parameter does not change
        task = progress.add_task("Benchmarks", total=len(cases) + 2 * len(names) + 1)
        for case in cases:
            found["times"] += measured(case, rounds)
            progress.advance(task)
            jax.clear_caches()
        for name in names:
            found["eager"] += eager_costs(name)
            progress.advance(task)
            found["compilation"] += compile_costs(name, compilations)
            progress.advance(task)
        found["imports"] = list(import_costs(max(3, compilations)))
        progress.advance(task)
    Console().print(shown(found["times"]))
    if json is not None:
        write_json(json, found)
    if png is not None:
        plot(found["times"]).savefig(png, dpi=110)
    if write:
        write_json(EVIDENCE / "bench.json", found)
        plot(found["times"]).savefig(EVIDENCE / "bench.png", dpi=110)
        write_text(EVIDENCE / "bench.md", page(found))


if __name__ == "__main__":
    typer.run(main)
