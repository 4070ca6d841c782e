"""A training step that is recorded once and replayed: as a CUDA graph, or, on any device, as a tape of its operations.

A tape is what a CUDA graph is to PyTorch: the operations that ran, on the memory that they ran on, with every number that Python
gave them as it was then. So it shows on a CPU what a capture freezes, and what it carries on. What a device makes of a capture, it
does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Losses = dict[str, Tensor]
#: Values that a step gives: the aggregate, and the gradient to each loss.
Given = list[Tensor]


def training_step(balancer: Any, losses: Losses, **keywords: Any) -> Given:
    """A forward, its gradients, and the commit."""
    given = with_gradients(balancer, losses, **keywords)
    balancer.step()
    return given


def with_gradients(forward: Callable[..., Tensor], losses: Losses, **keywords: Any) -> Given:
    """What a balancer, or a function of the losses, gives, and its gradients."""
    aggregate = forward(losses, **keywords)
    return [aggregate.detach(), *torch.autograd.grad(aggregate, list(losses.values()))]


class Recorded(NamedTuple):
    """A step on fixed memory: write the losses, replay, read what is given."""

    losses: Losses
    given: Given
    replay: Callable[[], None]

    def on(self, losses: Losses) -> Given:
        """What the step gives for other losses."""
        with torch.no_grad():
            for name, x in losses.items():
                self.losses[name].copy_(x)
        self.replay()
        return [x.clone() for x in self.given]


class Tape(TorchDispatchMode):
    """Records the operations of ATen, and runs them again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Every operation again; what it gives goes where it went before."""
        with torch.no_grad():
            for func, args, kwargs, before in self._operations:
                after = func(*args, **kwargs)
                for old, new in zip(_tensors(before), _tensors(after), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                        old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def on_tape(step: Callable[[Losses], Given], losses: Losses) -> Recorded:
    """The step as a tape. To record it runs it once."""
    fixed = _fixed(losses)
    with Tape() as tape:
        given = step(fixed)
    return Recorded(fixed, given, tape.replay)


def as_cuda_graph(step: Callable[[Losses], Given], losses: Losses, warm_ups: int = 3) -> Recorded:
    """The step as a CUDA graph, captured as PyTorch asks for: after warm-ups on another stream, which do run the step."""
    fixed = _fixed(losses)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            step(fixed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        given = step(fixed)
    return Recorded(fixed, given, graph.replay)


def _fixed(losses: Losses) -> Losses:
    return {name: x.detach().clone().requires_grad_() for name, x in losses.items()}


def state_of(balancer: Any) -> list[Tensor]:
    """Copies of a balancer's state."""
    return [x.clone() for x in balancer.state_dict().values()]


def differing(recorded: Recorded, balancer: Any, twin: Any, runs: Iterable[Losses], step: Callable[..., Given]) -> int:
    """How many replays differ in a bit from steps of ``twin`` that run: in what they give, or in the state after.

    Args:
        recorded: The step of ``balancer``.
        balancer: Of which the recording reads and writes the state.
        twin: A balancer of the same settings and the same state.
        runs: The losses of each step.
        step: The step, as `training_step`.
    """
    count = 0
    for losses in runs:
        given = [*recorded.on(losses), *state_of(balancer)]
        wanted = [*step(twin, {name: x.detach().clone().requires_grad_() for name, x in losses.items()}), *state_of(twin)]
        count += not all(same(a, b) for a, b in zip(given, wanted, strict=True))
    return count


def same(a: Tensor, b: Tensor) -> bool:
    """Whether all bits are equal; the dtype and the shape too."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(word), b.contiguous().view(word))
