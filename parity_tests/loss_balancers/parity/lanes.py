"""Lanes: framework x device x mode. Each runs golden vectors and hands back bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import entry_points
from typing import NamedTuple

from loss_balancers.spec import Format, Group

#: The columns of the matrix.
LABELS = ("bf16", "f16", "f32", "f64", "mixed")
#: Devices whose lanes are listed even where they are absent. Any other appears where a framework reports it.
KNOWN_DEVICES = ("cpu", "cuda", "rocm", "mps", "tpu")
#: The modes of each framework's lanes: those of one that is not installed are listed too.
MODES = {
    "torch": ("eager", "compiled", "vmap", "step"),
    "jax": ("eager", "jit", "vmap", "scan", "remat", "step", "x64", "sharded"),
}
#: The group of entry points by which other packages add lanes.
ENTRY_POINTS = "loss_balancers.lanes"


#: A format and bits.
Bits = tuple[str, int]


class Result(NamedTuple):
    """What one step gave: the bits of the aggregate and of the gradient to each loss, with their formats.

    Of a balancer that changes over time also its weights, and each number of its state after the step, such as ``total[0]``.
    """

    aggregate: Bits
    gradients: dict[str, Bits]
    weights: dict[str, Bits] = {}  # noqa: RUF012  # of a NamedTuple, and never changed
    state: dict[str, Bits] = {}  # noqa: RUF012


class Lane(NamedTuple):
    """One way to run a balancer.

    ``run`` takes groups with as many sequences of as many steps each, and yields for each step of each sequence, one
    sequence after the other, the results of all groups. ``why_absent`` says why the
    lane cannot be run on this host, None if it can; it may take a while to find out. ``why_no_format`` says why the device
    lacks a format, such as ``f64``; a column that needs it is absent. ``here`` is whether this host has the device at all.
    ``at_once`` is whether one worker should run all columns, since its runs share work: each starts a process, or compiles
    operations that others need too.
    """

    framework: str
    device: str
    mode: str
    run: Callable[[Sequence[Group]], Iterator[list[Result]]]
    why_absent: Callable[[], str | None] = lambda: None
    why_no_format: Callable[[str], str | None] = lambda fmt: None
    here: bool = True
    at_once: bool = False

    @property
    def name(self) -> str:
        """``framework-device-mode``."""
        return f"{self.framework}-{self.device}-{self.mode}"

    def why_no_column(self, groups: Sequence[Group]) -> str | None:
        """Why this lane, though present, cannot run these groups; None if it can."""
        formats = dict.fromkeys(fmt for group in groups for fmt in (*group.formats.values(), group.result))
        return next((reason for fmt in formats if (reason := self.why_no_format(fmt)) is not None), None)


def find_lanes() -> list[Lane]:
    """The lanes on the devices that this host has. Some may still be absent, say for want of a compiler."""
    return [lane for lane in known_lanes() if lane.here]


def known_lanes() -> list[Lane]:
    """Every lane that is known, also those on devices that this host lacks.

    Those of this library, and of each package that declares a function without arguments that returns lanes:

        [project.entry-points."loss_balancers.lanes"]
        abacus = "my_package.lanes:my_lanes"

    An entry point and no call, because lanes run in fresh processes too, which must find the same ones.

    Raises:
        ValueError: Two lanes have one name.
    """
    lanes = [*_of("torch"), *_of("jax")]
    for entry in sorted(entry_points(group=ENTRY_POINTS)):
        try:
            lanes += entry.load()()
        except Exception as error:
            error.add_note(f"The lanes of the entry point {entry.name} = {entry.value!r} cannot be loaded. Repair or uninstall it.")
            raise
    names = [lane.name for lane in lanes]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"Lanes must have distinct names. Received {', '.join(twice)} more than once. Rename a mode of those that the entry "
            f"points of {ENTRY_POINTS!r} add."
        )
    return lanes


def _of(framework: str) -> list[Lane]:
    if (reason := why_no_framework(framework)) is not None:
        return _absent_lanes(framework, MODES[framework], dict.fromkeys(KNOWN_DEVICES, reason))
    if framework == "torch":
        from loss_balancers.parity.torch_lanes import torch_lanes

        return torch_lanes()
    from loss_balancers.parity.jax_lanes import jax_lanes

    return jax_lanes()


@cache
def why_no_framework(framework: str) -> str | None:
    """Why a framework cannot be used here, found by trying: it is not installed, or too old. None if it can."""
    try:
        importlib.import_module(f"loss_balancers.{framework}")
    except ImportError as error:
        return str(error)
    return None


def absent_lanes(framework: str, devices: Iterable[str], modes: Iterable[str], title: str) -> list[Lane]:
    """The lanes on the devices that are known but not among ``devices``, which the framework reports."""
    missing = [device for device in KNOWN_DEVICES if device not in devices]
    return _absent_lanes(framework, list(modes), {device: f"{title} reports no {device} device" for device in missing})


def _absent_lanes(framework: str, modes: Sequence[str], reasons: Mapping[str, str]) -> list[Lane]:
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
