"""`make gallery`: the digits distilled with every balancer of the registry, in both frameworks, from several seeds.

It writes docs/gallery.md, and beside it docs/gallery/: a plot of each balancer's weights, and the numbers of the table. It trains
as `examples/weights_over_time.py` does, which says what is compared. With ``--balancer`` it runs these alone, and keeps what is
there of the others. The exit status is 1 if one bit differs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import distill_digits as digits  # type: ignore[reportMissingImports]  # `make gallery` adds the folder
import numpy as np
import torch
import typer
import weights_over_time as over_time  # type: ignore[reportMissingImports]
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from weights_over_time import NAMES, STYLES, SUFFIX, Outcome, Task  # type: ignore[reportMissingImports]

from loss_balancers.parity.certificates.host import frameworks, host
from loss_balancers.parity.files import write_json, write_text
from loss_balancers.spec.registry import SETTINGS, stem
from loss_balancers.spec.whole_files import write_whole

DOCS = Path(__file__).parent.parent / "docs"
SEEDS, EPOCHS = 5, 80
FRAMEWORKS = ("torch", "jax")
TOP = """\
# The gallery

Written by `make gallery`, from what it found: the digits distillation of `examples/weights_over_time.py` with every balancer, in
PyTorch and in JAX, {seeds} seeds each, {steps} optimizer steps. A student with {width} hidden units learns from {images} images:
from their labels (`student_loss`), from its teacher's predictions (`KLDivLoss_0`) and from its hidden layer (`MSELoss_1`).

An accuracy is the mean over the seeds ± the standard deviation from seed to seed, on {tested} images that no training saw. Weights
are the means over the last tenth of the steps and over the seeds, in PyTorch; where the aggregate is a function of the losses, they
are its derivatives. The last column counts the steps at which an aggregate or a weight of one framework has other bits than the
other framework's, given the same losses. Each step is compared twice, on the losses of PyTorch and on those of JAX.

| balancer | accuracy, PyTorch | accuracy, JAX | `KLDivLoss_0` | `MSELoss_1` | `student_loss` | steps that differ |
| --- | --: | --: | --: | --: | --: | --: |
{rows}

The teachers have {teacher}. The same students without a teacher have {alone}.

## What it does not show

{told}

The balancers have the settings of their first example, with the weights' total at 1 where there is an option for it. Nothing was
tuned, {steps} steps on {images} images are a small task, and Adam hardly notices the scale of a loss. So the table shows that each
balancer trains, and alike in both frameworks; it does not rank them. The frameworks round their matrix products differently, so
the two students of a seed drift apart{drift}.

{processor}, Python {python}, PyTorch {torch}, JAX {jax}, Flax {flax}, NumPy {numpy}.

## The weights over time

A line is the mean over the seeds, in PyTorch; a band goes from the least to the greatest of them. Arguments that are not shown have
their defaults; [The balancers](balancers.md) explains them.
"""
SECTION = """
### `{name}`

{arguments}

