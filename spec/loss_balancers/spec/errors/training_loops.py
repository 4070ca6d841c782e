"""What is wrong with a balancer in somebody's training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loss_balancers.spec.errors.words import shown


def not_a_torch_balancer(received: Any) -> TypeError:
    return TypeError(
        f"`balancer` must be a balancer of `loss_balancers.torch`. Received {shown(received)} of type {type(received).__name__}. "
        "Pass an instance, such as `StaticLossBalancer(0.5)`."
    )


def modelopt_parameters(names: Sequence[str]) -> TypeError:
    return TypeError(
        f"`balancer` must have no parameters: ModelOpt refuses a balancer that is learned. Received one with {list(names)}. Take "
        "one that follows the losses, such as `EMANormalizedLossBalancer`."
    )


def tunix_lora_parameter(name: str) -> ValueError:
    return ValueError(
        f"A student with LoRA trains its LoRA parameters alone. Received a balancer with the parameter {name!r}, which nothing "
        "would train. Take a balancer that follows the losses, such as `EMANormalizedLossBalancer`."
    )


def callback_without_balancer(received: Any) -> TypeError:
    return TypeError(
        f"`BalancerCallback` must get a balancer. Received {shown(received)} of type {type(received).__name__}. Pass the balancer "
        "that `compute_loss` calls. If the Trainer itself has made a callback, to resume: set "
        "`restore_callback_states_from_checkpoint=False`. This callback is restored without it."
    )


def callbacks_of_one_name(name: str) -> ValueError:
    return ValueError(
        f"The callbacks of a Trainer must differ in their class names, by which checkpoints know them. Received two of {name!r}. "
        "Give each balancer a class of its own."
        f"\n    class Callback2({name}): pass  # for the second balancer"
    )


def checkpoint_without_state(step: int) -> str:
    return (
        f"The checkpoint of step {step} has no state of the balancer: it was written without this callback. The balancer goes on "
        "with the state that it has now. If it is part of the model, that is the state in the model's file; else it begins afresh."
    )
