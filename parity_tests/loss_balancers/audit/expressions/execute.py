"""Executes a DAG, of emitted code or of the spec, on many inputs at once, bit by bit.

Estimates of quotients are moved away from the nearest float on purpose: what is established holds for whatever a device's division
gives within `ERROR` units in the last place. So are conversions to integers whose rounding is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.audit.expressions import steps
from loss_balancers.audit.expressions.dag import Node, walk
from loss_balancers.audit.expressions.words import (
    ESTIMATES,
    EXACT,
    ROUNDED,
    WIDE_ESTIMATES,
    Words,
    away_from_zero,
    floats,
    flushed,
    to_int,
)

#: By how many units in the last place the estimates are moved. `portable.div` is made for a quotient that is 30 off.
ERROR = 8
NAN = np.uint32(0x7FC00000)


class Device(NamedTuple):
    """How a device may differ from another within what the audit takes for granted."""

    #: From the number of inputs to how far each estimate is off.
    error: Callable[[int], Any]
    flushes: bool


def _at_random(count: int) -> Any:
    return np.random.default_rng(0).integers(-ERROR, ERROR + 1, count)


DEVICES = (
    Device(lambda count: np.zeros(count, np.int64), flushes=False),
    Device(lambda count: np.full(count, ERROR), flushes=False),
    Device(lambda count: np.full(count, -ERROR), flushes=True),
    Device(_at_random, flushes=True),
    Device(_at_random, flushes=False),
)


def execute(roots: Sequence[Node], inputs: Sequence[Words], device: Device) -> dict[int, Words | None]:
    """The words of every node that the roots depend on, by its id. None for what cannot be executed."""
    error = device.error(len(inputs[0]))
    values: dict[int, Words | None] = {}
    with np.errstate(all="ignore"):
        for node in walk(list(roots)):
            values[id(node)] = _value(node, [values[id(arg)] for arg in node.args], inputs, error, device.flushes)
    return values


def _value(node: Node, args: list[Words | None], inputs: Sequence[Words], error: Any, flushes: bool) -> Words | None:
    if node.op == "input":
        return inputs[int(node.value)]
    if node.op == "const":
        return np.full(len(inputs[0]), int(node.value), np.uint32)
    if node.op == "wide":
        return np.full(len(inputs[0]), int(node.value), np.uint64)
    known = [arg for arg in args if arg is not None]
    if len(known) < len(args):
        return None
    if node.op == steps.STEP:
        return steps.STEPS[str(node.value)](*known)
    if node.op in EXACT:
        return EXACT[node.op](*known)
    if node.op == "to_int.either":
        return to_int(np.where(error > 0, away_from_zero(known[0]), known[0]))
    if node.op not in ROUNDED:
        return None
    if "double" in node.op:  # of which no device flushes the subnormal numbers
        return _moved_far(ROUNDED[node.op](*known), error) if node.op in WIDE_ESTIMATES else ROUNDED[node.op](*known)
    result = ROUNDED[node.op](*(map(flushed, known) if flushes else known))
    if node.op in ESTIMATES:
        result = _moved(result, error)
    return flushed(result) if flushes else result


def _moved_far(estimate: Any, error: Any) -> Any:
    """A float64 of which the upper 32 bits are estimated, as many eighths of the last of these off."""
    exponent = (estimate >> np.uint64(52)) & np.uint64(2047)
    ordinary = (exponent > 1) & (exponent < 2046)
    return np.where(ordinary, (estimate.view(np.int64) + (error << 29)).view(np.uint64), estimate)


def _moved(quotient: Words, error: Any) -> Words:
    """The quotient some units in the last place off, where it is neither zero nor infinite, nor would become so."""
    exponent = (quotient >> np.uint32(23)) & np.uint32(255)
    ordinary = (exponent > 1) & (exponent < 254)
    return np.where(ordinary, (quotient.astype(np.int64) + error).astype(np.uint32), quotient)


def defined(expected: Sequence[Node], inputs: Sequence[Words]) -> Any:
    """The draws on which the spec defines every step: not the greatest of numbers one of which is NaN."""
    values = execute(expected, inputs, DEVICES[0])
    defined = np.ones(len(inputs[0]), bool)
    for node in walk(list(expected)):
        value = values[id(node)]
        if node.op == steps.STEP and node.value == "greatest" and value is not None:
            defined &= ~np.isnan(floats(value))
    return defined


def fingerprints(roots: Sequence[Node], inputs: Sequence[Words]) -> dict[int, int | None]:
    """By the id of a node, a hash of its words on all inputs and devices; all NaNs are one. None for what cannot be executed."""
    runs = [execute(roots, inputs, device) for device in DEVICES]
    return {key: _hash([run[key] for run in runs]) for key in runs[0]}


def _hash(values: list[Words | None]) -> int | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return hash(b"".join(one_nan(value).tobytes() for value in known))


def one_nan(value: Words) -> Words:
    """The words with one NaN for all. A wide word stays: no result is one."""
    return value if value.dtype == np.uint64 else np.where(np.isnan(floats(value)), NAN, value)