![Weights of {name} over {steps} optimizer steps](gallery/{stem}.png)
"""


@dataclass
class Found:
    """What the seeds gave for one balancer."""

    settings: dict[str, Any]
    accuracy: dict[str, list[float]] = field(default_factory=lambda: {framework: [] for framework in FRAMEWORKS})
    final_weights: dict[str, float] = field(default_factory=dict)
    steps_compared: int = 0
    steps_that_differ: int = 0
    seeds_whose_state_differs: int = 0

    @property
    def differs(self) -> bool:
        """Whether one bit differs."""
        return bool(self.steps_that_differ or self.seeds_whose_state_differs)


def gathered(name: str, steps: int, outcomes: Sequence[Outcome]) -> Found:
    """What the trainings of one balancer gave together."""
    found = Found(over_time.settings_for(name, steps).as_json())
    for outcome in outcomes:
        for framework in FRAMEWORKS:
            found.accuracy[framework].append(outcome.accuracy[framework])
        found.steps_compared += len(outcome.weights)
        found.steps_that_differ += outcome.differing_steps
        found.seeds_whose_state_differs += not outcome.same_state
    last = np.stack([outcome.weights[-max(1, steps // 10) :] for outcome in outcomes])
    found.final_weights = dict(zip(NAMES, last.mean(axis=(0, 1)).tolist(), strict=True))
    return found


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """The weights of one balancer by step: the mean of the seeds, and how far they go."""
    figure = Figure(figsize=(7, 2.4), dpi=100, layout="constrained")
    panel = figure.subplots()
    curves = np.stack([outcome.weights for outcome in outcomes])
    for loss, of_seeds in zip(NAMES, np.moveaxis(curves, -1, 0), strict=True):
        color, width = STYLES[loss]
        steps = np.arange(of_seeds.shape[1])
        panel.fill_between(steps, of_seeds.min(axis=0), of_seeds.max(axis=0), color=color, alpha=0.18, linewidth=0)
        panel.plot(steps, of_seeds.mean(axis=0), color=color, linewidth=width, label=loss)
    over_time.tidy(panel)
    panel.set_xlabel("optimizer step", fontsize=9)
    panel.set_ylabel("weight", fontsize=9)
    figure.legend(*panel.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside upper left")
    return figure


def png(figure: Figure) -> bytes:
    """A small file: of 64 colours."""
    drawn, file = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(64).save(file, format="png", optimize=True)
    return file.getvalue()


def spread(accuracies: Sequence[float]) -> str:
    """A mean and a standard deviation, in percent."""
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f"{statistics.mean(accuracies) * 100:.1f} ± {deviation * 100:.1f}"


def told(balancers: dict[str, Found]) -> str:
    """What the spread allows to say about accuracies."""
    in_torch, in_jax = (_ranges({name: found.accuracy[framework] for name, found in balancers.items()}) for framework in FRAMEWORKS)
    words = [f"In both frameworks {in_torch}"] if in_torch == in_jax else [f"In PyTorch {in_torch}", f"In JAX {in_jax}"]
    return "\n".join([*words, "Where ranges overlap, these seeds do not tell which balancer is better."])


def _ranges(accuracies: dict[str, list[float]]) -> str:
    """Whose range, mean ± deviation, lies below that of the highest mean."""
    means = {name: statistics.mean(of_seeds) for name, of_seeds in accuracies.items()}
    best = max(means, key=means.__getitem__)
    lowest = means[best] - statistics.stdev(accuracies[best])
    apart = [f"`{name}`" for name, of_seeds in accuracies.items() if means[name] + statistics.stdev(of_seeds) < lowest]
    words = f"`{best}` has the highest mean. Its range, mean ± deviation, overlaps with the ranges of all other balancers"
    return f"{words} but {', '.join(apart)}." if apart else f"{words}."


def arguments(name: str, settings: dict[str, Any]) -> str:
    """The arguments that are not defaults, in Markdown, as one writes them in Python."""
    defaults = {each.name: each.default for each in fields(SETTINGS[name])}
    written = {key: _python(value) for key, value in settings.items() if key != "names"}
    ones = _python(dict.fromkeys(NAMES, 1.0))  # what `None` stands for
    words = [f"`{key}={value}`" for key, value in written.items() if value not in (_python(defaults[key]), ones)]
    return ", ".join(words) or "Defaults."


def _python(told: Any) -> str:
    """A setting in JSON, in Python; a number for a schedule that does not change."""
    match told:
        case {"points": [[_, value, _]]}:
            return _python(value)
        case {"points": [[0, start, _], [steps, end, kind]]}:
            return f"schedules.{kind}({start}, {end}, {steps})"
        case dict():
            return f"{{{', '.join(f'{_python(name)}: {_python(value)}' for name, value in told.items())}}}"
        case str():
            return json.dumps(told)
    return repr(told)


def page(record: dict[str, Any]) -> str:
    """The page as text."""
    balancers = {name: Found(**found) for name, found in record["balancers"].items()}
    alike = all(found.accuracy["torch"] == found.accuracy["jax"] for found in balancers.values())
    rows = []
    for name, found in balancers.items():
        weights = (f"{found.final_weights[loss]:.3g}" for loss in NAMES)
        accuracies = (f"{spread(found.accuracy[framework])} %" for framework in FRAMEWORKS)
        differ = f"{found.steps_that_differ:,} of {found.steps_compared:,}"
        rows.append(f"| [`{name}`](#{name.lower()}) | {' | '.join([*accuracies, *weights, differ])} |")
    words = {
        "rows": "\n".join(rows),
        "told": told(balancers),
        "drift": ", here not far enough to change an accuracy" if alike else "",
        "teacher": f"{spread(record['teacher'])} %",
        "alone": f"{spread(record['student_alone'])} %",
        "width": digits.STUDENT_WIDTH,
        "images": digits.STUDENT_IMAGES,
        **{what: record[what] for what in ("seeds", "steps", "tested")},
        **record["host"],
    }
    sections = [
        SECTION.format(name=name, arguments=arguments(name, found.settings), steps=record["steps"], stem=stem(name))
        for name, found in balancers.items()
    ]
    return TOP.format(**words) + "".join(sections)


def table(record: dict[str, Any]) -> Table:
    """The page's table, for a terminal of 80 columns."""
    shown = over_time.narrow_table(f"…{SUFFIX}", "torch %", "jax %", "KLDiv", "MSE", "student", "differ")
    for name, told in record["balancers"].items():
        found = Found(**told)
        weights = (over_time.short(found.final_weights[loss]) for loss in NAMES)
        accuracies = (spread(found.accuracy[framework]) for framework in FRAMEWORKS)
        shown.add_row(name.removesuffix(SUFFIX), *accuracies, *weights, f"{found.steps_that_differ:,}")
    steps = f"{record['seeds'] * record['steps']:,}"
    shown.caption = f"{record['seeds']} seeds. The last weights. differ: of {steps} steps."
    shown.caption_justify = "left"
    return shown


