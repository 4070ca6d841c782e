"""Distil the student of `distill_digits.py` with every balancer, in PyTorch and in JAX, and show how the weights change over time.

The two trainings of a balancer have states of their own, since their losses drift apart. So each has a follower: the same
balancer in the other framework, which is given the same losses and takes the same steps. At every step the aggregate and the
weights of the follower must be the same float32 numbers, bit for bit, and at the end its state. The exit status is 1 if one is not.

    python examples/weights_over_time.py --balancer EMANormalizedLossBalancer
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import distill_digits as digits
import jax.numpy as jnp
import numpy as np
import optax
import torch
import typer
from distill_digits import Batch, Comparison
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec import schedules

NAMES = ("KLDivLoss_0", "MSELoss_1", "student_loss")
STYLES = dict(zip(NAMES, (("#1f4e8c", 3.5), ("#16855b", 1.5), ("#f0a35e", 1.5)), strict=True))  # the first shows below another

#: Each balancer from its framework's module, for a training of so many steps.
BALANCERS: dict[str, Callable[[Any, int], Any]] = {
    "StaticLossBalancer": lambda m, steps: m.StaticLossBalancer(digits.KD_LOSS_WEIGHT),
    "ScheduledLossBalancer": lambda m, steps: m.ScheduledLossBalancer(
        {"KLDivLoss_0": schedules.cosine(0.8, 0.1, steps), "MSELoss_1": schedules.linear(0.2, 0.0, steps)}
    ),
    "WeightedSumLossBalancer": lambda m, steps: m.WeightedSumLossBalancer(
        {"KLDivLoss_0": 1.0, "MSELoss_1": schedules.warmup_cosine(2.0, max(1, steps // 10), 0.1, steps + 1)}, 0.5
    ),
    "EMANormalizedLossBalancer": lambda m, steps: m.EMANormalizedLossBalancer(NAMES, beta=0.9, target="student_loss"),
    "LogitsAndIntermediatesLossBalancer": lambda m, steps: m.LogitsAndIntermediatesLossBalancer(reference="KLDivLoss_0"),
    "DWALossBalancer": lambda m, steps: m.DWALossBalancer(NAMES, epoch_steps=max(1, steps // 10)),
    "SoftAdaptLossBalancer": lambda m, steps: m.SoftAdaptLossBalancer(NAMES, variant="normalized", beta=1.0, total_weight="K"),
    "GeometricLossBalancer": lambda m, steps: m.GeometricLossBalancer(NAMES, total_weight="K"),
    "STCHLossBalancer": lambda m, steps: m.STCHLossBalancer(NAMES, total_weight="K"),
    "RandomLossBalancer": lambda m, steps: m.RandomLossBalancer(NAMES, total_weight="K"),
    "ReLoBRaLoLossBalancer": lambda m, steps: m.ReLoBRaLoLossBalancer(NAMES),
    "FAMOLossBalancer": lambda m, steps: m.FAMOLossBalancer(NAMES, total_weight="K"),
}


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


def torch_follow(balancer: Any, losses: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The aggregate and the weights that losses from elsewhere get; and a step."""
    weights = torch_weights(balancer, losses)
    aggregate = balancer(losses).numpy()
    balancer.step()
    return [aggregate, *weights]


