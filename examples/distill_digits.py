"""Distil one student in PyTorch and in JAX with the same loss balancer, and check that the two balancers agree in every bit.

A teacher learns scikit-learn's handwritten digits from 1,347 labelled images. A student with an eighth of the teacher's hidden
units gets only 200 of them, and learns from three losses that `StaticLossBalancer` turns into one:

- `student_loss`: cross-entropy with the labels,
- `KLDivLoss_0`: Kullback-Leibler divergence from the teacher's softened predictions,
- `MSELoss_1`: squared distance to the teacher's hidden layer, through a learned projection as the widths differ.

The student is trained twice, with torch.optim and with Flax NNX and optax, from the same initial weights on the same batches.
The two runs drift apart, because the frameworks round matrix products, `log_softmax` and Adam differently. The balancers do
not: at every step each framework's losses are also given to the other framework's balancer, and the two aggregates must be the
same float32, bit for bit. The exit status is 1 if any two are not.

    python examples/distill_digits.py --out out/distill_digits

`weights_over_time.py` beside it does the same with every other balancer.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import typer
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from loss_balancers.jax import DistillationLossBalancer as JaxLossBalancer
from loss_balancers.jax import StaticLossBalancer as JaxStaticLossBalancer
from loss_balancers.torch import DistillationLossBalancer as TorchLossBalancer
from loss_balancers.torch import StaticLossBalancer as TorchStaticLossBalancer

PIXELS, CLASSES = 64, 10
TEACHER_WIDTH, STUDENT_WIDTH = 128, 16
TEACHER_EPOCHS, TEACHER_BATCH, TEACHER_LEARNING_RATE = 40, 64, 1e-3
STUDENT_IMAGES = 200
BATCH_SIZE, LEARNING_RATE = 40, 1e-2
TEMPERATURE = 4.0
KD_LOSS_WEIGHT = [0.4, 0.2]  # of KLDivLoss_0 and MSELoss_1; student_loss has what they leave of 1

Array = TypeVar("Array", np.ndarray, torch.Tensor, jax.Array)


class Batch(NamedTuple, Generic[Array]):
    """Images, and what the student shall make of them."""

    images: Array
    labels: Array
    teacher_logits: Array
    teacher_hidden: Array


# ---------------------------------------------------------------------------------------------------- the step in PyTorch


class TorchStudent(torch.nn.Module):
    """A hidden layer, a head, and a projection of the hidden layer to the teacher's width, for the loss only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(PIXELS, STUDENT_WIDTH)
        self.head = torch.nn.Linear(STUDENT_WIDTH, CLASSES)
        self.projection = torch.nn.Linear(STUDENT_WIDTH, TEACHER_WIDTH)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the projected hidden layer."""
        hidden = F.relu(self.body(images))
        return self.head(hidden), self.projection(hidden)


def torch_losses(student: TorchStudent, batch: Batch[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The three losses of a batch, by the names that the balancer goes by."""
    logits, hidden = student(batch.images)
    log_p = F.log_softmax(logits / TEMPERATURE, dim=-1)
    log_q = F.log_softmax(batch.teacher_logits / TEMPERATURE, dim=-1)
    return {
        "student_loss": F.cross_entropy(logits, batch.labels),
        "KLDivLoss_0": F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * TEMPERATURE**2,
        "MSELoss_1": F.mse_loss(hidden, batch.teacher_hidden),
    }


