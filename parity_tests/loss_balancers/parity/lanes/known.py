"""The lanes that are known: those of this library, and those that other packages add."""

from __future__ import annotations

from importlib.metadata import entry_points

from loss_balancers.parity.lanes.absent import KNOWN_DEVICES, refused_lanes, why_no_framework
from loss_balancers.parity.lanes.lane import Lane

#: The modes of each framework's lanes: those of one that is not installed are listed too.
MODES = {
    "torch": ("eager", "compiled", "vmap", "step"),
    "jax": ("eager", "jit", "vmap", "scan", "remat", "step", "x64", "sharded"),
}
#: The group of entry points by which other packages add lanes.
ENTRY_POINTS = "loss_balancers.lanes"


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
    lanes = [*lanes_of("torch"), *lanes_of("jax"), *added_lanes()]
    names = [lane.name for lane in lanes]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"Lanes must have distinct names. Received {', '.join(twice)} more than once. Rename a mode of those that the entry "
            f"points of {ENTRY_POINTS!r} add."
        )
    return lanes


def added_lanes() -> list[Lane]:
    """The lanes that other packages add."""
    lanes = []
    for entry in sorted(entry_points(group=ENTRY_POINTS)):
        try:
            lanes += entry.load()()
        except Exception as error:
            error.add_note(f"The lanes of the entry point {entry.name} = {entry.value!r} cannot be loaded. Repair or uninstall it.")
            raise
    return lanes


def lanes_of(framework: str) -> list[Lane]:
    """This library's lanes of a framework, which is loaded for it, and no other."""
    if (reason := why_no_framework(framework)) is not None:
        return refused_lanes(framework, MODES[framework], dict.fromkeys(KNOWN_DEVICES, reason))
    if framework == "torch":
        from loss_balancers.parity.lanes.in_torch import torch_lanes

        return torch_lanes()
    from loss_balancers.parity.lanes.in_jax import jax_lanes

    return jax_lanes()
