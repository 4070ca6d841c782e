"""Names of losses: which is the student's, and the one order that weights refer to."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from loss_balancers.spec import errors
from loss_balancers.spec.errors import STUDENT_LOSS_KEY as STUDENT_LOSS_KEY

#: The losses of every example (`Settings.examples`), in canonical order.
EXAMPLE_NAMES = ("LogitsKL_0", "MSE_1", STUDENT_LOSS_KEY)


def kd_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the distillation (KD) losses in canonical order (spec K2).

    Ascending ``idx`` if every name ends in ``_{decimal idx}`` and no idx comes twice, else code point by code point.
    """
    kd = [name for name in names if name != STUDENT_LOSS_KEY]
    if has_distinct_idx(tuple(kd)):
        return tuple(sorted(kd, key=_idx))
    return tuple(sorted(kd))


@lru_cache(maxsize=1024)
def canonical_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """All names in canonical order: the KD losses as :func:`kd_names` has them, the student loss last (spec K2).

    Raises:
        TypeError: A name is not a string.
        ValueError: There is no KD loss.
    """
    for name in names:
        if not isinstance(name, str):
            raise errors.key_not_a_string(repr(name))
    student = (STUDENT_LOSS_KEY,) if STUDENT_LOSS_KEY in names else ()
    if len(names) == len(student):
        raise errors.no_kd_loss(names)
    return kd_names(names) + student


def has_distinct_idx(kd: tuple[str, ...]) -> bool:
    """Whether every name ends in ``_{decimal idx}`` and no idx comes twice."""
    idx = [_idx(name) for name in kd]
    return None not in idx and len(set(idx)) == len(idx)


def _idx(name: str) -> Any:
    """The idx of ``Name_{idx}`` as a sortable key, None without one. By length, then digits: an int by its value."""
    _, underscore, digits = name.rpartition("_")
    if not (underscore and digits.isascii() and digits.isdigit()):
        return None
    digits = digits.lstrip("0")
    return (len(digits), digits)
