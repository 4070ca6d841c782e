"""The checks of a call that need no framework."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.formats import MOST_CALLS


def check_mapping(loss: Any) -> None:
    """Refuses losses that are no mapping (spec E1).

    Raises:
        TypeError: ``loss`` is none.
    """
    if not isinstance(loss, Mapping):
        raise errors.not_a_mapping(type(loss).__name__)


def real_number(value: Any, where: str) -> float:
    """``value`` as a float.

    Raises:
        TypeError: it is no real number; a bool is none.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise errors.weight_type(where, value)
    try:
        return float(value)
    except OverflowError:  # an int beyond float64: out of every bound
        return math.inf if abs(value) == value else -math.inf


def finite_weights(weights: Any, terms: int) -> tuple[float, ...]:
    """The weights of ``functional.weighted_sum`` as floats (spec E8).

    Raises:
        TypeError: a weight is no real number.
        ValueError: there are no terms, not as many weights as terms, or a weight is not finite.
    """
    same_length(weights, range(terms))
    checked = tuple(real_number(weight, f"weights[{i}]") for i, weight in enumerate(weights))
    for i, weight in enumerate(checked):
        if not math.isfinite(weight):
            raise errors.weight_not_finite(f"weights[{i}]", weight)
    return checked


def same_length(weights: Any, terms: Sequence[Any]) -> Any:
    """A vector of weights as it is (spec E8).

    Raises:
        ValueError: there are no terms, or not as many weights as terms.
    """
    if len(terms) == 0:
        raise errors.no_terms()
    if len(weights) != len(terms):
        raise errors.terms_and_weights(len(terms), len(weights))
    return weights


def check_reduction_fn(fn: Any) -> None:
    """Refuses a student loss reduction that is neither callable nor None.

    Raises:
        TypeError: ``fn`` is neither.
    """
    if fn is not None and not callable(fn):
        raise errors.reduction_fn_type(fn)


def check_auto_step(auto_step: Any) -> None:
    """Refuses an ``auto_step`` that is neither None nor an int from 1 to what float32 can count.

    Raises:
        TypeError: It is not an int.
        ValueError: It is out of bounds.
    """
    if auto_step is not None and (not isinstance(auto_step, int) or isinstance(auto_step, bool) or not 1 <= auto_step < MOST_CALLS):
        raise errors.auto_step_value(auto_step, MOST_CALLS - 1)
