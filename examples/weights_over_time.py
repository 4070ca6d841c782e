"""Distil the student of `distill_digits.py` with every balancer, in PyTorch and in JAX, and show how the weights change over time.

The two trainings of a balancer have states of their own, since their losses drift apart. So each has a follower: the same
balancer in the other framework, which is given the same losses and takes the same steps. At every step the aggregate and the
weights of the follower must be the same float32 numbers, bit for bit, and at the end its state. The exit status is 1 if one is not.

The balancers are those of the registry, each with the settings of its first example (`settings_for`), so that a new one appears by
itself. If a balancer has parameters, the student's optimizer trains them, and its follower is given each new value, since the
optimizers round differently. If it has an `update`, it is given the losses of the same batch after the optimizer step.

    python examples/weights_over_time.py --balancer EMANormalizedLossBalancer
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import distill_digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import typer
from distill_digits import Batch, Comparison
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.registry import SETTINGS, make
from loss_balancers.spec.settings import Settings

NAMES = ("KLDivLoss_0", "MSELoss_1", "student_loss")
STYLES = dict(zip(NAMES, (("#1f4e8c", 3.5), ("#16855b", 1.5), ("#f0a35e", 1.5)), strict=True))  # the first shows below another
SUFFIX = "LossBalancer"

#: Arguments that take the place of an example's, for a training of so many steps, where the example's make no sense for it.
OVERRIDES: dict[str, Callable[[int], dict[str, Any]]] = {
    "DWALossBalancer": lambda steps: {"epoch_steps": max(1, steps // 80)},  # of 80 epochs
    "LogitsAndIntermediatesLossBalancer": lambda steps: {"reference": "KLDivLoss_0"},  # no name here holds "Logits"
}


def settings_for(balancer: str, steps: int) -> Settings:
    """The settings of a balancer's first example, for the losses of the digits and a training of so many steps.

    The losses take the names of the example's, its schedules are stretched to the training, and weights sum to 1 where there is an
    option for that, so that the plots of different balancers can be compared.
    """
    settings = SETTINGS[balancer]
    first = next(iter(settings.examples().values()))
    told = _for_digits(first.as_json(), steps)
    if "total_weight" in told:
        told["total_weight"] = "one"
    return settings.from_json(told | OVERRIDES.get(balancer, lambda _: {})(steps))


def _for_digits(told: Any, steps: int) -> Any:
    """Settings as JSON, with other names and longer schedules."""
    names: dict[str, str] = dict(zip(EXAMPLE_NAMES, NAMES, strict=True))
    match told:
        case {"points": [*_, [int(last), *_]] as points}:
            return {"points": [[step * max(last, steps - 1) // max(last, 1), *rest] for step, *rest in points]}
        case dict():
            return {names.get(name, name): _for_digits(value, steps) for name, value in told.items()}
        case list():
            return [_for_digits(value, steps) for value in told]
    return names.get(told, told) if isinstance(told, str) else told


@dataclass(frozen=True)
class Outcome:
    """What a training of both students with one balancer gave. Weights are those of PyTorch, shape (steps, losses)."""

    weights: np.ndarray
    comparisons: list[Comparison]
    same_state: bool
    accuracy: dict[str, float]

    @property
    def differing(self) -> list[Comparison]:
        """The aggregates and weights that differ."""
        return [comparison for comparison in self.comparisons if not comparison.same_bits]

    @property
    def differing_steps(self) -> int:
        """How many steps have an aggregate or a weight that differs."""
        return len({comparison.step for comparison in self.differing})


# ---------------------------------------------------------------------------------------------------- the step in PyTorch


def torch_numbers(balancer: Any, losses: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The aggregate of a call, and the weights that it applies."""
    parts = balancer.breakdown(losses)  # before the call, after which a balancer may have observed the losses
    return [balancer(losses), *(parts[f"{name}/weight"] for name in NAMES)]


def torch_commit(balancer: Any, after: Mapping[str, torch.Tensor] | None) -> None:
    """What follows an optimizer step. ``after`` are the losses of the same batch after it, if the balancer asks for them."""
    if after is not None:
        balancer.update(after)
    balancer.step()