def torch_weights(balancer: Any, losses: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The weights that losses would get, each a float32."""
    return [balancer.breakdown(losses)[f"{name}/weight"].numpy() for name in NAMES]


@nnx.jit
def jax_follow(balancer: Any, losses: dict[str, Any]) -> list[Any]:
    """As `torch_follow`."""
    parts = balancer.breakdown(losses)
    aggregate = balancer(losses)
    balancer.step()
    return [aggregate, *(parts[f"{name}/weight"] for name in NAMES)]


@nnx.jit
def jax_weights(balancer: Any, losses: dict[str, Any]) -> list[Any]:
    """As `torch_weights`."""
    return [balancer.breakdown(losses)[f"{name}/weight"] for name in NAMES]


@nnx.jit
def jax_commit(balancer: Any) -> None:
    """The balancer's step, once per optimizer step."""
    balancer.step()


def same_state(ours: Any, theirs: Any) -> bool:
    """Whether two balancers hold the same bits."""
    if not hasattr(ours, "export_state"):
        return True
    states = [balancer.export_state()["state"] for balancer in (ours, theirs)]
    return all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def distill(name: str, data: Batch[np.ndarray], order: list[np.ndarray], seed: int, test: tuple[np.ndarray, np.ndarray]) -> Outcome:
    """Trains both students with one balancer, its follower beside each."""
    in_torch, torch_follower = (BALANCERS[name](loss_balancers.torch, len(order)) for _ in range(2))
    in_jax, jax_follower = (BALANCERS[name](loss_balancers.jax, len(order)) for _ in range(2))
    torch.manual_seed(seed)
    torch_student = digits.TorchStudent()
    jax_student = digits.jax_copy_of(torch_student)
    torch_optimizer = torch.optim.Adam(torch_student.parameters(), digits.LEARNING_RATE)
    jax_optimizer = nnx.Optimizer(jax_student, optax.adam(digits.LEARNING_RATE), wrt=nnx.Param)

    weights, comparisons = [], []
    for step, index in enumerate(order):
        arrays = [array[index] for array in data]
        from_torch, torch_losses = digits.torch_step(
            torch_student, torch_optimizer, in_torch, Batch(*[torch.from_numpy(array) for array in arrays])
        )
        from_jax, jax_losses = digits.jax_step(jax_student, jax_optimizer, in_jax, Batch(*[jnp.asarray(array) for array in arrays]))
        torch_row = [from_torch.numpy(), *torch_weights(in_torch, torch_losses)]
        jax_row = [from_jax, *jax_weights(in_jax, jax_losses)]
        in_torch.step()
        jax_commit(in_jax)
        followed_in_jax = jax_follow(jax_follower, {k: jnp.array(x.numpy()) for k, x in torch_losses.items()})
        followed_in_torch = torch_follow(torch_follower, {k: torch.tensor(np.asarray(x)) for k, x in jax_losses.items()})
        comparisons += [Comparison(step, "torch", a, np.asarray(b)) for a, b in zip(torch_row, followed_in_jax, strict=True)]
        comparisons += [Comparison(step, "jax", a, np.asarray(b)) for a, b in zip(followed_in_torch, jax_row, strict=True)]
        weights.append([float(x) for x in torch_row[1:]])

    images, labels = test
    with torch.no_grad():
        logits = {
            "torch": torch_student(torch.from_numpy(images))[0].numpy(),
            "jax": np.asarray(jax_student(jnp.asarray(images))[0]),
        }
    accuracy = {framework: float((z.argmax(axis=-1) == labels).mean()) for framework, z in logits.items()}
    carried = same_state(in_torch, jax_follower) and same_state(torch_follower, in_jax)
    return Outcome(np.array(weights), comparisons, carried, accuracy)


def draw(outcomes: dict[str, Outcome]) -> Figure:
    """A panel for each balancer: its weights by step."""
    figure = Figure(figsize=(9, 2.2 * len(outcomes) + 0.6), dpi=120, layout="constrained")
    for panel, (name, outcome) in zip(np.ravel(figure.subplots(len(outcomes), 1, sharex=True)), outcomes.items(), strict=True):
        for loss, curve in zip(NAMES, outcome.weights.T, strict=True):
            panel.plot(curve, color=STYLES[loss][0], linewidth=STYLES[loss][1], label=loss)
        panel.set_title(name, loc="left", fontsize=10.5)
        panel.set_ylim(bottom=0.0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        panel.tick_params(labelsize=9)
    panel = figure.axes[0]
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
    figure.axes[-1].set_xlabel("optimizer step", fontsize=10)
    return figure


def table_of(outcomes: dict[str, Outcome]) -> Table:
    """The weights at five moments, the accuracies, and what differs."""
    table = Table(
        "Balancer",
        "Loss",
        *("start", "1/4", "1/2", "3/4", "end"),
        "accuracy torch, jax",
        "numbers that differ",
        header_style="bold",
    )
    for name, outcome in outcomes.items():
        steps = np.linspace(0, len(outcome.weights) - 1, 5).round().astype(int)
        for i, loss in enumerate(NAMES):
            first = (name, f"{outcome.accuracy['torch']:.1%}, {outcome.accuracy['jax']:.1%}") if i == 0 else ("", "")
            differ = f"{len(outcome.differing):,} of {len(outcome.comparisons):,}" if i == 0 else ""
            shown = (f"{outcome.weights[step, i]:.4g}" for step in steps)
            table.add_row(first[0], loss, *shown, first[1], differ, end_section=i == len(NAMES) - 1)
    return table


def chosen(balancer: str) -> Iterable[str]:
    """The balancers that an option names."""
    if balancer != "all" and balancer not in BALANCERS:
        raise typer.BadParameter(f"{balancer!r} is none of all, {', '.join(BALANCERS)}.", param_hint="--balancer")
    return BALANCERS if balancer == "all" else [balancer]


def main(
    balancer: Annotated[str, typer.Option(help="The class's name, or all.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("out/weights_over_time"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the students.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the order of the batches.")] = 0,
) -> None:
    """Distil the digits classifier with every balancer, and show its weights over time."""
    names, console = chosen(balancer), Console()
    torch.set_num_threads(1)  # the fastest for models as small as these
    images, labels, *test = digits.load_data()
    few, few_labels = images[: digits.STUDENT_IMAGES], labels[: digits.STUDENT_IMAGES]
    torch.manual_seed(seed)
    teacher = digits.Teacher()
    teacher_order = digits.batch_order(len(images), digits.TEACHER_BATCH, digits.TEACHER_EPOCHS, seed)
    digits.train_on_labels(teacher, digits.TEACHER_LEARNING_RATE, images, labels, teacher_order)
    with torch.no_grad():
        teacher_logits, teacher_hidden = teacher(torch.from_numpy(few))
    data = Batch(few, few_labels, teacher_logits.numpy(), teacher_hidden.numpy())
    order = digits.batch_order(len(few), digits.BATCH_SIZE, epochs, seed)

    outcomes = {}
    for name in names:
        with console.status(f"{name}, PyTorch and JAX"):
            outcomes[name] = distill(name, data, order, seed, (test[0], test[1]))
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
