"""What is wrong with a schedule, with weights that follow one, and with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loss_balancers.spec.errors.words import NUMBERS, UNBOUNDED, instead_of_a_number, shown


def setting_value(where: str, expected: str, received: Any) -> ValueError:
    return ValueError(f"The setting `{where}` must be {expected}. Received {shown(received)}. Use what `to_json` wrote.")


def not_a_schedule(received: Any) -> ValueError:
    return ValueError(
        f"A schedule must be a JSON object with `points` or `table`. Received {shown(received)}. Use what `Schedule.as_json` "
        "wrote. (docs/spec S1)"
    )


def schedule_table(received: int) -> ValueError:
    return ValueError(
        f"The table of a schedule must have 8 bytes a step. Received {received} bytes. Use what `Schedule.as_json` wrote."
    )


def schedule_shape(received: Any) -> ValueError:
    return ValueError(
        f'The shape of a schedule must be "linear" or "cosine". Received {shown(received)}. Pass one of the two. (docs/spec S1)'
    )


def schedule_values(received: Any) -> Exception:
    kind = ValueError if isinstance(received, Mapping) else TypeError
    return kind(
        f"A schedule must have at least one value, by step. Received {shown(received)}. Pass a mapping from step to value. "
        "(docs/spec S1)"
    )


def schedule_not_callable(received: Any) -> TypeError:
    return TypeError(
        f"`schedule` must be a function from step to number. Received {shown(received)} of type {type(received).__name__}. Pass a "
        "function, or a number where the weight is constant."
    )


def not_a_number_or_schedule(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number ({NUMBERS}) or a schedule. Received {shown(received)} of type "
        f"{type(received).__name__}. {instead_of_a_number(received) or 'Make a schedule of a function with `schedules.tabulate`.'} "
        "(docs/spec W5)"
    )


def schedule_step_type(received: Any) -> TypeError:
    return TypeError(
        f"A step must be an int. Received {shown(received)} of type {type(received).__name__}. Count optimizer steps from "
        "0. (docs/spec S1)"
    )


def schedule_step_bounds(received: int, most: int) -> ValueError:
    return ValueError(
        f"A step must be from 0 to {most}. Received {shown(received)}. Count optimizer steps from 0; the last value is "
        "held. (docs/spec S1)"
    )


def schedule_steps(received: int) -> ValueError:
    return ValueError(f"`steps` must be at least 1. Received {received!r}. Pass how many steps the table has.")


def schedule_order(before: int, after: int) -> ValueError:
    return ValueError(
        f"The points of a schedule must have rising steps. Received step {after} after step {before}. Count every step from "
        "the start of training, and let each part take at least one."
    )


def scheduled_weight_bounds(where: str, step: int, received: float, low: float, high: float) -> ValueError:
    what = f"Lower the weight, or {UNBOUNDED}" if received > high == 1.0 else "Correct the weight or its schedule"
    return ValueError(
        f"`{where}` must be in [{low!r}, {high!r}] at every step. At step {step} it is {received!r}, the first that is not. "
        f"{what}. (docs/spec S2)"
    )


def scheduled_sum(step: int, total: float) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must sum to at most 1 at every step. At step {step} it sums to {total!r}, the first that is over. "
        f"Lower the weights, or {UNBOUNDED}. (docs/spec S2)"
    )


def scheduled_sum_with_student(step: int, total: float) -> ValueError:
    return ValueError(
        f"`kd_loss_weight` must sum to 1 at every step when it names `student_loss`. At step {step} it sums to {total!r}, the "
        "first that does not. Leave `student_loss` out (it then gets what is left of 1), or correct the schedules. (docs/spec S4)"
    )


def weights_not_a_mapping(received: Any) -> TypeError:
    return TypeError(
        f"`weights` must be a mapping from the name of each loss to its weight. Received {received!r} of type "
        f"{type(received).__name__}. Name the weights."
    )


def student_among_weights() -> ValueError:
    return ValueError(
        "`weights` must name KD losses only. Received `student_loss` among them. Pass its weight as "
        "`student_weight`. (docs/spec S6)"
    )


def names_type(received: Any) -> TypeError:
    return TypeError(
        f"`names` must be a sequence of strings, the names of the losses. Received {received!r} of type "
        f'{type(received).__name__}. Pass, say, ("student_loss", "MSELoss_0"). (docs/spec S5)'
    )


def names_twice(received: Sequence[str]) -> ValueError:
    return ValueError(f"`names` must be distinct. Received {list(received)}. Name every loss once. (docs/spec S5)")


def names_unknown(where: str, unknown: Sequence[str], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`{where}` must name losses of `names`. Received {list(unknown)}; `names` are {list(names)}. Correct the names on one "
        "side."
    )


def target_unknown(received: Any, names: Sequence[str]) -> ValueError:
    return ValueError(
        f'`target` must be "one" or one of `names`. Received {received!r}; `names` are {list(names)}. Name the loss whose scale '
        "the others should have. (docs/spec M3)"
    )


def not_a_bool(where: str, received: Any) -> TypeError:
    return TypeError(f"`{where}` must be True or False. Received {received!r} of type {type(received).__name__}. Pass a bool.")


def out_of_bounds(where: str, received: float, low: float, high: float) -> ValueError:
    return ValueError(f"`{where}` must be in [{low!r}, {high!r}]. Received {received!r}. Pass a number in these bounds.")


def reference_name(received: Any) -> Exception:
    kind = ValueError if isinstance(received, str) else TypeError
    return kind(
        f"`reference` must be None or the name of a KD loss. Received {received!r}. Name the loss on the logits. (docs/spec L1)"
    )


def reference_count(reference: str | None, found: Sequence[str], names: Sequence[str]) -> ValueError:
    which = 'whose name holds "Logits"' if reference is None else f"named {reference!r}"
    return ValueError(
        f"There must be exactly one KD loss {which}, the reference. Found {list(found)} among {list(names)}. Pass `reference`, the "
        "name of the loss on the logits. (docs/spec L1)"
    )


def no_student_loss(names: Sequence[str]) -> ValueError:
    return ValueError(
        f"The losses must hold `student_loss` unless `skip_original_loss` is set. Received {list(names)}. Pass the student loss, "
        "or set `skip_original_loss`. (docs/spec L1)"
    )
