"""What is wrong with the operands of `functional` and of the portable operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loss_balancers.spec.errors.words import ACCEPTED, shown


def no_terms() -> ValueError:
    return ValueError("`terms` must hold at least one array. Received 0 arrays. Pass the losses to sum. (docs/spec E8)")


def weights_not_a_sequence(received: Any) -> TypeError:
    return TypeError(
        f"`weights` must be a sequence of numbers, or a vector. Received {shown(received)} of type {type(received).__name__}. "
        "Pass a weight per term. (docs/spec E8)"
    )


def terms_and_weights(terms: int, weights: int) -> ValueError:
    return ValueError(
        f"`terms` and `weights` must be equally many. Received {terms} terms and {weights} weights. Pass a weight per "
        "term. (docs/spec E8)"
    )


def dtype_not_supported(received: str) -> TypeError:
    return TypeError(
        f"`dtype` must be {ACCEPTED}. Received {received}. Leave it out for the common type of the terms. (docs/spec E8)"
    )


def float64_is_off() -> TypeError:
    return TypeError(
        "`dtype` is float64, which JAX has switched off. Switch it on with `jax.config.update('jax_enable_x64', True)`, or leave "
        "`dtype` out. (docs/spec E8)"
    )


def operand_dtypes(a: str, b: str) -> TypeError:
    return TypeError(
        f"The operands must be two arrays of float32, or two of float64. Received {a} and {b}. Convert them to one of the "
        "two. (docs/spec A10, A11)"
    )


def operand_shapes(a: Sequence[int], b: Sequence[int]) -> ValueError:
    return ValueError(
        f"The operands must have one shape. Received {tuple(a)} and {tuple(b)}. Broadcast them first. (docs/spec A10, A11)"
    )


def operand_devices(a: str, b: str) -> ValueError:
    return ValueError(f"The operands must be on one device. Received {a} and {b}. Move them to one device first.")


def float32_operand(received: str) -> TypeError:
    return TypeError(
        f"The operand must be an array of float32. Received {received}. Convert it to float32: in another format these functions "
        "would not be the same on every device. (docs/spec A13, A15)"
    )


def no_float64_on(device: str) -> TypeError:
    return TypeError(
        "The operand must be on a device that has float64, by way of which PyTorch computes these functions. Received one on "
        f"{device}. Move it to the CPU first. (docs/spec A13)"
    )


def softmax_shape(received: Sequence[int], most: int) -> ValueError:
    return ValueError(
        f"The operand must have a last axis of 1 to {most:,} numbers, along which the sum is taken. Received an array of shape "
        f"{tuple(received)}. Give it one with `x.reshape(-1)`, or split it. (docs/spec A15)"
    )


def softmax_derivative(detached: str) -> TypeError:
    return TypeError(
        "`softmax` and `logsumexp` give constants, which have no derivative. Received an operand by which one is taken. Pass "
        f"`{detached}`. (docs/spec A15)"
    )
