"""What `count=` and `share=` say of the losses of a call: how much of the data each stands for (spec T3)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.spec import errors
from loss_balancers.spec.checks import check_constant, is_time, shape_of


class Amounts(NamedTuple):
    """How much each loss of a call stands for, in canonical order.

    ``shares`` tells the two keywords apart. With ``count=`` a value is the number of items that the loss is a mean of; with
    ``share=`` it is the part of the step's mean that the loss is. A value is a float if it was given on the host, else the
    framework's array as it came.
    """

    values: tuple[Any, ...]
    shares: bool


def checked_amounts(names: Sequence[str], count: Any, share: Any) -> Amounts | None:
    """The amounts of a call's losses; None if neither keyword was given.

    Args:
        names: The names of the losses in canonical order.
        count: What was given as ``count=``: None, a number or an array, or a mapping from name to number or array.
        share: What was given as ``share=``, in the same forms.

    Raises:
        TypeError: Both were given, or a value is neither a number nor an array, or a derivative is to reach it.
        ValueError: A mapping names other losses, or a number on the host is negative or not finite.
    """
    if count is None and share is None:
        return None
    if count is not None and share is not None:
        raise errors.count_and_share()
    keyword, given = ("share", share) if count is None else ("count", count)
    if not isinstance(given, Mapping):
        return Amounts((_checked(given, keyword),) * len(names), keyword == "share")
    if set(given) != set(names):
        raise errors.amount_names(keyword, list(given), list(names))
    return Amounts(tuple([_checked(given[name], f"{keyword}[{name!r}]") for name in names]), keyword == "share")


def _checked(value: Any, where: str) -> Any:
    if type(value) is not int and type(value) is not float:  # those first: Dynamo can trace no more of a number that changes
        if is_time(value):
            raise errors.amount_type(where, value)
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            if shape_of(value) == ():
                check_constant(value, where)
                return value  # an array of the framework: the twin looks at its dtype and device
            raise errors.amount_type(where, value)
    if not 0 <= value <= errors.MOST_AMOUNT:  # type: ignore[reportOperatorIssue]
        beyond = errors.MOST_AMOUNT < value < math.inf  # type: ignore[reportOperatorIssue]
        raise (errors.amount_beyond_float32 if beyond else errors.amount_bounds)(where, value)
    return float(value)
