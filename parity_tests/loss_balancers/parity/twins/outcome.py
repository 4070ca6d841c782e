"""What a balancer gives on a lane: what both frameworks check and say alike."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.parity.bits import as_numpy
from loss_balancers.parity.twins.cases import Losses, numpy_dtype
from loss_balancers.parity.twins.lanes import TwinLane
from loss_balancers.spec import FORMAT_OF_DTYPE

#: What a lane gave for one step: "the aggregate", "the gradient to NAME ..." and so on, to their arrays.
Outcome = dict[str, np.ndarray]
#: How the name of a second derivative begins, which not every lane can give.
SECOND = "the second derivative "


class Run(NamedTuple):
    """A balancer begins afresh and is given losses, step after step. A case is a run of one step that does not commit."""

    title: str
    steps: list[Losses]
    commits: bool


class Plan(NamedTuple):
    """What is done in a step and compared after it.

    Attributes:
        cotangents: A forward for each, sent back through it.
        weights: Whether both twins have `weights(losses)`.
        commit: Whether both have `step()`.
        exported: Whether both have `export_state()`.
        entries: If not, the names that both have in their state.
        second: Whether the gradients are differentiated too.
    """

    cotangents: tuple[float, ...]
    weights: bool
    commit: bool
    exported: bool
    entries: tuple[str, ...]
    second: bool


def has_method(balancer: Any, name: str, *arguments: Any) -> bool:
    """Whether it can be called with these arguments: an attribute of that name may be something else."""
    method = getattr(balancer, name, None)
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


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


def is_number(weight: Any) -> bool:
    """Whether a weight is one of Python's numbers, and no array or scalar with a format of its own."""
    return isinstance(weight, numbers.Real) and not isinstance(weight, np.generic)


def checked_weights(framework: str, weights: Any) -> dict[str, Any]:
    """Weights by name: numbers, or arrays of the framework.

    Raises:
        TypeError: They are something else.
    """
    if not isinstance(weights, Mapping) or not all(is_number(x) or hasattr(x, "dtype") for x in weights.values()):
        raise TypeError(
            f"`weights` of the {framework} balancer must return a mapping from name to number or array. Received {weights!r}. "
            "Return a dict, or give the method another name."
        )
    return dict(weights)


def of_forward(
    index: int, cotangent: float, aggregate: np.ndarray, gradients: Mapping[str, np.ndarray], second: Mapping[str, Any]
) -> Outcome:
    """What one forward gave: ``second`` is from the name of a loss to the derivatives of its gradient, by what they are to."""
    again = "" if index == 0 else f" of forward {index + 1}"
    outcome: Outcome = {f"the aggregate{again}": aggregate}
    outcome |= {f"the gradient to {name} (cotangent {cotangent})": gradient for name, gradient in gradients.items()}
    for name, row in second.items():
        whats = {to: f"{SECOND}to {name} and {to} (cotangent {cotangent})" for to in row}
        outcome |= {what: as_numpy(row[to]) for to, what in whats.items()}
    return outcome


def of_weights(weights: Mapping[str, Any]) -> Outcome:
    """Weights as they are compared: a plain number in float64."""
    return {f"the weight of {name}": np.asarray(x, np.float64) if is_number(x) else as_numpy(x) for name, x in weights.items()}


def of_state(state: Mapping[str, Any]) -> Outcome:
    """The entries of a state after a commit."""
    return {f"the state's {name}": np.asarray(as_numpy(x)) for name, x in sorted(state.items())}


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
