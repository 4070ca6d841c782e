"""How often is a step compiled or traced in a thousand steps, and does a balancer wait for the device? Once, once, and never.

Every balancer of the registry, with the settings of its first example, makes a thousand steps on losses that change: forward,
gradient and commit; and the `update()` between them, if it has one. Its parameters, if it has some, are changed between steps as an
optimizer does.

- *torch.compile*: forward, commit and update are compiled, each with ``fullgraph=True``. Counted are the graphs of each. The guards
  by which something is compiled again are Dynamo's, whatever compiles the graph, so `aot_eager` does.
- *jax.jit* of the balancer split and merged, and *nnx.jit* with it as an argument: how often the step's Python code runs.
- *reads*: how often the host asks for a value, and so would wait for the device. In PyTorch: in how many eager steps on the device
  `meta`, whose tensors have no values, so that `item`, `float`, `bool`, `numpy`, a copy to the host and an operation whose shape
  depends on values are errors. In JAX: what eager steps and steps under `nnx.jit` ask of arrays, and callbacks in what was traced.

The exit status is 1 if a number is another one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import typer
from flax import nnx
from jax._src.array import ArrayImpl
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity.certificates.host import frameworks, host
from loss_balancers.parity.files import write_text
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.registry import SETTINGS, make
from loss_balancers.spec.settings import Settings

STEPS = 1000
COMMAND = "python benchmarks/thousand_steps.py --write"
PAGE = Path(__file__).parent.parent / "docs" / "evidence" / "thousand-steps.md"


class Counts(NamedTuple):
    """What was counted in a thousand steps."""

    #: How many graphs Dynamo made of each function: the forward, the commit, and the update, if there is one.
    graphs: dict[str, int]
    graph_breaks: int
    jit_traces: int
    nnx_traces: int
    callbacks: int
    torch_reads: int
    jax_reads: int

    @property
    def met(self) -> bool:
        """Whether each is compiled and traced once, and nothing is read."""
        once = {*self.graphs.values(), self.jit_traces, self.nnx_traces} == {1}
        return once and not (self.graph_breaks or self.callbacks or self.torch_reads or self.jax_reads)


def drawn(count: int = 8) -> list[dict[str, np.ndarray]]:
    """Losses of some steps."""
    values = np.random.default_rng(0).uniform(0.1, 4.1, (count, len(EXAMPLE_NAMES))).astype(np.float32)
    return [dict(zip(EXAMPLE_NAMES, row, strict=True)) for row in values]


# ------------------------------------------------------------------------------------------------------------- in PyTorch


def in_torch(balancer: Any, steps: int, wrap: Callable[[Any], Any] = lambda function: function, device: str = "cpu") -> None:
    """Trains with a balancer, whose functions `wrap` may compile."""
    forward, commit, update = wrap(balancer.forward), wrap(balancer.step), wrap(getattr(balancer, "update", None))
    rows = [{name: torch.tensor(x, device=device, requires_grad=True) for name, x in row.items()} for row in drawn()]
    own = list(balancer.parameters())
    for i in range(steps):
        losses = rows[i % len(rows)]
        gradients = torch.autograd.grad(forward(losses), [*losses.values(), *own])
        with torch.no_grad():
            for parameter, gradient in zip(own, gradients[len(losses) :], strict=True):
                parameter.sub_(gradient, alpha=0.01)
        if update is not None:
            update(rows[(i + 1) % len(rows)])
        commit()


def torch_graphs(balancer: Any, steps: int) -> tuple[dict[str, int], int]:
    """How many graphs Dynamo made of each function, and how often it gave one up."""
    torch.compiler.reset()
    counters.clear()
    made: Counter[str] = Counter()

    def wrap(function: Any) -> Any:
        if function is None:
            return None

        def backend(graph: Any, inputs: Any) -> Any:
            made[function.__name__] += 1
            return aot_eager(graph, inputs)

        return torch.compile(function, fullgraph=True, backend=backend)

    in_torch(balancer, steps, wrap)
    return dict(made), sum(counters["graph_break"].values())


def reads(call: Callable[[], object]) -> bool:
    """Whether a call reads a value of a tensor on the device `meta`, where there are none: that is one of these errors."""
    try:
        call()
    except (NotImplementedError, RuntimeError, TypeError):
        return True
    return False


def torch_reads(balancer: Any, steps: int) -> int:
    """In how many of the eager steps a value is read."""
    balancer = balancer.to("meta")
    return sum(reads(lambda: in_torch(balancer, 1, device="meta")) for _ in range(steps))


# ----------------------------------------------------------------------------------------------------------------- in JAX


def jax_step(balancer: Any, losses: Any, after: Any) -> Any:
    """A step of training, by which the balancer changes. Returns the aggregate and the gradients by the losses."""
    own = bool(jax.tree.leaves(nnx.state(balancer, nnx.Param)))

    def aggregate_of(balancer: Any, losses: Any) -> Any:
        return balancer(losses)

    aggregate, gradients = nnx.value_and_grad(aggregate_of, argnums=(0, 1) if own else 1)(balancer, losses)
    if own:
        by_own, gradients = gradients
        nnx.update(balancer, jax.tree.map(lambda x, g: x - 0.01 * g, nnx.state(balancer, nnx.Param), by_own))
    if hasattr(balancer, "update"):
        balancer.update(after)
    balancer.step()
    return aggregate, gradients


def jax_rows() -> list[dict[str, jax.Array]]:
    """Losses on the device."""
    return [{name: jnp.array(x) for name, x in row.items()} for row in drawn()]


@contextmanager
def reads_of_jax() -> Iterator[Counter[str]]:
    """Counts where a value leaves an array: most ways lead through `_value`; NumPy takes the memory itself."""
    found: Counter[str] = Counter()
    value: Any = ArrayImpl._value

    def read(self: Any) -> Any:
        found["_value"] += 1
        return value.fget(self)

    def counted(name: str, function: Any) -> Any:
        def read(given: Any, *args: Any, **keywords: Any) -> Any:
            found[name] += isinstance(given, ArrayImpl)
            return function(given, *args, **keywords)

        return read

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(ArrayImpl, "_value", property(read)))
        for owner, name in ((ArrayImpl, "item"), (ArrayImpl, "__array__"), (np, "asarray"), (np, "array")):
            stack.enter_context(mock.patch.object(owner, name, counted(name, getattr(owner, name))))
        yield found


def jit_traces(settings: Settings, steps: int) -> tuple[int, int]:
    """How often `jax.jit` traces a step of a balancer that is split and merged, and the callbacks in what it traces."""
    graphdef, state = nnx.split(make(settings, loss_balancers.jax))
    rows, traces = jax_rows(), 0

    def step(state: Any, losses: Any, after: Any) -> Any:
        nonlocal traces
        traces += 1
        balancer = nnx.merge(graphdef, state)
        return jax_step(balancer, losses, after), nnx.state(balancer)

    compiled = jax.jit(step)
    callbacks = str(compiled.trace(state, rows[0], rows[1]).jaxpr).count("callback")
    for i in range(steps):
        _, state = compiled(state, rows[i % len(rows)], rows[(i + 1) % len(rows)])
    return traces, callbacks


def nnx_traces(settings: Settings, steps: int) -> tuple[int, int]:
    """How often `nnx.jit` traces a step with the balancer as an argument, and how often a value is read then."""
    balancer, rows, traces = make(settings, loss_balancers.jax), jax_rows(), 0

    @nnx.jit
    def step(balancer: Any, losses: Any, after: Any) -> Any:
        nonlocal traces
        traces += 1
        return jax_step(balancer, losses, after)

    step(balancer, rows[0], rows[1])
    with reads_of_jax() as found, jax.transfer_guard("disallow"):
        for i in range(1, steps):
            step(balancer, rows[i % len(rows)], rows[(i + 1) % len(rows)])
    return traces, found.total()


def jax_reads(settings: Settings, steps: int) -> int:
    """How often a value is read in eager steps, after some that may prepare what is kept."""
    balancer, rows = make(settings, loss_balancers.jax), jax_rows()
    for i in range(3):
        jax_step(balancer, rows[i], rows[i + 1])
    with reads_of_jax() as found:
        for i in range(steps):
            jax_step(balancer, rows[i % len(rows)], rows[(i + 1) % len(rows)])
    return found.total()


# ------------------------------------------------------------------------------------------------------------------- both


class Reads(torch.nn.Module):
    """A balancer that waits for the device: the counters must find it."""

    def forward(self, losses: Any) -> Any:
        """The sum, if the first loss is above zero."""
        total = sum(losses.values())
        return total if next(iter(losses.values())) > 0 else total * 2

    def step(self) -> None:
        """Nothing."""


class Compiles(torch.nn.Module):
    """A balancer that is compiled at more than one step: the counters must find it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, losses: Any) -> Any:
        """The sum, times a number that Dynamo takes for a constant."""
        return sum(losses.values()) * self.steps

    def step(self) -> None:
        """Another number."""
        self.steps += 1


