"""Runs a lane in a process of its own, for what must be set before a framework starts."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from ctypes import CDLL
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from loss_balancers.parity.golden.result import Result
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
    with ExitStack() as stack:
        yield from _process(environment, stack).submit(_run, run, groups).result()


@contextmanager
def one_process() -> Iterator[None]:
    """Within it, `in_own_process` starts one process for an environment, and not one a call: frameworks take seconds to load."""
    with ExitStack() as stack:
        _kept.append((stack, {}))
        try:
            yield
        finally:
            _kept.pop()


#: What the `one_process` that we are within, if any, has started: the innermost is last.
_kept: list[tuple[ExitStack, dict[frozenset[tuple[str, str]], ProcessPoolExecutor]]] = []


def where_it_runs(run: Callable[..., Any], read: Callable[..., Any], *arguments: Any) -> Any:
    """What ``read`` gives in the process in which a lane's ``run`` runs: in this one, or in that of an `in_own_process`.

    Args:
        run: A lane's `run`.
        read: A function that is picklable.
        arguments: Of ``read``.
    """
    if not (isinstance(run, partial) and run.func is in_own_process):
        return read(*arguments)
    environment, *_ = run.args
    with ExitStack() as stack:
        return _process(environment, stack).submit(read, *arguments).result()


def _process(environment: Mapping[str, str], stack: ExitStack) -> ProcessPoolExecutor:
    """A process with these variables, which ends with ``stack``, or with the `one_process` that we are within."""
    stack, started = _kept[-1] if _kept else (stack, {})
    key = frozenset(environment.items())
    if key not in started:
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_set, initargs=(dict(environment),))
        started[key] = stack.enter_context(pool)
    return started[key]


def _set(environment: dict[str, str]) -> None:
    begin()
    os.environ.update(environment)


def begin() -> None:
    """Makes a fresh process one that compiles, looks for garbage in `tidy` alone (a tenth of its time went there), and ends."""
    gc.disable()
    os.environ["TORCH_DYNAMO_RUN_GC_AFTER_COMPILE"] = "0"  # else Dynamo looks for garbage after each compilation all the same
    atexit.register(os._exit, 0)  # registered first, it is called last
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to all processes at once; a traceback of one is enough
    if (parent := parent_process()) is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def tidy() -> None:
    """Gives back the memory of what was compiled and is needed no more: else a process that `begin` began grows to gigabytes."""
    if not gc.isenabled():
        gc.collect()
        with suppress(OSError, AttributeError, TypeError):  # where there is glibc, whose arenas of compilers' threads keep all
            CDLL(None).malloc_trim(0)


def _end_with(parent: Any) -> None:
    """Ends this process as soon as its parent has ended, however it did: nobody else would."""
    parent.join()
    os._exit(1)


def _run(run: Callable[[Sequence[Group]], Iterable[list[Result]]], groups: Sequence[Group]) -> list[list[Result]]:
    results = list(run(groups))
    tidy()
    return results
