"""What is wrong with ``count`` or ``share``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loss_balancers.spec.errors.words import MOST_AMOUNT, shown


def count_and_share() -> TypeError:
    return TypeError(
        "A call takes `count` or `share`, not both. Received both. Pass `count` if each loss is a mean over so many items, `share` "
        "if it is a part of the step's mean. (docs/spec E9)"
    )


def amount_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number or a scalar array of them. Received {shown(received)} of type {type(received).__name__}. "
        "Pass a number, or a mapping from the name of each loss to its number. (docs/spec E9)"
    )


def amount_layout(where: str, layout: str) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number or a dense scalar array. Received an array in the layout {layout}. Make it dense "
        "first, by `to_dense()`. (docs/spec E9)"
    )


def amount_bounds(where: str, received: Any) -> ValueError:
    return ValueError(
        f"`{where}` must be finite and at least 0. Received {shown(received)}. Pass 0 for a loss that is absent from this "
        "batch. (docs/spec E9)"
    )


def amount_beyond_float32(where: str, received: Any) -> ValueError:
    return ValueError(
        f"`{where}` must be at most {MOST_AMOUNT!r}, the largest number of float32. Received {shown(received)}. Pass a smaller "
        "number. (docs/spec E9)"
    )


def amount_names(keyword: str, received: Sequence[str], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`{keyword}` must name the losses exactly. It names {list(received)}; the losses are {list(names)}. Name every loss, with "
        "0 for one that is absent, or pass one number for all. (docs/spec E9)"
    )


def state_device(state: object, losses: object) -> ValueError:
    return ValueError(
        f"The losses must be on the device of the balancer's state, {state}. Received losses on {losses}. Move the balancer there "
        "with `.to(device)`, or the losses."
    )


def amount_device(where: str, received: str, losses: str) -> ValueError:
    return ValueError(
        f"`{where}` must be a number, or an array on the CPU or the device of the losses. Received one on {received}; the losses "
        f"are on {losses}. Move it there first."
    )
