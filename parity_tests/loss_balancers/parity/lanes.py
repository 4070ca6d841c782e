"""Lanes: framework x device x mode. Each runs golden vectors and hands back bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from loss_balancers.spec import Group

#: The columns of the matrix.
LABELS = ("bf16", "f16", "f32", "f64", "mixed")


class Result(NamedTuple):
    """What one vector gave: the bits of the aggregate and of the gradient to each loss, with their formats."""

    aggregate: tuple[str, int]
    gradients: dict[str, tuple[str, int]]


class Lane(NamedTuple):
    """One way to run a balancer.

    ``run`` takes groups of one label and yields, for each vector index, the results of all groups. ``why_absent`` says why the
    lane cannot be run on this host, None if it can; it may take a while to find out.
    """

    framework: str
    device: str
    mode: str
    run: Callable[[Sequence[Group]], Iterator[list[Result]]]
    why_absent: Callable[[], str | None] = lambda: None

    @property
    def name(self) -> str:
        """``framework-device-mode``."""
        return f"{self.framework}-{self.device}-{self.mode}"


def find_lanes() -> list[Lane]:
    """Every lane that this library knows, on every device that the frameworks report here."""
    return [*_of("torch"), *_of("jax")]


def _of(framework: str) -> list[Lane]:
    if importlib.util.find_spec(framework) is None:
        raise ImportError(f"The parity kit needs {framework}, which is not installed. Run `pip install 'loss-balancers[parity]'`.")
    if framework == "torch":
        from loss_balancers.parity.torch_lanes import torch_lanes

        return torch_lanes()
    from loss_balancers.parity.jax_lanes import jax_lanes

    return jax_lanes()
