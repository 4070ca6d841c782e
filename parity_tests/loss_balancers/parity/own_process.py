"""Runs a lane in a process of its own, for what must be set before a framework starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

from loss_balancers.parity.lanes import Result
from loss_balancers.spec import Group


def in_own_process(
    environment: Mapping[str, str], run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]
) -> Iterator[list[Result]]:
    """What ``run`` yields in a process in which these environment variables were set before anything else.

    One process for all runs with the same variables: to start one takes seconds.

    Args:
        environment: The variables, in addition to those of this process.
        run: A lane's `run`, which must be picklable.
        groups: What to run.
    """
    yield from _process(tuple(environment.items())).submit(_run, run, groups).result()


@cache
def _process(environment: tuple[tuple[str, str], ...]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_set, initargs=(dict(environment),))


def _set(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _run(run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]) -> list[list[Result]]:
    return list(run(groups))