def planted_faults_are_found() -> bool:
    """Whether the counters find each way to read a value, and what is compiled again."""
    x, found = jnp.ones(()), []
    # By functions, so that what is patched is looked up when it is called.
    for read in (float, bool, lambda x: np.asarray(x), lambda x: x.item(), lambda x: x.tolist()):  # noqa: PLW0108
        with reads_of_jax() as counted:
            read(x + 1)
        found.append(counted.total())
    for read in (float, bool, torch.Tensor.numpy, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.nonzero):
        found.append(reads(partial(read, torch.ones((), device="meta"))))
    return all(found) and torch_reads(Reads(), 5) == 5 and torch_graphs(Compiles(), 5)[0]["forward"] > 1


def counted(settings: Settings, steps: int, eager_steps_of_jax: int) -> Counts:
    """All counts of a balancer."""
    graphs, breaks = torch_graphs(make(settings, loss_balancers.torch), steps)
    traces, callbacks = jit_traces(settings, steps)
    of_nnx, read = nnx_traces(settings, steps)
    of_torch = torch_reads(make(settings, loss_balancers.torch), steps)
    return Counts(graphs, breaks, traces, of_nnx, callbacks, of_torch, read + jax_reads(settings, eager_steps_of_jax))


HEADINGS = ("torch.compile: graphs of a function", "jax.jit: traces", "nnx.jit: traces", "reads: torch", "reads: JAX")


