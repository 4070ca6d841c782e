"""What there is to do, the most telling first, and by when each part must end."""

from __future__ import annotations

from typing import NamedTuple

#: The modes whose lanes run, in order. The others are the same code once more, or are left out on purpose (x64, sharded).
MODES = {"torch": ("eager", "compiled", "step", "vmap"), "jax": ("jit", "scan", "step", "vmap", "remat")}


class Part(NamedTuple):
    """Jobs that run side by side: of each stream one at a time, in order.

    ``until`` is the fraction of all minutes at which the part ends; who is done earlier leaves more to the next.
    """

    title: str
    until: float
    streams: tuple[tuple[str, ...], ...]


def parts(device: str) -> list[Part]:
    """All parts. Frameworks run side by side, since bits do not depend on who else is there; what is timed runs alone."""
    frameworks = tuple(MODES)
    lanes = {framework: [f"{framework}-{device}-{mode}" for mode in modes] for framework, modes in MODES.items()}
    return [
        Part("versions and devices", 0.12, tuple((f"host-{name}",) for name in frameworks)),
        Part("golden vectors", 0.3, tuple((of_one[0],) for of_one in lanes.values())),
        Part("golden vectors, other modes", 0.68, tuple(tuple(of_one[1:]) for of_one in lanes.values())),
        Part("quotients", 0.78, tuple((f"quotients-{name}",) for name in frameworks)),
        Part("costs", 0.97, (("costs-kernels", "costs-eager", "costs-graph", "costs-compiled"),)),
    ]
