"""How many kernels does a training step of each balancer launch in eager PyTorch, beside what its losses cost in any case?

Counted are the operations of ATen that compute or copy, as `torch.profiler` records them on the CPU; not views, not allocations,
and not the conversion of a Python number within an operation. On a GPU each is about one launch. Of a forward and a backward the
floor is taken off: ``torch.stack(losses).dot(weights)``, which autograd differentiates by itself. The losses are four float32
scalars; a step is counted once it has been made before, with `update()` where there is one. An epoch of DWA is ten steps, and the
step that is counted ends none. On a CPU random numbers are made for 64 steps at once, and the step that is counted makes none.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness import environment
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from loss_balancers.parity.files import write_json
from loss_balancers.spec import schedules
from loss_balancers.torch import (
    DWALossBalancer,
    EMANormalizedLossBalancer,
    FAMOLossBalancer,
    GeometricLossBalancer,
    IMTLLossBalancer,
    LogitsAndIntermediatesLossBalancer,
    RandomLossBalancer,
    ReLoBRaLoLossBalancer,
    ScheduledLossBalancer,
    SoftAdaptLossBalancer,
    StaticLossBalancer,
    STCHLossBalancer,
    UncertaintyLossBalancer,
    WeightedSumLossBalancer,
)

NAMES = ("LogitsKL_0", "MSE_1", "MSE_2", "student_loss")
PARTS = ("forward", "backward", "step")

#: What launches nothing, beside what a name with "view" in it says.
NO_KERNEL = {
    *("alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand", "expand_as", "flatten", "narrow"),
    *(
        "permute",
        "reshape",
        "resize_",
        "resolve_conj",
        "resolve_neg",
        "result_type",
        "select",
        "slice",
        "split",
        "squeeze",
        "unbind",
    ),
    *("unflatten", "unfold", "unsqueeze"),
}


def balancers() -> dict[str, Callable[..., Any]]:
    """One of each kind, and the floor."""
    line, weights = schedules.linear(0.0, 0.3, 10), torch.full((len(NAMES),), 0.25)
    return {
        "floor": lambda losses: torch.stack(list(losses.values())).dot(weights),
        "static": StaticLossBalancer([0.2, 0.3, 0.1]),
        "static, one number": StaticLossBalancer(0.3),
        "scheduled": ScheduledLossBalancer([line] * 3, NAMES),
        "scheduled, one schedule": ScheduledLossBalancer(line, NAMES),
        "weighted sum": WeightedSumLossBalancer(dict.fromkeys(NAMES[:3], 2.0), 0.5),
        "EMA": EMANormalizedLossBalancer(NAMES),
        "EMA, target": EMANormalizedLossBalancer(NAMES, target="student_loss"),
        "EMA, lagged": EMANormalizedLossBalancer(NAMES, lagged=True),
        "logits and intermediates": LogitsAndIntermediatesLossBalancer(),
        "DWA": DWALossBalancer(NAMES, epoch_steps=10),
        "SoftAdapt": SoftAdaptLossBalancer(NAMES),
        "ReLoBRaLo": ReLoBRaLoLossBalancer(NAMES),
        "random": RandomLossBalancer(NAMES),
        "geometric": GeometricLossBalancer(NAMES),
        "STCH": STCHLossBalancer(NAMES),
        "uncertainty": UncertaintyLossBalancer(NAMES),
        "IMTL": IMTLLossBalancer(NAMES),
        "FAMO": FAMOLossBalancer(NAMES),
    }


def kernels(call: Callable[[], object]) -> Counter[str]:
    """The operations of a call that compute or copy, by name."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds print a line as it starts and as it ends
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    found: Counter[str] = Counter()
    for event in profiled.events() or ():
        if event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::"):
            found.update(_within(event))
    return found


def _within(event: Any) -> list[str]:
    """The names of the innermost operations."""
    name = event.name.removeprefix("aten::")
    if name == event.name or name in NO_KERNEL or "view" in name:
        return []
    # Within another operation a conversion is that of a Python number.
    inner = [found for child in event.cpu_children if child.name != "aten::to" for found in _within(child)]
    return inner or ([] if name == "to" else [name])


def committed(balancer: Any, after: dict[str, torch.Tensor]) -> Callable[[], None]:
    """What is done at an optimizer step: `update()` where there is one, and `step()`."""

    def commit() -> None:
        if hasattr(balancer, "update"):
            balancer.update(after)
        if hasattr(balancer, "step"):
            balancer.step()

    return commit


def counted() -> dict[str, dict[str, Counter[str]]]:
    """The kernels of each part of a step."""
    losses = {name: torch.tensor(1.0 + i, requires_grad=True) for i, name in enumerate(NAMES)}
    results = {}
    for name, balancer in balancers().items():
        leaves = [*losses.values(), *(balancer.parameters() if isinstance(balancer, torch.nn.Module) else ())]
        step = committed(balancer, {name: x.detach() for name, x in losses.items()})
        for _ in range(3):
            torch.autograd.grad(balancer(losses), leaves)
            step()
        aggregate: list[torch.Tensor] = []
        calls = (
            lambda balancer=balancer, kept=aggregate: kept.append(balancer(losses)),
            lambda kept=aggregate, leaves=leaves: torch.autograd.grad(kept[0], leaves),
            step,
        )
        results[name] = dict(zip(PARTS, map(kernels, calls), strict=True))
    return results


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the results.")] = None,
    names: Annotated[bool, typer.Option(help="Also print which operations they are.")] = False,
) -> None:
    """Counts the kernels of a forward, a backward and a step."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        results = counted()
    floor = {part: found.total() for part, found in results["floor"].items()}
    shown = Table("balancer", *PARTS, "forward and backward beyond the floor", title=f"kernels, {len(NAMES)} losses, eager")
    rows = []
    for name, parts in results.items():
        numbers = {part: found.total() for part, found in parts.items()}
        beyond = sum(numbers[part] - floor[part] for part in ("forward", "backward"))
        shown.add_row(name, *(str(numbers[part]) for part in PARTS), str(beyond))
        rows.append({"balancer": name, **numbers, "beyond": beyond, "names": {part: dict(x) for part, x in parts.items()}})
    Console().print(shown)
    if names:
        for row in rows:
            print(row["balancer"], row["names"])
    if json is not None:
        where = environment("torch", "loss-balancers", "numpy")
        write_json(json, {"benchmark": "kernels", "losses": len(NAMES), **where, "results": rows})


if __name__ == "__main__":
    typer.run(main)
