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
        f"The losses of this balancer must not be float64: it computes with exponentials or logarithms, which are those of float32 "
        f"alone. Received float64 for {list(names)}. Cast these losses to float32. (docs/spec G1)"
    )


def seed_value(received: Any, most: int) -> Exception:
    kind = ValueError if isinstance(received, int) and not isinstance(received, bool) else TypeError
    return kind(
        f"`seed` must be an int from 0 to {most}. Received {received!r}. Pass an int that is the same on all ranks "
        "and in both frameworks. (docs/spec N2)"
    )


def uncertainty_form_unknown(received: Any, known: Sequence[str]) -> ValueError:
    return ValueError(
        f'`form` must be one of {list(known)}. Received {received!r}. Take "kendall" for the logarithm of a variance, or '
        '"regularized" for a deviation whose penalty is never negative. (docs/spec U1)'
    )


def never_learned(parameter: str) -> str:
    return (
        f"`{parameter}` of this balancer did not change in a training step: no optimizer trains it, or the step was skipped, or "
        "its learning rate was 0. Give it to your optimizer, without weight decay; `is_optimized_by(optimizer)` tells. Call "
        "`discard()` for a step that is not taken. (docs/spec P5)"
    )


def never_updated(forwards: int) -> str:
    return (
        f"`update()` was not called in {forwards} training forwards: the balancer still has the weights it began with. Evaluate "
        "the student again after the optimizer's step, on the same batch, and give the losses to `update()` before `step()`. "
        "(docs/spec Q4)"
        "\n    optimizer.step()"
        "\n    balancer.update(losses_of(student, batch))  # add this line"
        "\n    balancer.step()"
    )


def parameter_converted(name: str, expected: object, received: object) -> RuntimeError:
    return RuntimeError(
        f"The parameter of a balancer must keep its dtype. `{name}` must be {expected}; it was converted to {received}. With "
        "FSDP's mixed precision, name it in `ignored_params`, or the balancer in `ignored_modules`. (docs/spec P1)"
    )


def parameter_sharded(name: str) -> RuntimeError:
    return RuntimeError(
        f"`{name}` must be whole where a balancer uses it. It is sharded. With FSDP2, name it in `ignored_params`, or use the "
        "balancer within the forward of the model. (docs/spec P1)"
    )


def optimizer_unknown(received: Any, expected: str) -> TypeError:
    return TypeError(
        f"`optimizer` must be {expected}. Received {shown(received)} of type {type(received).__name__}. Pass the optimizer that "
        "trains the student. (docs/spec P5)"
    )


def optimizer_keeps_nothing(parameter: str) -> ValueError:
    return ValueError(
        f"`optimizer` must keep something for each parameter, such as moments. Received one that keeps nothing, so that nobody can "
        f"tell whether it trains `{parameter}`. Compare the parameter before and after a step. (docs/spec P5)"
    )
