"""The lanes on which other people's twins run: their names, and whether they are here.

Imports no framework and no NumPy: the pytest plugin checks names with it before anything else is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

#: Framework to modes. Any device that the framework reports goes with each.
MODES = {"torch": ("eager", "compiled", "vmap", "step"), "jax": ("eager", "jit", "vmap", "scan", "remat", "step")}
DEFAULT_LANES = ("torch-cpu-eager", "jax-cpu-jit")


class LaneAbsentError(RuntimeError):
    """A lane that was asked for cannot run on this machine."""


class TwinLane(NamedTuple):
    """Framework, device and mode, as in ``torch-cpu-eager``."""

    framework: str
    device: str
    mode: str

    @property
    def name(self) -> str:
        """``framework-device-mode``."""
        return "-".join(self)


def read_lanes(names: Sequence[str]) -> list[TwinLane]:
    """The lanes of these names, known but maybe not here.

    Raises:
        TypeError: ``names`` is a string.
        ValueError: A name is unknown, or they do not hold a lane of each framework.
    """
    if isinstance(names, str):
        raise TypeError(f"`lanes` must be a sequence of names. Received the string {names!r}. Pass [{names!r}, ...].")
    lanes = [_read_lane(name) for name in dict.fromkeys(names)]
    missing = [framework for framework in MODES if framework not in {lane.framework for lane in lanes}]
    if missing:
        raise ValueError(
            f"Twins are compared across frameworks, so `lanes` needs at least one lane of each. Received {list(names)}, "
            f"none of {' or '.join(missing)}. Add, say, {' or '.join(DEFAULT_LANES[list(MODES).index(m)] for m in missing)}."
        )
    return lanes


def _read_lane(name: Any) -> TwinLane:
    parts = name.split("-") if isinstance(name, str) else []
    if len(parts) != 3 or not parts[1] or parts[2] not in MODES.get(parts[0], ()):
        known = "; ".join(f"{framework}-DEVICE-MODE with a MODE of {', '.join(modes)}" for framework, modes in MODES.items())
        raise ValueError(f"There is no lane {name!r} for twins. Lanes are {known}. Correct the name.")
    return TwinLane(*parts)


def check_present(lanes: Sequence[TwinLane]) -> None:
    """Refuses lanes that this machine cannot run.

    Raises:
        LaneAbsentError: One is absent; says why.
        ImportError: A framework is not installed.
    """
    from loss_balancers.parity.lanes.known import known_lanes

    known = {lane.name: lane for lane in known_lanes()}
    for lane in lanes:
        reason = known[lane.name].why_absent() if lane.name in known else None
        devices = dict.fromkeys(other.device for other in known.values() if other.framework == lane.framework and other.here)
        if reason is None and lane.device not in devices:
            reason = f"{lane.framework} has no device {lane.device!r} here, but {', '.join(devices)}"
        if reason is not None:
            raise absent(lane, reason)


def absent(lane: TwinLane, reason: str) -> LaneAbsentError:
    """The error of a lane that was asked for and cannot run."""
    return LaneAbsentError(
        f"The lane {lane.name} cannot run on this machine: {reason}. Ask for another lane, or change what keeps it from running."
    )
