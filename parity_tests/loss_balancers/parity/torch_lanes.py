"""The lanes of PyTorch: eager and compiled, on every device that it reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from loss_balancers.parity.bits import array_bits
from loss_balancers.parity.lanes import Lane, Result
from loss_balancers.spec import FORMATS, Group
from loss_balancers.torch import StaticLossBalancer

DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in FORMATS.items()}

Losses = dict[str, Tensor]


def torch_lanes() -> list[Lane]:
    """Eager and compiled, on each device."""
    return [
        lane
        for device in _devices()
        for lane in (
            Lane("torch", device, "eager", partial(_run, device, "eager")),
            Lane("torch", device, "compiled", partial(_run, device, "compiled"), partial(_no_compiler, device)),
        )
    ]


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] + ([accelerator.type] if accelerator is not None else [])


@cache
def _no_compiler(device: str) -> str | None:
    """Why `torch.compile` does not work here, found by trying: on CPU it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x * 2 + 1, fullgraph=True)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler chain raises is the reason
        # The first line names the backend, the second what it missed.
        return f"torch.compile fails on {device}: {' '.join(str(error).strip().splitlines()[:2])}"
    return None


def _run(device: str, mode: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    balancers = [StaticLossBalancer(**group.settings) for group in groups]

    def aggregates(batch: Sequence[Losses]) -> list[Tensor]:
        return [balancer(losses) for balancer, losses in zip(balancers, batch, strict=True)]

    # All groups in one graph: a compilation each would take minutes.
    call: Callable[[Sequence[Losses]], list[Tensor]] = aggregates
    if mode == "compiled":
        torch.compiler.reset()
        call = torch.compile(aggregates, fullgraph=True, dynamic=False)
    for index in range(len(groups[0].vectors)):
        batch = [_losses(group, index, device) for group in groups]
        cotangents = [torch.tensor(group.vectors[index].cotangent, dtype=DTYPES[group.result], device=device) for group in groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
            outputs = call(batch)
        flat = [x for losses in batch for x in losses.values()]
        gradients = iter(torch.autograd.grad(outputs, flat, cotangents))
        yield [
            Result(_bits(output), {name: _bits(next(gradients)) for name in losses})
            for output, losses in zip(outputs, batch, strict=True)
        ]


def _losses(group: Group, index: int, device: str) -> Losses:
    return {
        name: torch.tensor(value, dtype=DTYPES[group.formats[name]], device=device, requires_grad=True)
        for name, value in group.vectors[index].losses.items()
    }


def _bits(x: Tensor) -> tuple[str, int]:
    fmt = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
    return fmt, int(array_bits(x))
