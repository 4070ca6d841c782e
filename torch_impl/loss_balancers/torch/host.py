"""Values that the host works out, at no cost to a training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from itertools import groupby
from typing import TypeVar, TypeVarTuple

from torch.compiler import is_dynamo_compiling

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


def traced_as_constant(fn: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """`torch.compiler.assume_constant_result` without loading Dynamo, which takes a second at import, in vain in eager code."""
    fn._dynamo_marked_constant = True  # type: ignore[reportFunctionMemberAccess]
    return fn


def host_constant(fn: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """Works ``fn`` out once for each set of (hashable) arguments; under `torch.compile` the result is a constant of the graph.

    Dynamo would trace through an `lru_cache`, with a warning, and refuses much of the host's code.
    """
    cached = lru_cache(maxsize=1024)(fn)

    @traced_as_constant
    def traced(*args: *Ts) -> R | None:
        try:
            return cached(*args)
        except (TypeError, ValueError):
            return None

    @wraps(fn)
    def call(*args: *Ts) -> R:
        if not is_dynamo_compiling():
            return cached(*args)
        result = traced(*args)
        if result is None:
            return fn(*args)  # raises, where Dynamo can see it
        return result

    return call


@host_constant
def number(text: str) -> float:
    """The float that `float.hex` wrote, as a constant of the graph.

    If a float attribute differs between two modules, Dynamo makes it a symbol, with which host code cannot calculate. Text stays.
    """
    return float.fromhex(text)


@host_constant
def numbers(text: str) -> tuple[float, ...]:
    """`number` of many, with spaces between them."""
    return tuple(map(float.fromhex, text.split()))


@host_constant
def runs(text: str) -> tuple[tuple[float, int], ...]:
    """The same numbers, and how often each stands in succession."""
    return tuple((number, len(list(same))) for number, same in groupby(map(float.fromhex, text.split())))


def as_text(values: Iterable[float]) -> str:
    """The text that these functions read."""
    return " ".join(value.hex() for value in values)


@traced_as_constant
def warn_while_tracing(message: str) -> None:
    """A warning that Dynamo gives while it traces, and that leaves nothing in the graph."""
    warnings.warn(message, UserWarning, stacklevel=2)
