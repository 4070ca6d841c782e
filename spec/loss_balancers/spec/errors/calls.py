"""What is wrong with the losses of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loss_balancers.spec.errors.words import ACCEPTED, REDUCTION_HINT, STUDENT_LOSS_KEY, LossInfo


def not_a_mapping(received: str) -> TypeError:
    return TypeError(
        f"The losses must be a mapping from name to loss. Received {received}. Pass "
        '`{"student_loss": ..., "MSELoss_0": ...}`. (docs/spec E1)'
    )


def key_not_a_string(received: str) -> TypeError:
    return TypeError(
        f"The names of the losses must be strings. Received the key {received}. Name losses `ClassName_idx`. (docs/spec E2)"
    )


def no_kd_loss(received: Sequence[str]) -> ValueError:
    return ValueError(
        f"The losses must hold at least one KD loss. Received {list(received)}. Every key but `student_loss` is one: add "
        'it as, say, "MSELoss_0". (docs/spec E3)'
    )


def count_mismatch(weights: Sequence[float], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must hold one weight per KD loss. Received {len(weights)} weights {list(weights)} and {len(names)} "
        f"KD losses {list(names)}. Pass as many weights as there are losses, or name them. (docs/spec E7)"
    )


def names_mismatch(weights: Sequence[str], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must name the KD losses exactly. It names {list(weights)}; received the KD losses {list(names)}. "
        "Correct the names on one side. (docs/spec E7)"
    )


def ambiguous_order(names: Sequence[str]) -> ValueError:
    return ValueError(
        "A sequence `kd_loss_weight` needs KD losses whose names end in distinct `_{idx}`, or its order means nothing. "
        f"Received {list(names)}. Name the weights: pass a mapping from loss name to weight. (docs/spec W2)"
    )


def bad_losses(infos: Mapping[str, LossInfo]) -> Exception:
    """The first rule that these losses break: type, then shape, then device (spec E4 to E6)."""
    for name, info in infos.items():
        if info.layout:
            return TypeError(
                f"The loss {name!r} must be a dense array. Received {info.kind} in the layout {info.layout}. Reduce it to a dense "
                "array, or make it one: `loss.to_dense()` does so where it is sparse. (docs/spec E4)"
            )
        if not info.is_loss:
            absent = " For a loss that is absent from this batch, pass any value and `count={...}` with 0 for it."
            return TypeError(
                f"The loss {name!r} must be a floating-point array ({ACCEPTED}). Received {info.kind}. Pass the loss as the "
                f"framework computed it.{absent if info.kind == 'NoneType' else ''} (docs/spec E4)"
            )
    shapes = {name: info.shape for name, info in infos.items()}
    if len(set(shapes.values())) > 1:
        return ValueError(
            f"The losses must all have one shape. Received {shapes}. Reduce them alike."
            f"{f' {REDUCTION_HINT}' if _student_is_odd(shapes) else ''} (docs/spec E5)"
        )
    devices = {name: info.device for name, info in infos.items()}
    return ValueError(f"The losses must all be on one device. Received {devices}. Move them to one device first. (docs/spec E6)")


def _student_is_odd(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kd = {shape for name, shape in shapes.items() if name != STUDENT_LOSS_KEY}
    return STUDENT_LOSS_KEY in shapes and len(kd) == 1


def dropped_student_weight(weight: float, names: Sequence[str]) -> str:
    return (
        f"The student loss has weight {weight!r} but the losses hold no `student_loss`, only {', '.join(names)}: that weight is "
        "dropped, and the aggregate is the KD part alone. Pass the student loss, or weights that sum to 1. (docs/spec W7, S5)"
    )
