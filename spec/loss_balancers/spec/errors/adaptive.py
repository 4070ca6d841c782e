"""What is wrong with the settings of adaptive methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loss_balancers.spec.errors.words import shown


def total_weight_unknown(received: Any, known: Sequence[str]) -> ValueError:
    return ValueError(
        f'`total_weight` must be one of {list(known)}. Received {received!r}. Take "paper" for the method\'s own total, "K" for '
        'as much as there are losses, or "one". (docs/spec B1)'
    )


def not_by_name(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a mapping from the name of a loss to its value. Received {shown(received)} of type "
        f"{type(received).__name__}. Name the values, or leave it out."
    )


def not_positive(where: str, received: float, least: float) -> ValueError:
    return ValueError(f"`{where}` must be above {least!r}. Received {received!r}. Pass a greater number.")


def epoch_steps_value(received: Any, most: int) -> Exception:
    kind = ValueError if isinstance(received, int) and not isinstance(received, bool) else TypeError
    return kind(
        f"`epoch_steps` must be None or an int from 1 to {most}. Received {received!r}. Pass how many optimizer steps make an "
        "epoch, or None and call `end_epoch()`. (docs/spec D2)"
    )


def epochs_end_by_themselves(epoch_steps: int) -> RuntimeError:
    return RuntimeError(
        f"`end_epoch()` must not be called where `epoch_steps` is set. It is {epoch_steps}, so an epoch ends by itself after as "
        "many optimizer steps. Leave the call out, or build the balancer with `epoch_steps=None`. (docs/spec D2)"
    )


def variant_unknown(received: Any, known: Sequence[str]) -> ValueError:
    return ValueError(
        f"`variant` must be one of {list(known)}. Received {received!r}. Take one of the paper's three, or the ratio of losses. "
        "(docs/spec F3)"
    )


def order_value(received: Any, most: int, variant: str) -> Exception:
    kind = ValueError if isinstance(received, int) and not isinstance(received, bool) else TypeError
    return kind(
        f"`order` must be an int from 1 to {most} where `variant` is {variant!r}. Received {received!r}. Pass how many steps a "
        "slope spans. (docs/spec F3)"
    )


def form_unknown(received: Any, known: Sequence[str]) -> ValueError:
    return ValueError(
        f'`form` must be one of {list(known)}. Received {received!r}. Take "linear" for the losses themselves, or "log" for their '
        "logarithms. (docs/spec H1)"
    )


def losses_of_float64(names: Sequence[str]) -> TypeError:
    return TypeError(
        f"The losses of this balancer must not be float64: it takes exponentials or logarithms of them, which are those of float32 "
        f"alone. Received float64 for {list(names)}. Cast these losses to float32. (docs/spec G1)"
    )


def seed_value(received: Any, most: int) -> Exception:
    kind = ValueError if isinstance(received, int) and not isinstance(received, bool) else TypeError
    return kind(
        f"`seed` must be an int from 0 to {most}. Received {received!r}. Pass an int that is the same on all ranks "
        "and in both frameworks. (docs/spec N2)"
    )
