"""What a balancer gives on a lane: one call for both frameworks, and what both check and say alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loss_balancers.parity.compiled import NotCompiledError
from loss_balancers.parity.twin_cases import Losses, numpy_dtype
from loss_balancers.parity.twin_lanes import TwinLane, absent
from loss_balancers.spec import FORMAT_OF_DTYPE

#: What a lane gave for one case: "the aggregate" and "the gradient to NAME ..." to their arrays. State would be further entries.
Outcome = dict[str, np.ndarray]
AGGREGATE = "the aggregate"


def run_lane(lane: TwinLane, balancer: Callable[..., Any], cases: Sequence[Losses], cotangents: Sequence[float]) -> list[Outcome]:
    """What the balancer gives on the lane, case by case.

    Cases of one signature (names in order, formats, shapes) run together: one compilation serves them, and they are what is
    stacked for `vmap` and `scan`.
    """
    if lane.framework == "torch":
        from loss_balancers.parity.twins_torch import run
    else:
        from loss_balancers.parity.twins_jax import run

    groups: dict[Any, list[int]] = {}
    for index, losses in enumerate(cases):
        groups.setdefault(tuple((name, x.dtype.name, x.shape) for name, x in losses.items()), []).append(index)
    outcomes: dict[int, Outcome] = {}
    for indices in groups.values():
        try:
            results = run(balancer, lane, [cases[index] for index in indices], cotangents)
        except NotCompiledError as error:
            raise absent(lane, str(error)) from error
        except Exception as error:
            signature = ", ".join(f"{name}: {x.dtype.name}{list(x.shape) or ''}" for name, x in cases[indices[0]].items())
            error.add_note(f"In the lane {lane.name}, on losses {{{signature}}}, the first of them case {indices[0]}.")
            raise
        outcomes.update(zip(indices, results, strict=True))
    return [outcomes[index] for index in range(len(cases))]


def check_aggregate(lane: TwinLane, result: Any, array_type: type, dtype: str, losses: Losses) -> None:
    """Refuses what a balancer must not return.

    Raises:
        TypeError: The aggregate is no floating-point array of the framework.
        ValueError: Its shape is neither a scalar's nor that of a loss.
    """
    if not isinstance(result, array_type) or dtype not in FORMAT_OF_DTYPE:
        received = f"{type(result).__name__} of {dtype}" if dtype else type(result).__name__
        raise TypeError(
            f"The {lane.framework} balancer must return a floating-point array ({', '.join(FORMAT_OF_DTYPE)}). Received "
            f"{received}. Return the aggregate and nothing else."
        )
    shape = tuple(result.shape)
    allowed = dict.fromkeys([(), *(x.shape for x in losses.values())])
    if shape not in allowed:
        raise ValueError(
            f"The {lane.framework} balancer must return a scalar, or an array with the shape of a loss: one of "
            f"{', '.join(map(str, allowed))}. Received the shape {shape}. Reduce the aggregate."
        )


def gradient_name(name: str, cotangent: float) -> str:
    """What the gradient to a loss is called in a report."""
    return f"the gradient to {name} (cotangent {cotangent})"


def narrowed(wide: np.ndarray, dtype: str) -> np.ndarray:
    """What a graph handed on in a wide format, in its own; as it is where that does not hold it, which counts as a difference."""
    with np.errstate(all="ignore"):
        narrow = wide.astype(numpy_dtype(FORMAT_OF_DTYPE[dtype]))
    return narrow if np.array_equal(narrow.astype(wide.dtype), wide, equal_nan=True) else wide


def nudges_of(losses: Losses) -> Losses:
    """What to add to each loss in its wide format so that only the conversion to its own format takes it away again.

    A compiler that elides the conversion, and lets the balancer read more digits than the loss has, then shows.
    """
    nudges = {}
    for name, x in losses.items():
        wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        narrow = x.dtype.name in ("bfloat16", "float16")
        # 2^-14 of the loss is at most a quarter of the distance at which float16 rounds up, and less for bfloat16.
        nudges[name] = np.where(np.isfinite(wide) & narrow, wide * wide.dtype.type(2.0**-14), wide.dtype.type(0))
    return nudges
