"""Why a lane is absent: this host lacks the framework, the device or a number format, or the program would not be compiled.

Whether it is compiled is proved by the program that runs, not by one beside it: the function that is compiled refuses to be run by
Python (`torch_compiled.py`, `jax_compiled.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial

from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.spec import Format, Group, errors

#: Devices whose lanes are listed even where they are absent. Any other appears where a framework reports it.
KNOWN_DEVICES = ("cpu", "cuda", "rocm", "mps", "tpu")


@cache
def why_no_framework(framework: str) -> str | None:
    """Why a framework cannot be used here, found by trying: it is not installed, or too old, or broken. None if it can."""
    try:
        importlib.import_module(f"loss_balancers.{framework}")
    except Exception as error:  # PyTorch for CUDA without NVIDIA's libraries raises a ValueError
        ours = isinstance(error, ImportError) and str(error).startswith(f"`loss_balancers.{framework}` needs")
        return str(error) if ours else errors.framework_broken(framework, error)
    return None


def absent_lanes(framework: str, devices: Iterable[str], modes: Iterable[str], title: str) -> list[Lane]:
    """The lanes on the devices that are known but not among ``devices``, which the framework reports."""
    missing = [device for device in KNOWN_DEVICES if device not in devices]
    return refused_lanes(framework, list(modes), {device: f"{title} reports no {device} device" for device in missing})


def refused_lanes(framework: str, modes: Sequence[str], reasons: Mapping[str, str]) -> list[Lane]:
    """Lanes that cannot run: of each device, with the reason."""
    return [
        Lane(framework, device, mode, partial(_refuse, reason), lambda reason=reason: reason, here=False)
        for device, reason in reasons.items()
        for mode in modes
    ]


def _refuse(reason: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    del groups
    raise RuntimeError(f"This lane cannot run: {reason}.")


def why_no_format(device: str, fmt: Format, add: Callable[[float, float], float]) -> str | None:
    """Why a device lacks a format, found by trying: not at all, or only an emulation with fewer digits or a smaller range.

    Args:
        device: Its name.
        fmt: The format.
        add: Adds two numbers of the format, in it, on the device.
    """
    ulp, half = 2.0 ** (1 - fmt.precision), 2.0 ** (fmt.max_exponent - 1)
    try:
        for a, b in ((1.0, ulp), (half, half)):
            if (total := add(a, b)) != a + b:
                return f"{fmt.dtype} on {device} is an emulation: {a.hex()} + {b.hex()} is {total.hex()}"
    except Exception as error:  # whatever the framework raises is the reason
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"{device} has no {fmt.dtype}: {first}"
    return None


class NotCompiledError(RuntimeError):
    """A lane would not have run what its name says. It is absent, and the message is the reason."""


def not_compiled(what: str, switches: Sequence[str]) -> NotCompiledError:
    """The error: what happened instead, and the switches that are on and explain it."""
    because = f": {', '.join(switches)}" if switches else ""
    return NotCompiledError(f"not compiled: {what}{because}")
