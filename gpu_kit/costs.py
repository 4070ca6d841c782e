"""What a training step of each balancer costs in PyTorch, beside the sum that one would write by hand."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import torch
from captured import Given, Losses, as_cuda_graph, differing, same, state_of, training_step, with_gradients
from harness import compare

import loss_balancers.torch
from gpu_kit.figures import NOT_HERE, first_line, record
from loss_balancers.parity.golden.vectors import balancer_of, installed_vectors, shape
from loss_balancers.spec import Group

#: Rounds that count. A round takes 2 x 5 ms, so a comparison takes about a second.
ROUNDS = 60
#: How many replays are compared with steps that run.
REPLAYS = 6


class Subject(NamedTuple):
    """A balancer that is measured, its losses, and what stands beside it: constant weights times losses, added."""

    balancer: Any
    losses: Losses
    by_hand: Callable[[Losses], torch.Tensor]


def subjects(device: str) -> dict[str, Callable[[], Subject]]:
    """One of each balancer: float32, and of its golden vectors the settings with most losses up to eight."""
    found = {}
    for name, vectors in installed_vectors().items():
        groups = [group for group in vectors.groups if group.label == "f32" and not group.keyword and len(group.formats) <= 8]
        most = max(groups, key=lambda group: (len(group.formats), shape(group)))
        found[name] = lambda group=most: _subject(group, device)
    return found


def _subject(group: Group, device: str) -> Subject:
    names = tuple(group.formats)
    losses = drawn(names, device)
    weights = {name: 1 / (2 + i) for i, name in enumerate(names)}

    def by_hand(losses: Losses) -> torch.Tensor:
        return reduce(add, [losses[name] * weight for name, weight in weights.items()])

    return Subject(balancer_of(group, loss_balancers.torch).to(device), losses, by_hand)


def drawn(names: tuple[str, ...], device: str, seed: int = 0) -> Losses:
    """Losses to differentiate by."""
    values = torch.rand(len(names), generator=torch.Generator().manual_seed(seed)) * 4 + 0.1
    return {name: x.clone().to(device).requires_grad_() for name, x in zip(names, values, strict=True)}


def run(what: str, device: str, folder: Path) -> int:
    """One measure of every balancer, written after each."""
    measure = {"kernels": kernels, "eager": eager, "graph": graph, "compiled": compiled}[what]
    torch.set_num_threads(1)
    failed = 0
    for name, make in subjects(device).items():
        try:
            found = measure(make(), device)
        except Exception as error:  # one balancer that fails stops no other
            import traceback

            traceback.print_exc()
            failed, found = 1, {"failed": first_line(error)}
        record(folder, "costs", name, what, value=found)
    return failed


def kernels(subject: Subject, device: str) -> Any:
    """Kernels that are launched in each part of a step, after a first one; and whether any part waits for the device."""
    if device != "cuda":
        return {"launched": NOT_HERE, "syncs": NOT_HERE}
    balancer, losses, by_hand = subject
    for _ in range(3):
        training_step(balancer, losses)
    _launched(by_hand, losses)  # the first trace of a process may lack what happens while the profiler starts
    return {
        "launched": {"ours": _launched(balancer, losses), "by hand": _launched(by_hand, losses)},
        "syncs": _synced(lambda: training_step(balancer, losses)),
        # The comparator must be able to fail.
        "a planted sync is found": _synced(lambda: next(iter(losses.values())).item()) is not None,
    }


def _launched(balancer: Any, losses: Losses) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    aggregate: list[torch.Tensor] = []
    parts: dict[str, Callable[[], Any]] = {
        "forward": lambda: aggregate.append(balancer(losses)),
        "backward": lambda: torch.autograd.grad(aggregate[-1], list(losses.values())),
    }
    if hasattr(balancer, "load_state"):
        parts["step"] = balancer.step
    found = {}
    for part, call in parts.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
        names = Counter(event.name[:100] for event in profiled.events() or () if event.device_type.name == "CUDA")
        if not names:
            raise RuntimeError(f"The profiler saw no kernel in {part}: it does not see this device.")
        found[part] = {"count": sum(names.values()), "names": dict(names)}
    return found


def _synced(call: Callable[[], Any]) -> str | None:
    """What waited for the device; None if nothing did."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return first_line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def eager(subject: Subject, device: str) -> Any:
    """Seconds of a step."""
    balancer, losses, by_hand = subject
    return _timed(lambda: with_gradients(by_hand, losses), lambda: training_step(balancer, losses), device)


def compiled(subject: Subject, device: str) -> Any:
    """Seconds of a step whose forward and commit are compiled, each by itself; on CUDA also where Inductor may make CUDA graphs."""
    return {mode: _compiled(subject, device, mode) for mode in ("default", *(["reduce-overhead"] if device == "cuda" else []))}


def _compiled(subject: Subject, device: str, mode: str) -> Any:
    torch.compiler.reset()
    subject = subject._replace(balancer=copy.deepcopy(subject.balancer))
    begin = copy.deepcopy(subject.balancer)
    ours, by_hand = (torch.compile(fn, fullgraph=True, mode=mode) for fn in (subject.balancer, subject.by_hand))
    commit = torch.compile(subject.balancer.step, fullgraph=True) if hasattr(subject.balancer, "load_state") else lambda: None

    def step(forward: Any, losses: Losses, end: Callable[[], Any] = lambda: None) -> Given:
        torch.compiler.cudagraph_mark_step_begin()
        given = with_gradients(forward, losses)
        end()
        return given

    wrong = 0
    for seed in range(REPLAYS):
        losses = drawn(tuple(subject.losses), device, seed)
        given = [*(x.clone() for x in step(ours, losses, commit)), *state_of(subject.balancer)]
        wanted = [*training_step(begin, losses), *state_of(begin)]
        wrong += not all(same(a, b) for a, b in zip(given, wanted, strict=True))
    timed = _timed(lambda: step(by_hand, subject.losses), lambda: step(ours, subject.losses, commit), device)
    return {"steps": REPLAYS, "differ": wrong, **timed}


def graph(subject: Subject, device: str) -> Any:
    """Whether a captured step is replayed with the bits of steps that run; and seconds of a replay."""
    if device != "cuda":
        return {"replayed": NOT_HERE}
    balancer, losses, by_hand = subject
    twin = copy.deepcopy(balancer)
    recorded = as_cuda_graph(lambda x: training_step(balancer, x), losses)
    if hasattr(balancer, "load_state"):
        balancer.load_state(twin.export_state())  # the warm-ups were steps too
    runs = [drawn(tuple(losses), device, seed) for seed in range(REPLAYS)]
    wrong = differing(recorded, balancer, twin, runs, training_step)
    beside = as_cuda_graph(lambda x: with_gradients(by_hand, x), losses)
    return {"replays": REPLAYS, "differ": wrong, **_timed(beside.replay, recorded.replay, device)}


def _timed(by_hand: Callable[[], Any], ours: Callable[[], Any], device: str) -> dict[str, float]:
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = compare(by_hand, ours, rounds=ROUNDS, finish=finish)
    return {
        "by hand, us": round(found.peer * 1e6, 2),
        "ours, us": round(found.ours * 1e6, 2),
        "times as long": round(1 / found.ratio, 3),
    }