def torch_step(
    student: digits.TorchStudent, optimizer: torch.optim.Optimizer, balancer: Any, batch: Batch[torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """One step of training. Returns its numbers, its losses, and the losses after it if the balancer asks for them."""
    losses = digits.torch_losses(student, batch)
    numbers = torch_numbers(balancer, losses)
    found = [number.detach().clone() for number in numbers]  # copies: the optimizer changes parameters in place
    optimizer.zero_grad()
    numbers[0].backward()
    optimizer.step()
    after = None
    if hasattr(balancer, "update"):
        with torch.no_grad():
            after = digits.torch_losses(student, batch)
    torch_commit(balancer, after)
    return found, {name: loss.detach() for name, loss in losses.items()}, after


def torch_optimizer(student: torch.nn.Module, balancer: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam for the student, and for the balancer's parameters if it has some: without weight decay, which would pull them to 0."""
    groups: list[dict[str, Any]] = [{"params": list(student.parameters())}]
    if own := list(balancer.parameters()):
        groups.append({"params": own, "weight_decay": 0.0})
    return torch.optim.Adam(groups, digits.LEARNING_RATE)


# -------------------------------------------------------------------------------------------------------- the step in JAX


class Trained(nnx.Module):
    """What a step of training changes: the student, and the balancer, whose parameters the optimizer trains too if it has some."""

    def __init__(self, student: digits.JaxStudent, balancer: Any) -> None:
        self.student = student
        self.balancer = balancer


def jax_numbers(balancer: Any, losses: Mapping[str, jax.Array]) -> list[jax.Array]:
    """The aggregate of a call, and the weights that it applies."""
    parts = balancer.breakdown(losses)  # before the call, after which a balancer may have observed the losses
    return [balancer(losses), *(parts[f"{name}/weight"] for name in NAMES)]


def jax_commit(balancer: Any, after: Mapping[str, jax.Array] | None) -> None:
    """What follows an optimizer step. ``after`` are the losses of the same batch after it, if the balancer asks for them."""
    if after is not None:
        balancer.update(after)
    balancer.step()


@nnx.jit
def jax_step(
    trained: Trained, optimizer: nnx.Optimizer, batch: Batch[jax.Array]
) -> tuple[list[jax.Array], dict[str, jax.Array], dict[str, jax.Array] | None]:
    """One step of training. Returns its numbers, its losses, and the losses after it if the balancer asks for them."""

    def aggregate_and_rest(trained: Trained) -> tuple[jax.Array, tuple[list[jax.Array], dict[str, jax.Array]]]:
        losses = digits.jax_losses(trained.student, batch)
        numbers = jax_numbers(trained.balancer, losses)
        return numbers[0], (numbers, losses)

    (_, (numbers, losses)), gradients = nnx.value_and_grad(aggregate_and_rest, has_aux=True)(trained)
    optimizer.update(trained, gradients)
    after = None
    if hasattr(trained.balancer, "update"):
        after = digits.jax_losses(trained.student, batch)
    jax_commit(trained.balancer, after)
    return numbers, losses, after


jitted_numbers, jitted_commit = nnx.jit(jax_numbers), nnx.jit(jax_commit)
#: One object for all trainings: `nnx.jit` compiles a step anew for another.
JAX_ADAM = optax.adam(digits.LEARNING_RATE)


# --------------------------------------------------------------------------------------------------- the same bits in both


def in_jax(losses: Mapping[str, torch.Tensor] | None) -> dict[str, jax.Array] | None:
    """Losses that come from PyTorch."""
    return None if losses is None else {name: jnp.array(loss.numpy()) for name, loss in losses.items()}


def in_torch(losses: Mapping[str, jax.Array] | None) -> dict[str, torch.Tensor] | None:
    """Losses that come from JAX."""
    return None if losses is None else {name: torch.tensor(np.asarray(loss)) for name, loss in losses.items()}


def parameters_of(torch_balancer: torch.nn.Module, jax_balancer: Any) -> list[tuple[torch.nn.Parameter, Any]]:
    """The parameters of two twins, in pairs."""
    return [(parameter, getattr(jax_balancer, name)) for name, parameter in torch_balancer.named_parameters()]


def same_state(ours: Any, theirs: Any) -> bool:
    """Whether two balancers hold the same bits."""
    if not hasattr(ours, "export_state"):
        return True
    states = [balancer.export_state()["state"] for balancer in (ours, theirs)]
    return all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def distill(
    settings: Settings, data: Batch[np.ndarray], order: list[np.ndarray], seed: int, test: tuple[np.ndarray, np.ndarray]
) -> Outcome:
    """Trains both students with one balancer, its follower beside each."""
    torch_balancer, torch_follower = (make(settings, loss_balancers.torch) for _ in range(2))
    jax_balancer, jax_follower = (make(settings, loss_balancers.jax) for _ in range(2))
    torch.manual_seed(seed)
    torch_student = digits.TorchStudent()
    trained = Trained(digits.jax_copy_of(torch_student), jax_balancer)
    optimizer = torch_optimizer(torch_student, torch_balancer)
    jax_optimizer = nnx.Optimizer(trained, JAX_ADAM, wrt=nnx.Param)

    weights, comparisons = [], []
    for step, index in enumerate(order):
        arrays = [array[index] for array in data]
        torch_batch, jax_batch = Batch(*map(torch.from_numpy, arrays)), Batch(*map(jnp.asarray, arrays))
        torch_row, torch_losses, torch_after = torch_step(torch_student, optimizer, torch_balancer, torch_batch)
        jax_row, jax_losses, jax_after = jax_step(trained, jax_optimizer, jax_batch)
        followed_in_jax = jitted_numbers(jax_follower, in_jax(torch_losses) or {})
        followed_in_torch = [x.detach().clone() for x in torch_numbers(torch_follower, in_torch(jax_losses) or {})]
        for theirs, own in parameters_of(torch_balancer, jax_follower):
            own[...] = jnp.array(theirs.detach().numpy())
        with torch.no_grad():
            for own, theirs in parameters_of(torch_follower, trained.balancer):
                own.copy_(torch.tensor(np.asarray(theirs[...])))
        jitted_commit(jax_follower, in_jax(torch_after))
        torch_commit(torch_follower, in_torch(jax_after))
        for losses_of, of_torch, of_jax in (("torch", torch_row, followed_in_jax), ("jax", followed_in_torch, jax_row)):
            pairs = zip(of_torch, of_jax, strict=True)
            comparisons += [Comparison(step, losses_of, a.numpy(), np.asarray(b)) for a, b in pairs]
        weights.append([float(x) for x in torch_row[1:]])

    images, labels = test
    with torch.no_grad():
        logits = {
            "torch": torch_student(torch.from_numpy(images))[0].numpy(),
            "jax": np.asarray(trained.student(jnp.asarray(images))[0]),
        }
    accuracy = {framework: float((z.argmax(axis=-1) == labels).mean()) for framework, z in logits.items()}
    carried = same_state(torch_balancer, jax_follower) and same_state(torch_follower, trained.balancer)
    return Outcome(np.array(weights), comparisons, carried, accuracy)


class Task(NamedTuple):
    """What a seed's students learn from: images and what to make of them, the rows of each step, and what to test with."""

    teacher: digits.Teacher
    data: Batch[np.ndarray]
    order: list[np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def task(seed: int, epochs: int) -> Task:
    """Trains a teacher, and has it look at the student's images."""
    images, labels, *test = digits.load_data()
    few, few_labels = images[: digits.STUDENT_IMAGES], labels[: digits.STUDENT_IMAGES]
    torch.manual_seed(seed)
    teacher = digits.Teacher()
    teacher_order = digits.batch_order(len(images), digits.TEACHER_BATCH, digits.TEACHER_EPOCHS, seed)
    digits.train_on_labels(teacher, digits.TEACHER_LEARNING_RATE, images, labels, teacher_order)
    with torch.no_grad():
        teacher_logits, teacher_hidden = teacher(torch.from_numpy(few))
    data = Batch(few, few_labels, teacher_logits.numpy(), teacher_hidden.numpy())
    return Task(teacher, data, digits.batch_order(len(few), digits.BATCH_SIZE, epochs, seed), (test[0], test[1]))


# ------------------------------------------------------------------------------------------------------- what is written out


def tidy(panel: Axes) -> None:
    """What all panels have in common."""
    if panel.dataLim.ymin >= 0:
        panel.set_ylim(bottom=0.0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    panel.tick_params(labelsize=9)


def draw(outcomes: dict[str, Outcome]) -> Figure:
    """A panel for each balancer: its weights by step."""
    figure = Figure(figsize=(9, 2.2 * len(outcomes) + 0.6), dpi=120, layout="constrained")
    for panel, (name, outcome) in zip(np.ravel(figure.subplots(len(outcomes), 1, sharex=True)), outcomes.items(), strict=True):
        for loss, curve in zip(NAMES, outcome.weights.T, strict=True):
            panel.plot(curve, color=STYLES[loss][0], linewidth=STYLES[loss][1], label=loss)
        panel.set_title(name, loc="left", fontsize=10.5)
        tidy(panel)
    panel = figure.axes[0]
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
    figure.axes[-1].set_xlabel("optimizer step", fontsize=10)
    return figure


def short(weight: float) -> str:
    """A weight in at most seven letters."""
    return f"{weight:.3f}" if 0.001 <= abs(weight) < 1000 or weight == 0 else f"{weight:.0e}"


def narrow_table(*columns: str) -> Table:
    """A table for a terminal of 80 columns: it has no lines between columns, and the first is for balancers and is never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    return table


def table_of(outcomes: dict[str, Outcome]) -> Table:
    """The weights at five moments, the accuracies, and how many steps differ."""
    table = narrow_table(f"…{SUFFIX}", "start", "1/4", "1/2", "3/4", "end", "torch", "jax", "differ")
    for name, outcome in outcomes.items():
        steps = np.linspace(0, len(outcome.weights) - 1, 5).round().astype(int)
        accuracies = (f"{outcome.accuracy[framework]:.1%}" for framework in ("torch", "jax"))
        title = Text(name.removesuffix(SUFFIX), style="bold")
        table.add_row(title, *[""] * 5, *accuracies, f"{outcome.differing_steps:,}")
        for loss, curve in zip(NAMES, outcome.weights.T, strict=True):
            table.add_row(f"  {loss}", *(short(curve[step]) for step in steps), end_section=loss == NAMES[-1])
    steps = max(len(outcome.weights) for outcome in outcomes.values())
    table.caption = f"torch, jax: test accuracy of the student. differ: of {steps:,} steps."
    table.caption_justify = "left"
    return table


def chosen(balancer: str) -> Iterable[str]:
    """The balancers that an option names."""
    if balancer != "all" and balancer not in SETTINGS:
        raise typer.BadParameter(f"{balancer!r} is none of all, {', '.join(SETTINGS)}.", param_hint="--balancer")
    return SETTINGS if balancer == "all" else [balancer]


def main(
    balancer: Annotated[str, typer.Option(help="The class's name, or all.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("out/weights_over_time"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the students.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the order of the batches.")] = 0,
) -> None:
    """Distil the digits classifier with every balancer, and show its weights over time."""
    names, console = chosen(balancer), Console()
    torch.set_num_threads(1)  # the fastest for models as small as these
    _, data, order, test = task(seed, epochs)

    outcomes = {}
    for name in names:
        with console.status(f"{name}, PyTorch and JAX"):
            outcomes[name] = distill(settings_for(name, len(order)), data, order, seed, test)
    console.print(table_of(outcomes))
    record = {
        name: {
            "weights": {loss: curve.tolist() for loss, curve in zip(NAMES, outcome.weights.T, strict=True)},
            "test_accuracy": outcome.accuracy,
            "numbers_compared": len(outcome.comparisons),
            "numbers_that_differ": len(outcome.differing),
            "same_state": outcome.same_state,
        }
        for name, outcome in outcomes.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    figure = draw(outcomes)
    digits.write_atomically(out / "weights.png", lambda path: figure.savefig(path, format="png"))
    digits.write_atomically(out / "weights.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    console.print(f"Wrote {out / 'weights.png'} and {out / 'weights.json'}", soft_wrap=True)

    for name, outcome in outcomes.items():
        for comparison in outcome.differing[:10]:
            console.print(f"{name} differs at {comparison}", style="red", highlight=False, soft_wrap=True)
        if not outcome.same_state:
            console.print(f"{name} differs in its state at the end", style="red", soft_wrap=True)
    if any(outcome.differing or not outcome.same_state for outcome in outcomes.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
