"""Planted faults, for the tests of lanes: aggregates, weights, state an ulp or two too large, or nothing that holds a compiler off.

In whatever process runs the lane, so that they reach those that run in one of their own.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax.numpy as jnp
import torch

import loss_balancers.jax
import loss_balancers.jax.rounding
import loss_balancers.torch
import loss_balancers.torch.rounding
from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.own_process import in_own_process
from loss_balancers.spec import Group

#: An ulp of 1 in float32.
EPS = 2.0**-23


class FaultyTorchState(loss_balancers.torch.EMANormalizedLossBalancer):
    def weights(self, loss: Any, **keywords: Any) -> Any:
        return {name: weight * (1 + EPS) for name, weight in super().weights(loss, **keywords).items()}

    def step(self) -> None:
        super().step()
        self.total.mul_(1 + EPS)


class FaultyJaxState(loss_balancers.jax.EMANormalizedLossBalancer):
    def weights(self, loss: Any, **keywords: Any) -> Any:
        return {name: weight * (1 + EPS) for name, weight in super().weights(loss, **keywords).items()}

    def step(self) -> None:
        super().step()
        self.total[...] *= 1 + EPS


class FaultyTorch(loss_balancers.torch.StaticLossBalancer):
    def forward(self, loss: Any, **keywords: Any) -> Any:
        aggregate = super().forward(loss, **keywords)
        return aggregate * (1 + torch.finfo(aggregate.dtype).eps)


class FaultyJax(loss_balancers.jax.StaticLossBalancer):
    def __call__(self, loss: Any, **keywords: Any) -> Any:
        aggregate = super().__call__(loss, **keywords)
        return aggregate * (1 + float(jnp.finfo(aggregate.dtype).eps))


def faulty(run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]) -> Iterable[list[Result]]:
    with (
        mock.patch.object(loss_balancers.torch, "StaticLossBalancer", FaultyTorch),
        mock.patch.object(loss_balancers.jax, "StaticLossBalancer", FaultyJax),
        mock.patch.object(loss_balancers.torch, "EMANormalizedLossBalancer", FaultyTorchState),
        mock.patch.object(loss_balancers.jax, "EMANormalizedLossBalancer", FaultyJaxState),
    ):
        yield from list(run(groups))


def with_fault(lane: Lane) -> Lane:
    """The lane, with the fault in the process that runs it."""
    if isinstance(lane.run, partial) and lane.run.func is in_own_process:
        environment, run = lane.run.args
        return lane._replace(run=partial(in_own_process, environment, partial(faulty, run)))
    return lane._replace(run=partial(faulty, lane.run))


def _unguarded(run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]) -> Iterable[list[Result]]:
    with (
        mock.patch.object(loss_balancers.torch.rounding, "_representable", lambda x, dtype: x.to(dtype)),
        mock.patch.object(loss_balancers.jax.rounding, "_flush", lambda x: x),
    ):
        return list(run(groups))


def without_guards(lane: Lane) -> Lane:
    """The lane, with balancers that let compilers keep excess precision (torch, A9) or fuse a multiply and an add (JAX, A4).

    In a process of its own, since JAX would keep what it compiled of them: the variable only tells it apart.
    """
    return lane._replace(run=partial(in_own_process, {"LOSS_BALANCERS_GUARDS": "off"}, partial(_unguarded, lane.run)))


def devices_seen(groups: Sequence[Group]) -> Iterable[Any]:
    """In place of a lane's run: how many devices JAX has in the process, and which it is."""
    import os

    import jax

    del groups
    return [(os.getpid(), jax.default_backend(), jax.local_device_count())]
