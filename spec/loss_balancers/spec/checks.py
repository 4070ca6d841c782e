"""The checks of a call that need no framework."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.formats import MOST_CALLS

#: Checks of frameworks; `loss_balancers.torch` adds its own. Each takes an array and its name, and raises `errors.learnable` if a
#: derivative is to reach the array although no attribute of the array says so.
derivative_checks: list[Callable[[Any, str], None]] = []


def check_mapping(loss: Any) -> None:
    """Raises unless the losses are a mapping (spec E1).

    Raises:
        TypeError: ``loss`` is not a mapping.
    """
    if not isinstance(loss, Mapping):
        raise errors.not_a_mapping(type(loss).__name__)


def real_number(value: Any, where: str, wrong: Callable[[str, Any], TypeError] = errors.weight_type) -> float:
    """``value`` as a float: a Python number, or a scalar of NumPy, PyTorch or JAX on the host.

    Args:
        value: What was given.
        where: Its name in an error.
        wrong: Words the error for what is not a real number.

    Raises:
        TypeError: It is not a real number (a bool is not), a derivative is to reach it, it is not on the host, or it is traced.
        ValueError: It is finite, and float64 does not hold it.
    """
    number = value
    if shape_of(value) == ():
        device = getattr(value, "device", None)
        # The kind of a device, as PyTorch and JAX name it. A value without either attribute is not on an accelerator.
        if getattr(device, "type", getattr(device, "platform", "cpu")) != "cpu":
            raise errors.number_on_a_device(where, str(device))
        number = element(value, where, wrong)
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        raise wrong(where, value)
    try:
        held = float(number)
    except OverflowError:  # an int, or a fraction of ints
        raise errors.number_beyond_float64(where, value) from None
    if math.isinf(held) and held != number:  # a longdouble
        raise errors.number_beyond_float64(where, value)
    return held


def shape_of(value: Any) -> Any:
    """The shape of an array; None for what has no shape."""
    # PyTorch raises for the shape of a nested tensor.
    return None if getattr(value, "is_nested", False) else getattr(value, "shape", None)


def is_time(value: Any) -> bool:
    """Whether this is a time or a duration of NumPy: it calls a duration an integer, and makes an int of many a time."""
    return isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "mM"


def element(array: Any, where: str, wrong: Callable[[str, Any], TypeError] = errors.weight_type) -> Any:
    """The element of an array of one, as Python has it.

    Args:
        array: What was given.
        where: Its name in an error.
        wrong: Words the error for what is not a real number.

    Raises:
        TypeError: It is a time, a derivative is to reach it, or it is traced.
    """
    if is_time(array):
        raise wrong(where, array)
    check_constant(array, where)
    # An array without a device is one that JAX traces. Under `grad` it has a value, but to read it would lose the gradient.
    if not isinstance(array, (np.ndarray, np.generic)) and not hasattr(array, "device"):
        raise errors.number_traced(where, array)
    try:
        return array.item()
    except Exception:  # each framework, and each of its transforms, has an error of its own
        raise errors.number_traced(where, array) from None


def elements(given: Any) -> Sequence[Any] | None:
    """The elements of a sequence, or of an array of one dimension; None if ``given`` is neither. A string does not count as one."""
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)):
        return given
    return list(given) if len(shape_of(given) or ()) == 1 else None


def finite_weights(weights: Any, terms: int) -> tuple[float, ...]:
    """The weights of ``functional.weighted_sum`` as floats (spec E8).

    Raises:
        TypeError: ``weights`` is not a sequence, or a weight is not a real number.
        ValueError: there are no terms, the number of weights is not that of the terms, or a weight is not finite.
    """
    _check_length(weights, terms)
    checked = tuple(real_number(weight, f"weights[{i}]") for i, weight in enumerate(weights))
    for i, weight in enumerate(checked):
        if not math.isfinite(weight):
            raise errors.weight_not_finite(f"weights[{i}]", weight)
    return checked


def constant_vector(weights: Any, terms: int) -> Any:
    """A vector of weights on the device as it is; its values are not read (spec E8).

    Raises:
        TypeError: a derivative is to reach it.
        ValueError: there are no terms, or the number of weights is not that of the terms.
    """
    _check_length(weights, terms)
    check_constant(weights, "weights")
    return weights


def check_constant(array: Any, where: str) -> None:
    """Refuses an array that a derivative is to reach (spec E8).

    Raises:
        TypeError: It requires grad, or a transform differentiates by it.
    """
    if getattr(array, "requires_grad", False):
        raise errors.learnable(where)
    for check in derivative_checks:
        check(array, where)


def _check_length(weights: Any, terms: int) -> None:
    try:
        count = len(weights)
    except TypeError:
        raise errors.weights_not_a_sequence(weights) from None
    if terms == 0:
        raise errors.no_terms()
    if count != terms:
        raise errors.terms_and_weights(terms, count)


def check_reduction_fn(fn: Any) -> None:
    """Raises unless a student loss reduction is callable or None.

    Raises:
        TypeError: ``fn`` is neither.
    """
    if fn is not None and not callable(fn):
        raise errors.reduction_fn_type(fn)


def check_auto_step(auto_step: Any) -> None:
    """Raises unless ``auto_step`` is None or an int, from 1 to the largest count that float32 holds.

    Raises:
        TypeError: It is not an int.
        ValueError: It is out of bounds.
    """
    if auto_step is not None and (not isinstance(auto_step, int) or isinstance(auto_step, bool) or not 1 <= auto_step < MOST_CALLS):
        raise errors.auto_step_value(auto_step, MOST_CALLS - 1)