def others(tasks: Sequence[Task], seeds: Iterable[int]) -> dict[str, list[float]]:
    """The accuracies, by seed, of the teachers and of the students that have only the labels."""
    accuracies: dict[str, list[float]] = {"teacher": [], "student_alone": []}
    for task, seed in zip(tasks, seeds, strict=True):
        torch.manual_seed(seed)
        student = digits.TorchStudent()
        digits.train_on_labels(student, digits.LEARNING_RATE, task.data.images, task.data.labels, task.order)
        images, labels = task.test
        for name, model in (("teacher", task.teacher), ("student_alone", student)):
            with torch.no_grad():
                logits = model(torch.from_numpy(images))[0].numpy()
            accuracies[name].append(float((logits.argmax(axis=-1) == labels).mean()))
    return accuracies


def main(
    balancer: Annotated[list[str] | None, typer.Option(help="The class's name; may be given again. All without it.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="How many seeds, from 0 on.")] = SEEDS,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the students.")] = EPOCHS,
    docs: Annotated[Path, typer.Option(help="The folder of gallery.md.")] = DOCS,
) -> None:
    """Distil the digits with every balancer, and write the gallery."""
    names = [name for each in balancer or ["all"] for name in over_time.chosen(each)]
    folder, console = docs / "gallery", Console()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "gallery.json"
    kept = json.loads(file.read_text("utf-8")) if balancer and file.exists() else {}
    torch.set_num_threads(1)  # the fastest for models as small as these

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks = [over_time.task(seed, epochs) for seed in progress.track(range(seeds), description="Teachers")]
        alone = others(tasks, range(seeds))
        steps = len(tasks[0].order)
        record = {"seeds": seeds, "epochs": epochs, "steps": steps, "tested": len(tasks[0].test[1]), **alone}
        if kept and any(kept[what] != record[what] for what in ("seeds", "epochs")):
            raise typer.BadParameter(f"{file} is of {kept['seeds']} seeds and {kept['epochs']} epochs: run all balancers.")
        found = {name: Found(**told) for name, told in kept.get("balancers", {}).items()}
        bar = progress.add_task("Students", total=len(names) * seeds)
        for name in names:
            outcomes = []
            for seed, task in enumerate(tasks):
                progress.update(bar, description=name)
                settings = over_time.settings_for(name, steps)
                outcomes.append(over_time.distill(settings, task.data, task.order, seed, task.test))
                progress.advance(bar)
            found[name] = gathered(name, steps, outcomes)
            write_whole(folder / f"{stem(name)}.png", png(draw(outcomes)))

    here = host()
    record["host"] = {"processor": here["processor"], "python": here["python"], **frameworks()}
    record["balancers"] = {name: vars(found[name]) for name in SETTINGS if name in found}
    console.print(table(record))
    write_json(file, record)
    write_text(docs / "gallery.md", page(record))
    console.print(f"Wrote {docs / 'gallery.md'} and the plots in {folder}", soft_wrap=True)
    if differing := [name for name in names if found[name].differs]:
        console.print(f"Bits differ: {', '.join(differing)}", style="red", soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
