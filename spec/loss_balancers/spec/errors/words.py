"""Words that many messages share, and how a value is shown in one."""

from __future__ import annotations

from typing import Any, NamedTuple

#: The key of the student loss; every other key is a KD loss.
STUDENT_LOSS_KEY = "student_loss"

#: A message shows only the beginning of a value that is longer than this, such as a table of a million steps.
_LONGEST = 500

#: The largest float32: amounts are float32 numbers.
MOST_AMOUNT = (2.0 - 2.0**-23) * 2.0**127

ACCEPTED = "bfloat16, float16, float32 or float64"
NUMBERS = "int, float, or a scalar of NumPy, PyTorch or JAX on the host"
UNBOUNDED = "use `WeightedSumLossBalancer`, which takes weights above 1, of any sum"
REDUCTION_HINT = "If the student loss is not reduced yet, give its reduction to `set_student_loss_reduction_fn`."


class LossInfo(NamedTuple):
    """What a message says about one loss: its ``kind`` (the dtype, or the type if it is not an array), shape and device.

    ``layout`` is how an array lies that is not dense, such as "sparse_coo"; it is empty for a dense one.
    """

    kind: str
    is_loss: bool
    shape: tuple[int, ...] = ()
    device: str = ""
    layout: str = ""


def shown(value: Any) -> str:
    """``value`` for a message, in bounded length."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints, or what holds one
        if isinstance(value, int):
            return f"an int of {abs(value).bit_length()} bits"
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def kind_of(value: Any) -> str:
    """What ``value`` is, for a message about what is not an array of the framework: its type, and its dtype or whose it is."""
    name, dtype = type(value).__name__, getattr(value, "dtype", None)
    if dtype is not None and str(dtype) == name:  # a NumPy scalar
        return f"{type(value).__module__}.{name}"
    return name if dtype is None else f"{name} of {dtype}"


def instead_of_a_number(received: Any) -> str:
    """What to do about text, or a schedule, in place of a number; empty if ``received`` is neither."""
    if type(received).__name__ == "Schedule":
        return "Schedules are weights of `ScheduledLossBalancer`, and of other balancers that count steps."
    if not isinstance(received, str):
        return ""
    try:
        float(received)
    except ValueError:
        return "Pass a number, not text."
    return f"Pass `float({str(received)!r})`, a number and not text. YAML reads 1e-3 as text and 1.0e-3 as a number."
