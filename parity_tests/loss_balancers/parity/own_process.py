"""Runs a lane in a process of its own, for what must be set before a framework starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from loss_balancers.parity.lanes import Result
from loss_balancers.spec import Group


def in_own_process(
    environment: Mapping[str, str], run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]
) -> Iterator[list[Result]]:
    """What ``run`` yields in a fresh process, in which these environment variables were set first.

    Args:
        environment: The variables, in addition to those of this process.
        run: A lane's `run`, which must be picklable.
        groups: What to run.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_set, initargs=(dict(environment),)) as pool:
        yield from pool.submit(_run, run, groups).result()


def _set(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _run(run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]) -> list[list[Result]]:
    return list(run(groups))
