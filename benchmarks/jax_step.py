"""What does a balancer cost a jitted training step, next to the sum that one would write by hand in it?

The step is a small one: a two-layer student, three KD losses and the student's, forward, gradient and SGD, and waits for the
result. The smaller the step, the more a balancer shows. The peer is the same step with ``w0 * x0 + w1 * x1 + ...`` in place of the
balancer, under the same kind of jit.

- *closed over*: `jax.jit`, the balancer a constant. What differs is compiled code alone.
- *functional form*: `jax.jit`, `functional_form` of the balancer, its state carried by the loop: the lean path with state.
- *argument*: `nnx.jit`, student and balancer as arguments. Flax takes both apart and puts them together in Python at every call.

`step()` is called in each step, where there is state. The balancers with state compute more than the sum; that counts here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from flax import nnx
from harness import compare, environment
from jax import Array
from rich.console import Console
from rich.table import Table

from loss_balancers.jax import EMANormalizedLossBalancer, ScheduledLossBalancer, StaticLossBalancer, functional_form
from loss_balancers.parity.files import write_json
from loss_balancers.spec import schedules

#: How many times the time of the step by hand a static balancer's may take, by how the step has it.
BARS = {"closed over": 1.02, "functional form": 1.02, "argument": 1.08}
NAMES = ("MSELoss_0", "KLDivLoss_1", "L1Loss_2", "student_loss")
WEIGHTS = (0.25, 0.125, 0.3, 0.325)
BALANCERS: dict[str, Callable[[], Any]] = {
    "static": lambda: StaticLossBalancer(list(WEIGHTS[:3])),
    "scheduled": lambda: ScheduledLossBalancer([schedules.linear(0.1, w, steps=1000) for w in WEIGHTS[:3]], NAMES),
    "lagged EMA": lambda: EMANormalizedLossBalancer(NAMES, lagged=True),
    "EMA": lambda: EMANormalizedLossBalancer(NAMES),
}


class Student(nnx.Module):
    """Two layers."""

    def __init__(self, size: int) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(size, size, rngs=rngs), nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.second(nnx.relu(self.first(x)))


def losses_of(student: Any, x: Array) -> dict[str, Array]:
    """Three KD losses and the student's."""
    y = student(x)
    return dict(zip(NAMES, ((y**2).mean(), jnp.log1p(y**2).mean(), abs(y).mean(), ((y - x) ** 2).mean()), strict=True))


def by_hand(losses: dict[str, Array]) -> Array:
    """The sum that one would write."""
    total = WEIGHTS[0] * losses[NAMES[0]]
    for name, weight in zip(NAMES[1:], WEIGHTS[1:], strict=True):
        total = total + weight * losses[name]
    return total


def descend(parameters: Any, gradients: Any) -> Any:
    """Plain SGD, small enough that nothing ever overflows."""
    return jax.tree.map(lambda p, g: p - 1e-4 * g, parameters, gradients)


def plain_step(size: int, apply: Callable[..., Any], commit: Callable[[Any], Any], state: Any) -> Callable[[], object]:
    """A step by `jax.jit`: parameters and state in, parameters and state out. Carries both from call to call."""
    graphdef, parameters = nnx.split(Student(size))
    x = jax.random.normal(jax.random.key(0), (size, size))

    @jax.jit
    def step(parameters: Any, state: Any) -> Any:
        def objective(parameters: Any) -> Any:
            return apply(state, losses_of(nnx.merge(graphdef, parameters), x))

        (loss, observed), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
        return loss, descend(parameters, gradients), commit(observed)

    def call() -> object:
        nonlocal parameters, state
        loss, parameters, state = step(parameters, state)
        return loss.block_until_ready()

    return call


def nnx_step(size: int, balancer: Any) -> Callable[[], object]:
    """A step by `nnx.jit`, with student and balancer as arguments; by hand if there is none."""
    student = Student(size)
    x = jax.random.normal(jax.random.key(0), (size, size))

    @nnx.jit
    def step(student: Any, x: Array, *balancers: Any) -> Array:
        def objective(student: Any, *balancers: Any) -> Array:
            return (balancers[0] if balancers else by_hand)(losses_of(student, x))

        loss, gradients = nnx.value_and_grad(objective)(student, *balancers)
        nnx.update(student, descend(nnx.state(student, nnx.Param), gradients))
        for each in balancers:
            each.step()
        return loss

    balancers = [] if balancer is None else [balancer]
    return lambda: step(student, x, *balancers).block_until_ready()


def sides(how: str, size: int, make: Callable[[], Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The step by hand and the step with the balancer."""
    if how == "argument":
        return nnx_step(size, None), nnx_step(size, make())
    peer = plain_step(size, lambda state, losses: (by_hand(losses), state), lambda state: state, {})
    if how == "functional form":
        form = functional_form(make())
        return peer, plain_step(size, form.apply, form.commit, form.init())
    balancer = make()
    return peer, plain_step(size, lambda state, losses: (balancer(losses), state), lambda state: state, {})


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 101,
    size: Annotated[int, typer.Option(help="The width of the student, and the number of rows.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
) -> None:
    """Measures a jitted training step with and without a balancer. Exit status 1 if the lower quartile misses a bar."""
    shown = Table("balancer", "how", "times", "quartiles", "bar", "by hand us", "ours us")
    rows, met = [], True
    for how, bar in BARS.items():
        for name, make in BALANCERS.items():
            if how == "closed over" and name != "static":
                continue  # its state could not change
            peer, ours = sides(how, size, make)
            result = compare(peer, ours, rounds=rounds, seconds=0.02)
            times, (high, low) = 1 / result.ratio, (1 / each for each in result.quartiles)
            barred = name == "static"
            met = met and (not barred or low <= bar)
            rows.append({"balancer": name, "how": how, "times": times, "quartiles": (low, high), "bar": bar if barred else None})
            rows[-1] |= {"by_hand": result.peer, "ours": result.ours}
            us = f"{result.peer * 1e6:.1f}", f"{result.ours * 1e6:.1f}"
            shown.add_row(name, how, f"{times:.3f}x", f"{low:.3f}-{high:.3f}", f"{bar}x" if barred else "", *us)
    Console(width=120).print(shown)
    if json is not None:
        where = environment("jax", "jaxlib", "flax", "loss-balancers", "numpy")
        write_json(json, {"benchmark": "jax_step", "size": size, "met": met, **where, "results": rows})
    raise typer.Exit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
