"""Every message of the library, worded once, so that both twins raise the same class with the same words.

Each function returns the exception (or, for the warning, its text); whoever finds the mistake raises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: The key of the student loss; every other key is a KD loss.
STUDENT_LOSS_KEY = "student_loss"

ACCEPTED = "bfloat16, float16, float32 or float64"
REDUCTION_HINT = "If the student loss is not reduced yet, give its reduction to `set_student_loss_reduction_fn`."


class LossInfo(NamedTuple):
    """What a message says of one loss: its ``kind`` (``float32``, or the type if it is no array), shape and device."""

    kind: str
    is_loss: bool
    shape: tuple[int, ...] = ()
    device: str = ""


# --- settings -------------------------------------------------------------------------------------------------------


def weight_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number (int, float or NumPy scalar). Received {received!r} of type "
        f"{type(received).__name__}. Pass a plain number."
    )


def kd_loss_weight_type(received: Any) -> TypeError:
    return TypeError(
        "`kd_loss_weight` must be a real number, a sequence of them (one weight per KD loss in canonical order) or a "
        f"mapping from loss name to weight. Received {received!r} of type {type(received).__name__}. For an array, pass "
        "`array.tolist()`."
    )


def weight_bounds(where: str, received: Any) -> ValueError:
    return ValueError(
        f"`{where}` must be finite and in [0, 1]. Received {received!r}. Divide the weights by their sum, or correct this one."
    )


def weight_not_finite(where: str, received: Any) -> ValueError:
    return ValueError(f"`{where}` must be finite. Received {received!r}. Pass a finite weight.")


def no_weights(received: Any) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must hold the weight of at least one KD loss. Received {received!r}. Pass a number, or a weight "
        "per KD loss."
    )


def weights_sum(received: Any, total: float) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must sum to at most 1. Received {received!r} (sum {total!r}). Lower the weights or divide them by "
        "their sum."
    )


def weights_sum_with_student(received: Any, total: float) -> ValueError:
    return ValueError(
        "`kd_loss_weight` must sum to 1 when it names `student_loss`. Received "
        f"{received!r} (sum {total!r}). Leave `student_loss` out (it then gets what is left of 1), or correct the weights."
    )


def weight_name_type(received: Any) -> TypeError:
    return TypeError(
        f"`kd_loss_weight` must have strings as keys, the names of the losses. Received the key {received!r}. Use the keys "
        "of the loss dict."
    )


def unknown_setting(balancer: str, received: Sequence[str], expected: Sequence[str]) -> ValueError:
    return ValueError(
        f"The settings of {balancer} must be a JSON object with exactly {list(expected)}. Received {list(received)}. Use what "
        "`to_json` wrote."
    )


def not_json(balancer: str, reason: str) -> ValueError:
    return ValueError(
        f"The settings of {balancer} must be a JSON object. Received text that is none: {reason}. Use what `to_json` wrote."
    )


def reduction_fn_type(received: Any) -> TypeError:
    return TypeError(
        "`student_loss_reduction_fn` must be callable, or None to remove it. Received "
        f"{received!r} of type {type(received).__name__}. Pass a function from the student loss to its reduction."
    )


# --- calls ----------------------------------------------------------------------------------------------------------


def not_a_mapping(received: str) -> TypeError:
    return TypeError(
        f'The losses must be a mapping from name to loss. Received {received}. Pass `{{"student_loss": ..., "MSELoss_0": ...}}`.'
    )


def key_not_a_string(received: str) -> TypeError:
    return TypeError(f"The names of the losses must be strings. Received the key {received}. Name losses `ClassName_idx`.")


def no_kd_loss(received: Sequence[str]) -> ValueError:
    return ValueError(
        f"The losses must hold at least one KD loss. Received {list(received)}. Every key but `student_loss` is one: add "
        'it as, say, "MSELoss_0".'
    )


def count_mismatch(weights: Sequence[float], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must hold one weight per KD loss. Received {len(weights)} weights {list(weights)} and {len(names)} "
        f"KD losses {list(names)}. Pass as many weights as there are losses, or name them."
    )


def names_mismatch(weights: Sequence[str], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must name the KD losses exactly. It names {list(weights)}; received the KD losses {list(names)}. "
        "Correct the names on one side."
    )


def ambiguous_order(names: Sequence[str]) -> ValueError:
    return ValueError(
        "A sequence `kd_loss_weight` needs KD losses whose names end in distinct `_{idx}`, or its order means nothing. "
        f"Received {list(names)}. Name the weights: pass a mapping from loss name to weight."
    )


def bad_losses(infos: Mapping[str, LossInfo]) -> Exception:
    """The first rule that these losses break: type, then shape, then device (spec E4 to E6)."""
    for name, info in infos.items():
        if not info.is_loss:
            return TypeError(
                f"The loss {name!r} must be a floating-point array ({ACCEPTED}). Received {info.kind}. Pass the loss as the "
                "framework computed it."
            )
    shapes = {name: info.shape for name, info in infos.items()}
    if len(set(shapes.values())) > 1:
        return ValueError(
            f"The losses must all have one shape. Received {shapes}. Reduce them alike."
            + (f" {REDUCTION_HINT}" if _student_is_odd(shapes) else "")
        )
    devices = {name: info.device for name, info in infos.items()}
    return ValueError(f"The losses must all be on one device. Received {devices}. Move them to one device first.")


def _student_is_odd(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kd = {shape for name, shape in shapes.items() if name != STUDENT_LOSS_KEY}
    return STUDENT_LOSS_KEY in shapes and len(kd) == 1


def dropped_student_weight(weight: float) -> str:
    return (
        f"The student loss has weight {weight!r} but the losses hold no `student_loss`: that weight is dropped, and the aggregate "
        "is the KD part alone. Pass the student loss, or weights that sum to 1."
    )


# --- functional -----------------------------------------------------------------------------------------------------


def no_terms() -> ValueError:
    return ValueError("`terms` must hold at least one array. Received none. Pass the losses to sum.")


def terms_and_weights(terms: int, weights: int) -> ValueError:
    return ValueError(
        f"`terms` and `weights` must be equally many. Received {terms} terms and {weights} weights. Pass a weight per term."
    )


def dtype_not_supported(received: str) -> TypeError:
    return TypeError(f"`dtype` must be {ACCEPTED}. Received {received}. Leave it out for the common type of the terms.")


def float64_is_off() -> TypeError:
    return TypeError(
        "`dtype` is float64, which JAX has switched off. Switch it on with `jax.config.update('jax_enable_x64', True)`, or leave "
        "`dtype` out."
    )


# --- packaging ------------------------------------------------------------------------------------------------------


def missing_framework(part: str, package: str, extra: str) -> str:
    return f"`loss_balancers.{part}` needs {package}, which is not installed. Run `pip install 'loss-balancers[{extra}]'`."
