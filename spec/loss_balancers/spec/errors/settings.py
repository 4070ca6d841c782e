"""What is wrong with a setting that every balancer may have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from loss_balancers.spec.errors.words import NUMBERS, UNBOUNDED, instead_of_a_number, shown


def weight_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number ({NUMBERS}). Received {shown(received)} of type {type(received).__name__}. "
        f"{instead_of_a_number(received) or 'Pass a plain number.'} (docs/spec W5)"
    )


def kd_loss_weight_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number ({NUMBERS}), a sequence of them (one weight per KD loss in canonical order) or a mapping "
        f"from loss name to weight. Received {shown(received)} of type {type(received).__name__}. "
        f"{instead_of_a_number(received) or 'Pass a number, a list or a dict; an array must have one dimension.'} (docs/spec W5)"
    )


def learnable(where: str, what: str = "requires grad") -> TypeError:
    return TypeError(
        f"`{where}` must be constant: no gradient reaches it. Received a tensor that {what}. Pass `tensor.detach()`. (docs/spec W5)"
    )


def number_on_a_device(where: str, device: str) -> TypeError:
    return TypeError(
        f"`{where}` must be a number on the host. Received one on {device}. Call `.item()` on it before training. (docs/spec W5)"
    )


def number_traced(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a number that is known now. Received one of type {type(received).__name__} that cannot be read, as in "
        "a function that a transform traces. Pass a number from outside of that function. (docs/spec W5)"
    )


def number_beyond_float64(where: str, received: Any) -> ValueError:
    return ValueError(
        f"`{where}` must be a number that float64 holds, at most {sys.float_info.max!r} in magnitude. Received {shown(received)}. "
        "Pass a smaller number. (docs/spec W5)"
    )


def weight_bounds(where: str, received: Any, above: bool) -> ValueError:
    what = f"Lower the weight, or {UNBOUNDED}." if above else "Correct this weight."
    return ValueError(f"`{where}` must be finite and in [0, 1]. Received {received!r}. {what} (docs/spec W5)")


def weight_not_finite(where: str, received: Any) -> ValueError:
    return ValueError(f"`{where}` must be finite. Received {received!r}. Pass a finite weight. (docs/spec W5)")


def no_weights(received: Any) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must hold the weight of at least one KD loss. Received {received!r}. Pass a number, or a weight "
        "per KD loss."
    )


def weights_sum(received: Any, total: float) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must sum to at most 1. Received {received!r} (sum {total!r}). Lower the weights, divide them by "
        f"their sum, or {UNBOUNDED}. (docs/spec W5)"
    )


def weights_sum_with_student(received: Any, total: float) -> ValueError:
    return ValueError(
        "`kd_loss_weight` must sum to 1 when it names `student_loss`. Received "
        f"{received!r} (sum {total!r}). Leave `student_loss` out (it then gets what is left of 1), or correct the "
        "weights. (docs/spec W3)"
    )


def weight_name_type(received: Any) -> TypeError:
    return TypeError(
        f"`kd_loss_weight` must have strings as keys, the names of the losses. Received the key {received!r}. Use the keys "
        "of the loss dict. (docs/spec W3)"
    )


def unknown_setting(balancer: str, received: Sequence[str], expected: Sequence[str]) -> ValueError:
    return ValueError(
        f"The settings of {balancer} must be a JSON object with exactly {list(expected)}. Received {list(received)}. Use what "
        "`to_json` wrote. (docs/spec W6)"
    )


def not_json(balancer: str, reason: str) -> ValueError:
    return ValueError(
        f"The settings of {balancer} must be a JSON object. Received text that is not valid JSON: {reason}. Use what `to_json` "
        "wrote. (docs/spec W6)"
    )


def reduction_fn_type(received: Any) -> TypeError:
    return TypeError(
        "`student_loss_reduction_fn` must be callable, or None to remove it. Received "
        f"{received!r} of type {type(received).__name__}. Pass a function from the student loss to its reduction. (docs/spec K4)"
    )
