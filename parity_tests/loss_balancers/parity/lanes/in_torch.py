"""The lanes of PyTorch: every mode, on every device that it reports."""

from __future__ import annotations

from functools import cache, partial

import torch

from loss_balancers.parity.lanes.absent import absent_lanes, why_no_format
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.torch_modes import COMPILED, DTYPES, MODES, run_in_torch
from loss_balancers.spec import FORMATS


def torch_lanes() -> list[Lane]:
    """Every mode, on each kind of device; those of known devices that are not here too."""
    devices = _devices()
    present = [_lane(name, device, mode) for name, device in devices.items() for mode in MODES]
    return [*present, *absent_lanes("torch", devices, MODES, "PyTorch")]


def _devices() -> dict[str, str]:
    """The devices by their name in a lane, as PyTorch calls them: it calls AMD's ``cuda`` too."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return {"cpu": "cpu"}
    name = "rocm" if accelerator.type == "cuda" and torch.version.hip is not None else accelerator.type
    return {"cpu": "cpu", name: accelerator.type}


def _lane(name: str, device: str, mode: str) -> Lane:
    lane = Lane("torch", name, mode, partial(run_in_torch, device, mode), why_no_format=partial(_why_no_format, device))
    if mode not in COMPILED:
        return lane
    return lane._replace(why_absent=partial(_why_not_compiled, device))


def _why_not_compiled(device: str) -> str | None:
    """Why the compiled lanes are absent: `torch.compile` is switched off, or it does not work here."""
    from loss_balancers.parity.lanes.torch_compiled import why_not_compiled  # loads Dynamo, which takes a second

    # A switch may be turned while a process runs. Whether there is a compiler stays, and takes seconds to find out.
    return why_not_compiled() or _no_compiler(device)


@cache
def _no_compiler(device: str) -> str | None:
    """Why `torch.compile` does not work here, found by trying: on CPU it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x * 2 + 1, fullgraph=True, backend="inductor")(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler chain raises is the reason
        # The first line names the backend, the second what it missed.
        return f"torch.compile fails on {device}: {' '.join(str(error).strip().splitlines()[:2])}"
    return None


@cache
def _why_no_format(device: str, fmt: str) -> str | None:
    def add(a: float, b: float) -> float:
        x, y = (torch.tensor(value, dtype=DTYPES[fmt], device=device) for value in (a, b))
        return (x + y).item()

    return why_no_format(device, FORMATS[fmt], add)  # type: ignore[index]