def torch_step(
    student: TorchStudent, optimizer: torch.optim.Optimizer, balancer: TorchLossBalancer, batch: Batch[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One step of training. Returns the aggregate and the losses it is made of."""
    losses = torch_losses(student, batch)
    aggregate = balancer(losses)
    optimizer.zero_grad()
    aggregate.backward()
    optimizer.step()
    return aggregate.detach(), {name: loss.detach() for name, loss in losses.items()}


# -------------------------------------------------------------------------------------------------------- the step in JAX


class JaxStudent(nnx.Module):
    """A hidden layer, a head, and a projection of the hidden layer to the teacher's width, for the loss only."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(PIXELS, STUDENT_WIDTH, rngs=rngs)
        self.head = nnx.Linear(STUDENT_WIDTH, CLASSES, rngs=rngs)
        self.projection = nnx.Linear(STUDENT_WIDTH, TEACHER_WIDTH, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits, and the projected hidden layer."""
        hidden = nnx.relu(self.body(images))
        return self.head(hidden), self.projection(hidden)


def jax_losses(student: JaxStudent, batch: Batch[jax.Array]) -> dict[str, jax.Array]:
    """The three losses of a batch, by the names that the balancer goes by."""
    logits, hidden = student(batch.images)
    log_p = nnx.log_softmax(logits / TEMPERATURE)
    log_q = nnx.log_softmax(batch.teacher_logits / TEMPERATURE)
    return {
        "student_loss": optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(),
        "KLDivLoss_0": optax.losses.kl_divergence_with_log_targets(log_p, log_q).mean() * TEMPERATURE**2,
        "MSELoss_1": optax.losses.squared_error(hidden, batch.teacher_hidden).mean(),
    }


@nnx.jit
def jax_step(
    student: JaxStudent, optimizer: nnx.Optimizer, balancer: JaxLossBalancer, batch: Batch[jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One step of training. Returns the aggregate and the losses it is made of."""

    def aggregate_and_losses(student: JaxStudent, balancer: JaxLossBalancer) -> tuple[jax.Array, dict[str, jax.Array]]:
        losses = jax_losses(student, batch)
        return balancer(losses), losses

    # The balancer is an argument, so that one with state may observe the losses.
    (aggregate, losses), gradients = nnx.value_and_grad(aggregate_and_losses, has_aux=True)(student, balancer)
    optimizer.update(student, gradients)
    return aggregate, losses


# --------------------------------------------------------------------------------------------------- the same bits in both


@dataclass(frozen=True)
class Comparison:
    """What the two balancers made of the same losses, those that one framework computed at one step."""

    step: int
    losses_of: str
    torch: np.ndarray
    jax: np.ndarray

    @property
    def same_bits(self) -> bool:
        """Whether both aggregates are one float32. No tolerance, and -0 is not +0."""
        if not (self.torch.dtype == self.jax.dtype == np.float32 and self.torch.shape == self.jax.shape == ()):
            return False
        return bool(self.torch.view(np.int32) == self.jax.view(np.int32))

    def __str__(self) -> str:
        in_torch, in_jax = f"{float(self.torch).hex()} ({self.torch.dtype})", f"{float(self.jax).hex()} ({self.jax.dtype})"
        return f"step {self.step}, on the losses of {self.losses_of}: {in_torch} in torch, {in_jax} in jax"


@nnx.jit
def jitted_aggregate(balancer: JaxStaticLossBalancer, losses: dict[str, jax.Array]) -> jax.Array:
    """The JAX balancer on losses that come from elsewhere."""
    return balancer(losses)


def jax_copy_of(student: TorchStudent) -> JaxStudent:
    """A JAX student with the same weights. Copies: torch changes its own in place."""
    twin = JaxStudent(nnx.Rngs(0))
    for name in ("body", "head", "projection"):
        source, target = getattr(student, name), getattr(twin, name)
        target.kernel[...] = jnp.array(source.weight.detach().numpy().T)
        target.bias[...] = jnp.array(source.bias.detach().numpy())
    return twin


def distill(
    torch_student: TorchStudent, jax_student: JaxStudent, data: Batch[np.ndarray], order: Iterable[np.ndarray]
) -> tuple[np.ndarray, list[Comparison]]:
    """Trains both students side by side. Returns both aggregates by step, shape (steps, 2), and two comparisons for each step."""
    torch_balancer, jax_balancer = TorchStaticLossBalancer(KD_LOSS_WEIGHT), JaxStaticLossBalancer(KD_LOSS_WEIGHT)
    torch_optimizer = torch.optim.Adam(torch_student.parameters(), LEARNING_RATE)
    jax_optimizer = nnx.Optimizer(jax_student, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    curves, comparisons = [], []
    for step, index in enumerate(order):
        arrays = [array[index] for array in data]
        from_torch, losses_of_torch = torch_step(
            torch_student, torch_optimizer, torch_balancer, Batch(*[torch.from_numpy(array) for array in arrays])
        )
        from_jax, losses_of_jax = jax_step(
            jax_student, jax_optimizer, jax_balancer, Batch(*[jnp.asarray(array) for array in arrays])
        )
        # The check, which training does not need: each framework's losses in the other one's balancer, by way of the host.
        in_jax = jitted_aggregate(jax_balancer, {name: jnp.array(loss.numpy()) for name, loss in losses_of_torch.items()})
        in_torch = torch_balancer({name: torch.tensor(np.asarray(loss)) for name, loss in losses_of_jax.items()})
        comparisons.append(Comparison(step, "torch", from_torch.numpy(), np.asarray(in_jax)))
        comparisons.append(Comparison(step, "jax", in_torch.numpy(), np.asarray(from_jax)))
        curves.append((from_torch.item(), from_jax.item()))
    return np.array(curves), comparisons


# --------------------------------------------------------------------------------------------- the data and the other models


def load_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels to train on, images and labels to test on; the split is always the same. Pixels are from 0 to 1."""
    digits, labels = load_digits(return_X_y=True)
    images = (digits / 16).astype(np.float32)
    rows, test_rows = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    return images[rows], labels[rows], images[test_rows], labels[test_rows]


def batch_order(images: int, batch_size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """The rows of each batch: every epoch a new permutation, without what is left over at its end."""
    generator = np.random.default_rng(seed)
    whole = images - images % batch_size
    return [index for _ in range(epochs) for index in generator.permutation(images)[:whole].reshape(-1, batch_size)]


class Teacher(torch.nn.Module):
    """What the student learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(PIXELS, TEACHER_WIDTH)
        self.head = torch.nn.Linear(TEACHER_WIDTH, CLASSES)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the hidden layer."""
        hidden = F.relu(self.body(images))
        return self.head(hidden), hidden


def train_on_labels(
    model: torch.nn.Module,
    learning_rate: float,
    images: np.ndarray,
    labels: np.ndarray,
    order: Iterable[np.ndarray],
) -> None:
    """Trains the teacher, or the student alone, with cross-entropy."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for index in order:
        logits, _ = model(torch.from_numpy(images[index]))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------------------- what is written out


def relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far losses are apart, for the figure and the table. What must be equal is compared by `Comparison.same_bits`."""
    return np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))


def draw(curves: np.ndarray, comparisons: list[Comparison]) -> Figure:
    """The training loss in both frameworks; below it how far apart the two trainings are, and how far the balancers."""
    ink, grey, torch_colour, jax_colour, balancer_colour = "#222222", "#777777", "#f0a35e", "#1f4e8c", "#16855b"
    steps = np.arange(len(curves))
    from_torch, from_jax = curves.T
    trainings = relative_difference(from_torch, from_jax)
    balancers = relative_difference(*np.array([(c.torch, c.jax) for c in comparisons], np.float64).T).reshape(-1, 2).max(axis=1)
    differing = sum(not c.same_bits for c in comparisons)

    figure = Figure(figsize=(9, 7.2), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    title = "The two trainings drift apart, the balancers do not" if not differing else "The balancers differ"
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=ink)
    caption = (
        "The trainings drift because each framework rounds its own matrix products, log-softmax and Adam.\n"
        f"Given the same losses, both ways at each step, {differing:,} of {len(comparisons):,} aggregates differ in a bit."
    )
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9.5, color=ink)

    above.set_title("Training loss: the aggregate of the three losses of a batch", loc="left", fontsize=10.5, color=ink)
    above.plot(steps, from_torch, color=torch_colour, linewidth=4, label="PyTorch, torch.optim")
    above.plot(steps, from_jax, color=jax_colour, linewidth=1, label="JAX, Flax NNX and optax")
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_locator(NullLocator())
    above.legend(frameon=False, fontsize=10, labelcolor=ink)

    below.set_title("Difference between PyTorch and JAX, relative to the loss", loc="left", fontsize=10.5, color=ink)
    below.plot(steps, trainings, color=ink, linewidth=1, label="the two trainings")
    below.plot(steps, balancers, color=balancer_colour, linewidth=3, label="the two balancers, given the same losses")
    below.axhline(2**-23, color=grey, linewidth=1, linestyle=":", label="2⁻²³, the spacing of float32")
    below.set_yscale("symlog", linthresh=1e-8, linscale=0.6)
    below.set_ylim(-4e-9, max(trainings.max(), balancers.max(), 1e-7) * 40)
    below.set_yticks([0, *(10.0**n for n in range(-8, 1) if 10.0**n < below.get_ylim()[1])])
    below.yaxis.set_minor_locator(NullLocator())
    below.legend(frameon=False, fontsize=10, labelcolor=ink, loc="upper center", ncols=3)
    below.set_xlabel("step", fontsize=10, color=ink)
    below.set_xlim(-0.01 * len(curves), 1.01 * len(curves) - 1)

    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(grey)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(color=grey, labelcolor=ink, labelsize=9)
    return figure


def table_of(record: dict[str, Any]) -> Table:
    """The result in short."""
    accuracy, differing = record["test_accuracy"], record["aggregates_that_differ"]
    table = Table("Distilling handwritten digits", "", header_style="bold")
    table.columns[1].justify = "right"
    table.add_row(f"Test accuracy: teacher, {TEACHER_WIDTH} hidden units, all training images", f"{accuracy['teacher']:.1%}")
    table.add_row(
        f"Test accuracy: student alone, {STUDENT_WIDTH} hidden units, {STUDENT_IMAGES} images", f"{accuracy['student_alone']:.1%}"
    )
    table.add_row("Test accuracy: the same student distilled in PyTorch", f"{accuracy['distilled_torch']:.1%}")
    table.add_row("Test accuracy: the same student distilled in JAX", f"{accuracy['distilled_jax']:.1%}", end_section=True)
    drift = record["largest_relative_difference_of_training_losses"]
    table.add_row("Largest relative difference of the two training losses", f"{drift:.1e}")
    table.add_row("Steps compared, both ways at each", f"{record['steps']:,}")
    share = f"{differing:,} of {record['aggregates_compared']:,}"
    table.add_row("Aggregates that differ", share, style="bold red" if differing else "bold green")
    return table


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file in a folder of its own beside `path`, and puts it in place when it is whole."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        write(beside)
        os.replace(beside, path)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("out/distill_digits"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the students.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the order of the batches.")] = 0,
) -> None:
    """Distil the digits classifier in PyTorch and in JAX, and check that the two balancers agree in every bit."""
    console = Console()
    torch.set_num_threads(1)  # the fastest for models as small as these
    images, labels, test_images, test_labels = load_data()
    few_images, few_labels = images[:STUDENT_IMAGES], labels[:STUDENT_IMAGES]
    torch.manual_seed(seed)
    teacher, torch_student = Teacher(), TorchStudent()
    jax_student, student_alone = jax_copy_of(torch_student), copy.deepcopy(torch_student)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        teacher_order = batch_order(len(images), TEACHER_BATCH, TEACHER_EPOCHS, seed)
        shown = progress.track(teacher_order, description="Teacher")
        train_on_labels(teacher, TEACHER_LEARNING_RATE, images, labels, shown)
        with torch.no_grad():
            teacher_logits, teacher_hidden = teacher(torch.from_numpy(few_images))

        student_order = batch_order(STUDENT_IMAGES, BATCH_SIZE, epochs, seed)
        shown = progress.track(student_order, description="Student alone")
        train_on_labels(student_alone, LEARNING_RATE, few_images, few_labels, shown)

        data = Batch(few_images, few_labels, teacher_logits.numpy(), teacher_hidden.numpy())
        shown = progress.track(student_order, description="Student distilled, PyTorch and JAX")
        curves, comparisons = distill(torch_student, jax_student, data, shown)

    with torch.no_grad():
        logits = [model(torch.from_numpy(test_images))[0].numpy() for model in (teacher, student_alone, torch_student)]
    logits.append(np.asarray(jax_student(jnp.asarray(test_images))[0]))
    accuracies = [float((z.argmax(axis=-1) == test_labels).mean()) for z in logits]
    differing = [comparison for comparison in comparisons if not comparison.same_bits]

    record = {
        "seed": seed,
        "epochs": epochs,
        "kd_loss_weight": KD_LOSS_WEIGHT,
        "test_accuracy": dict(zip(("teacher", "student_alone", "distilled_torch", "distilled_jax"), accuracies, strict=True)),
        "steps": len(curves),
        "aggregates_compared": len(comparisons),
        "aggregates_that_differ": len(differing),
        "differences": [str(comparison) for comparison in differing],
        "largest_relative_difference_of_training_losses": float(relative_difference(*curves.T).max()),
        "training_loss": {"torch": curves[:, 0].tolist(), "jax": curves[:, 1].tolist()},
        "versions": {package: version(package) for package in ("loss-balancers", "torch", "jax", "flax", "optax", "numpy")},
    }
    console.print(table_of(record))
    out.mkdir(parents=True, exist_ok=True)
    figure = draw(curves, comparisons)
    write_atomically(out / "curves.png", lambda path: figure.savefig(path, format="png"))
    write_atomically(out / "results.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    console.print(f"Wrote {out / 'curves.png'} and {out / 'results.json'}", soft_wrap=True)

    if differing:
        for comparison in differing[:10]:
            console.print(f"The balancers differ at {comparison}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