def cells(counts: Counts) -> list[str]:
    """What the tables show."""
    graphs = sorted(set(counts.graphs.values()))
    numbers = (counts.jit_traces, counts.nnx_traces, counts.torch_reads, counts.jax_reads + counts.callbacks)
    return [", ".join(map(str, graphs)), *map(str, numbers)]


TOP = """\
# A thousand steps

Written by `{command}`, from what it found: each balancer, with the settings of its first
example, makes {steps} training steps on losses that change: forward, gradient and `step()`, and `update()` where there is one.
If a balancer has parameters, they change from step to step, as an optimizer would change them.

| balancer | {headings} |
| --- | {aligned} |
{rows}

- **Graphs**: how many Dynamo made of the forward, of `step()` and of `update()`, each compiled by itself with `fullgraph=True`. If
  it is 1, none was compiled again. There were {breaks} graph breaks. The guards by which something is compiled again are Dynamo's,
  whatever compiles the graph; here that was `aot_eager`.
- **Traces**: how often the Python code of a jitted step ran, under `jax.jit` with the balancer split and merged, and under
  `nnx.jit` with the balancer as an argument, where `jax.transfer_guard("disallow")` held too.
- **Reads**: how often the host asked for a value, for which it would wait for the device. In PyTorch: in how many of {steps} eager
  steps on the device `meta`. Its tensors have no values, so that `item`, `float`, `bool`, `numpy`, a copy to the host and an
  operation whose shape depends on values are errors. In JAX: what {steps} steps under `nnx.jit` and {eager} eager steps asked of
  arrays, and callbacks in what was traced.

The program first checks that it finds planted reads, and a planted function that is compiled again. No GPU
took part. On one, [the kit](../gpu.md) makes a step of each balancer under `torch.cuda.set_sync_debug_mode("error")`.

{processor}, Python {python}, PyTorch {torch}, JAX {jax}, Flax {flax}, NumPy {numpy}.
"""


def page(found: dict[str, Counts], steps: int, eager: int) -> str:
    """The page as text."""
    rows = "\n".join(f"| `{name}` | {' | '.join(cells(counts))} |" for name, counts in found.items())
    here = host()
    words = {"processor": here["processor"], "python": here["python"], **frameworks()}
    words |= {"headings": " | ".join(HEADINGS), "aligned": " | ".join(["--:"] * len(HEADINGS)), "rows": rows}
    breaks = sum(counts.graph_breaks for counts in found.values())
    return TOP.format(command=COMMAND, steps=f"{steps:,}", eager=eager, breaks=breaks, **words)


def main(
    steps: Annotated[int, typer.Option(min=2, help="Steps of each balancer.")] = STEPS,
    eager: Annotated[int, typer.Option(help="Eager steps of JAX, which are slow.")] = 20,
    balancer: Annotated[list[str] | None, typer.Option(help="The class's name; may be given again. All without it.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/evidence/thousand-steps.md.")] = False,
) -> None:
    """Counts compilations, traces and reads. Exit status 1 if one is not what it must be."""
    torch.set_num_threads(1)
    if not planted_faults_are_found():
        raise RuntimeError("The counters do not find faults that are planted: nothing that they count means anything here.")
    found: dict[str, Counts] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in track(balancer or SETTINGS, "A thousand steps"):
            found[name] = counted(next(iter(SETTINGS[name].examples().values())), steps, eager)
    shown = Table(
        Column("…LossBalancer", no_wrap=True), "graphs", "jax.jit", "nnx.jit", "reads, torch", "reads, JAX", box=box.SIMPLE_HEAD
    )
    for name, counts in found.items():
        shown.add_row(name.removesuffix("LossBalancer"), *cells(counts), style=None if counts.met else "red")
    Console().print(shown)
    if write:
        write_text(PAGE, page(found, steps, eager))
    raise typer.Exit(0 if all(counts.met for counts in found.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
