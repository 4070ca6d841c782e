"""What there is to do, the most telling first, and by when each part must end."""

from __future__ import annotations

import os
from typing import NamedTuple

from loss_balancers.spec.registry import SETTINGS

#: Exit status of a job that this host cannot do. It has recorded why.
ABSENT = 4
#: The modes whose lanes run, in order. The others are the same code once more, or are left out on purpose (x64, sharded).
MODES = {"torch": ("eager", "compiled", "step", "vmap"), "jax": ("jit", "scan", "step", "vmap", "remat")}


#: Where a compiler takes most of the time. There each balancer is a job of its own, so that many cores compile several at once.
ONE_BY_ONE = ("torch-{device}-compiled", "torch-{device}-step")
#: The last of the registry first: they take longest.
BALANCERS = tuple(balancer.removesuffix("LossBalancer") for balancer in reversed(SETTINGS))


class Queue(NamedTuple):
    """Jobs in their order, of which ``at_once`` run at a time."""

    jobs: tuple[str, ...]
    at_once: int = 1


class Part(NamedTuple):
    """Queues that run side by side.

    ``until`` is the fraction of all minutes at which the part ends; who is done earlier leaves more to the next.
    """

    title: str
    until: float
    queues: tuple[Queue, ...]


def parts(device: str) -> list[Part]:
    """All parts. Frameworks run side by side, since bits do not depend on who else is there; what is timed runs alone."""
    lanes = {framework: [f"{framework}-{device}-{mode}" for mode in modes] for framework, modes in MODES.items()}
    one_by_one = [name.format(device=device) for name in ONE_BY_ONE]

    def jobs(lane: str) -> list[str]:
        return [f"{lane}.{balancer}" for balancer in BALANCERS] if lane in one_by_one else [lane]

    others = [tuple(job for lane in of_one[1:] for job in jobs(lane)) for of_one in lanes.values()]
    cores = os.cpu_count() or 1
    compilers, programs = max(1, cores // 2 - 1), max(1, cores // 4)  # Inductor starts helpers of its own, XLA has threads
    return [
        Part("versions and devices", 0.12, tuple(Queue((f"host-{name}",)) for name in MODES)),
        Part("golden vectors", 0.3, tuple(Queue((of_one[0],)) for of_one in lanes.values())),
        Part("golden vectors, other modes", 0.68, (Queue(others[0], compilers), Queue(others[1], programs))),
        Part("quotients", 0.78, tuple(Queue((f"quotients-{name}",)) for name in MODES)),
        Part("costs", 0.97, (Queue(("costs-kernels", "costs-eager", "costs-graph", "costs-compiled")),)),
    ]
