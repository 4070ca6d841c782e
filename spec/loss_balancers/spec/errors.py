"""Every message of the library, worded once, so that both twins raise the same class with the same words.

Each function returns the exception (or, for a warning, its text). The code that finds the mistake raises it. A message says what
was expected, what came and what to do, and names the clause that it rests on, if there is one.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
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
    """What ``value`` is, for a message about what is not an array of the framework: its type, and its dtype if that says more."""
    name, dtype = type(value).__name__, getattr(value, "dtype", None)
    return name if dtype is None or str(dtype) == name else f"{name} of {dtype}"


# --- settings -------------------------------------------------------------------------------------------------------


def weight_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number ({NUMBERS}). Received {shown(received)} of type {type(received).__name__}. "
        f"{_of_text(received) or 'Pass a plain number.'} (docs/spec W5)"
    )


def kd_loss_weight_type(where: str, received: Any) -> TypeError:
    return TypeError(
        f"`{where}` must be a real number ({NUMBERS}), a sequence of them (one weight per KD loss in canonical order) or a mapping "
        f"from loss name to weight. Received {shown(received)} of type {type(received).__name__}. "
        f"{_of_text(received) or 'Pass a number, a list or a dict; an array must have one dimension.'} (docs/spec W5)"
    )


def _of_text(received: Any) -> str:
    """What to do about text in place of a number; empty if ``received`` is not text."""
    if not isinstance(received, str):
        return ""
    try:
        float(received)
    except ValueError:
        return "Pass a number, not text."
    return f"Pass `float({str(received)!r})`, a number and not text. YAML reads 1e-3 as text and 1.0e-3 as a number."


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
    what = f"Divide the weights by their sum, or {UNBOUNDED}." if above else "Correct this weight."
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


# --- schedules ------------------------------------------------------------------------------------------------------


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
        f"{type(received).__name__}. {_of_text(received) or 'Make a schedule of a function with `schedules.tabulate`.'} "
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
    what = f"Lower the weight, or {UNBOUNDED}" if received > high == 1.0 else "Correct the schedule"
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


# --- state ----------------------------------------------------------------------------------------------------------


def fixed_names(names: Sequence[str], received: Sequence[str]) -> ValueError:
    return ValueError(
        f"The losses must be those that the balancer was built for. It has {list(names)}; received {list(received)}. Correct the "
        f"names on one side. (docs/spec S5){_absent_from_a_batch(names, received)}"
    )


def _absent_from_a_batch(names: Sequence[str], received: Sequence[str]) -> str:
    """The probable cause in code, and what to write instead; empty if no loss is missing."""
    missing = [name for name in names if name not in received]
    if not missing:
        return ""
    return (
        f"\n    balancer({{...}})  # probably: this batch has no {missing[0]!r}"
        f"\n    balancer({{..., {missing[0]!r}: any_value}}, count={{..., {missing[0]!r}: 0}})  # instead"
    )


def not_a_scalar(shapes: Mapping[str, tuple[int, ...]]) -> ValueError:
    return ValueError(f"The losses of this balancer must be scalars, of shape (). Received {dict(shapes)}. Reduce them first.")


def auto_step_value(received: Any, most: int) -> Exception:
    kind = ValueError if isinstance(received, int) and not isinstance(received, bool) else TypeError
    return kind(
        f"`auto_step` must be None or an int from 1 to {most}. Received {shown(received)}. Pass how many training forwards make an "
        "optimizer step, or None and call `step()`."
    )


def never_stepped(forwards: int) -> str:
    return (
        f"`step()` was not called in {forwards} training forwards: the balancer still has the weights it began with. Call "
        "`step()` once per optimizer step, or pass `auto_step`. (docs/spec T4)"
        "\n    loss = balancer(losses)  # probably: nothing commits what this observed"
        "\n    balancer.step()  # after the optimizer's update: add this line"
    )


def not_a_state(received: str) -> TypeError:
    return TypeError(
        "A state must be a mapping with exactly `schema`, `balancer`, `settings`, `names` and `state`. Received "
        f"{received}. Pass what `export_state()` returned. (docs/spec T6)"
    )


def state_mismatch(what: str, mine: Any, received: Any) -> ValueError:
    return ValueError(
        f"The state has another {what} than this balancer. Expected {shown(mine)}; received {shown(received)}. Build the balancer "
        "as the one that was exported, or load the state that belongs to this one. (docs/spec T6)"
    )


def state_settings(mine: Mapping[str, Any], received: Any) -> ValueError:
    return ValueError(
        f"The state must have the settings of this balancer. Expected {shown(mine)}; received {shown(received)}. Build the "
        "balancer as the one that was exported, or pass `renamed={}` if it is to go on with other settings. (docs/spec T6)"
    )


def state_names(mine: Sequence[str], received: Any) -> ValueError:
    return ValueError(
        f"The state must be of the same losses. This balancer has {list(mine)}; the state is of {shown(received)}. Pass "
        "`renamed=`, which says for each name of this balancer its name in the state, or None for a loss that starts "
        "afresh. (docs/spec T6)"
    )


def names_of_state(received: Any) -> ValueError:
    return ValueError(
        f"The names in a state must be a list of distinct strings. Received {shown(received)}. Pass what `export_state()` "
        "returned. (docs/spec T6)"
    )


def renamed_type(received: Any) -> TypeError:
    return TypeError(
        "`renamed` must be None or a mapping from a name of this balancer to its name in the state, or to None. Received "
        f"{shown(received)}. Pass a mapping of strings. (docs/spec T7)"
    )


def renamed_unknown(unknown: Sequence[str], names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`renamed` must have names of this balancer as keys. Received {list(unknown)}; this balancer has {list(names)}. Correct "
        "the keys. (docs/spec T7)"
    )


def renamed_absent(unknown: Mapping[str, str], theirs: Sequence[str]) -> ValueError:
    return ValueError(
        f"`renamed` must have names of the state as values, or None. Received {dict(unknown)}; the state is of {list(theirs)}. "
        "Correct the values, or pass None for a loss that starts afresh. (docs/spec T7)"
    )


def state_entry(name: str, expected: str, received: str) -> ValueError:
    return ValueError(
        f"The entry {name!r} of the state must be an array, {expected}. Received {received}. Load a state that `export_state()` "
        "returned. (docs/spec T6)"
    )


def state_values(name: str, received: Any) -> ValueError:
    return ValueError(
        f"The entry {name!r} of the state must hold finite numbers, and counts of at least 0. Received {shown(received)}. Load a "
        "state that `export_state()` returned. (docs/spec T6)"
    )


def not_a_state_file(file: str, reason: str) -> ValueError:
    return ValueError(f"{file} is not a state of a loss balancer: {reason}. Read a file that `save_state` wrote. (docs/spec T8)")


def state_without_values(received: str, what: str) -> RuntimeError:
    return RuntimeError(f"A state must be loaded into a balancer that has values. This one is {received}, without values. {what}")


def no_values_to_export(received: str, what: str) -> RuntimeError:
    return RuntimeError(f"A state must be exported from a balancer that has values. This one is {received}, and has none. {what}")


def no_values_to_use(received: str, what: str) -> RuntimeError:
    return RuntimeError(f"A balancer must have values to be used. This one is {received}, and has none. {what}")


def state_too_large(file: str, size: int, most: int) -> ValueError:
    return ValueError(
        f"The settings in a state file must take at most {most} bytes. Those for {file} take {size}: they hold long tables. Use "
        "schedules of points where you can. (docs/spec T8)"
    )


def no_file_beside(file: str, folder: str, error: OSError) -> OSError:
    words = error.strerror
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        words = (
            f"A file is written under another name in its folder and then renamed, but {folder} takes no new file "
            f"({error.strerror}). Make the folder writable, or name a file in another one"
        )
    return OSError(error.errno, words, file)


def under_a_transform() -> RuntimeError:
    return RuntimeError(
        "A balancer in training mode cannot be called under `torch.func`, which refuses to change state. Call `eval()` on it, and "
        "`observe(loss)` outside of the transform. Where the loop carries its state itself, "
        "`loss_balancers.torch.functional_form(balancer)` gives pure functions."
    )


def state_under_a_transform(what: str) -> RuntimeError:
    return RuntimeError(
        f"`{what}` must be called outside of a transform of `torch.func`, where state is neither written nor read out. Received a "
        "call within one. Call it before or after the transform."
    )


def within_join() -> RuntimeError:
    return RuntimeError(
        "`step()` reduces over ranks, and must not be called within `join()` of DistributedDataParallel: a rank that is out of "
        "data would take this reduction for one of the model's. Build the balancer with `process_group=False`, or pass "
        "`throw_on_early_termination=True` to `join()`. (docs/spec T4)"
    )


def state_converted(name: str, expected: object, received: object) -> RuntimeError:
    return RuntimeError(
        f"The state of a balancer must keep its dtypes. `{name}` must be {expected}; it was converted to {received}, and its bits "
        "are lost. With FSDP's `MixedPrecision`, set `buffer_dtype=torch.float32`, or name the balancer in "
        "`ignored_modules`. (docs/spec T1)"
    )


def state_shape(name: str, expected: Sequence[int], received: Sequence[int], what: str) -> RuntimeError:
    return RuntimeError(
        f"The state of a balancer must have the shapes that it was made with. `{name}` must be of shape {tuple(expected)}; it is "
        f"of shape {tuple(received)}. {what} (docs/spec T1)"
    )


def dtensor_loss(name: str) -> TypeError:
    return TypeError(
        f"The loss {name!r} must be a plain tensor: this balancer has state, which is not distributed. Received a DTensor. Pass "
        "`loss.full_tensor()`."
    )


def compiled_within_a_dual_level() -> RuntimeError:
    return RuntimeError(
        "A balancer cannot be compiled within `forward_ad.dual_level()`: compiled code returns no tangents there. Enter the dual "
        "level, or call `torch.func.jvp`, within the function that is compiled; or do not compile it."
    )


def process_group_type(received: Any) -> TypeError:
    return TypeError(
        f"`process_group` must be None, False or a process group. Received {shown(received)} of type {type(received).__name__}. "
        "Pass None for the default group, or False to reduce over no ranks."
    )


def axis_name_type(received: Any) -> TypeError:
    return TypeError(
        f"`axis_name` must be None, the name of an axis or a tuple of names. Received {shown(received)} of type "
        f"{type(received).__name__}. Pass the axis of the `shard_map` in which `step()` is called."
    )


def not_a_balancer(received: Any) -> TypeError:
    return TypeError(
        "`functional_form` takes a balancer of this library, or one of your own without parameters, buffers and variables, or with "
        f"state by `StatefulLossBalancer`. Received an object of type {type(received).__name__}. Pass `StaticLossBalancer()`, say."
    )


def functional_state(balancer: str, expected: Any, received: Any) -> ValueError:
    return ValueError(
        f"The state of a `{balancer}` must have these shapes and dtypes: {shown(expected)}. Received {shown(received)}. Pass what "
        "`init()` returned, or what `apply`, `commit` or `load_state` made of it."
    )


def functional_device(name: str, balancer: object, received: object) -> ValueError:
    return ValueError(
        f"The state must be on the device of the balancer, {balancer}. Received {name!r} on {received}. Move the balancer there "
        "with `.to(device)`, or the state."
    )


def no_state(balancer: str) -> TypeError:
    return TypeError(f"A `{balancer}` has no state to export or load. Save its settings instead.")


def across_a_transform() -> RuntimeError:
    return RuntimeError(
        "The state of a balancer cannot change in a JAX transform that the balancer is not an argument of. Pass it to the function "
        "and use the transform of `nnx` (`nnx.jit`, `nnx.value_and_grad`), or call `eval()` on it, and `observe(loss)` and "
        "`step()` outside of the transform."
        "\n    nnx.jit(lambda x: balancer(losses_of(x)))(x)  # probably: the function takes the balancer from outside"
        "\n    nnx.jit(lambda x, balancer: balancer(losses_of(x)))(x, balancer)  # instead"
        "\nWith `nnx.split`, merge a copy within the transform, `nnx.merge(graphdef, state, copy=True)`, and return the new state. "
        "Where the loop carries its state itself, `loss_balancers.jax.functional_form(balancer)` gives pure functions."
    )


def not_settings(received: Any) -> TypeError:
    return TypeError(
        "`settings` must be settings of a balancer, as `loss_balancers.spec` has them. Received an object of type "
        f"{type(received).__name__}. Pass `StaticLossBalancerSettings(0.5)`, say: it takes the arguments of `StaticLossBalancer`."
    )


def training_unknown() -> ValueError:
    return ValueError(
        "A balancer with state must be told whether it is called in training, when it observes the losses, or in validation, when "
        "it does not. Received `training=None`. Pass on what `compute_loss` got."
        "\n    self.balancer(losses)  # probably: in `compute_loss`, which Keras calls for both"
        "\n    self.balancer(losses, training=training)  # instead"
    )


def tunix_auto_step(accumulated: int, received: int | None) -> ValueError:
    return ValueError(
        "Under Tunix, `auto_step` of a balancer must be the `gradient_accumulation_steps` of the training configuration, or 1: "
        f"here {accumulated}. Received {received!r}. Build the balancer with `auto_step={accumulated}`: Tunix has no place for "
        "a `step()`."
    )


def tunix_metrics(missing: Sequence[str], received: Sequence[str]) -> ValueError:
    return ValueError(
        f"The metrics that the strategy's `compute_loss` returns must hold the losses. Expected {list(missing)} among them; "
        f"received {list(received)}. Return each loss in the metrics, and name it in `losses=` of `BalancedTrainer`."
    )


# --- amounts --------------------------------------------------------------------------------------------------------


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


# --- calls ----------------------------------------------------------------------------------------------------------


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


def dropped_student_weight(weight: float) -> str:
    return (
        f"The student loss has weight {weight!r} but the losses hold no `student_loss`: that weight is dropped, and the aggregate "
        "is the KD part alone. Pass the student loss, or weights that sum to 1. (docs/spec W7, S5)"
    )


# --- functional -----------------------------------------------------------------------------------------------------


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


# --- training loops -------------------------------------------------------------------------------------------------


def not_a_torch_balancer(received: Any) -> TypeError:
    return TypeError(
        f"`balancer` must be a balancer of `loss_balancers.torch`. Received {shown(received)} of type {type(received).__name__}. "
        "Pass an instance, such as `StaticLossBalancer(0.5)`."
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


# --- packaging ------------------------------------------------------------------------------------------------------


def missing_package(what: str, package: str, extra: str) -> str:
    return f"{what} {package}, which is not installed. {with_extra(extra)}"


def with_extra(extra: str) -> str:
    # An installed package does not know where it came from. These words are right for a checkout, a wheel and an index.
    return f"Install loss-balancers with its extra `[{extra}]`, in a checkout by `pip install '.[{extra}]'`."


def missing_framework(part: str, package: str, extra: str) -> str:
    return missing_package(f"`loss_balancers.{part}` needs", package, extra)


def keras_backend(received: str) -> ImportError:
    return ImportError(
        f'`loss_balancers.keras` needs Keras with the backend "torch" or "jax". Received the backend {received!r}. Set the '
        "variable KERAS_BACKEND to one of the two before Keras is imported."
    )


def framework_too_old(part: str, package: str, found: str, oldest: str) -> ImportError:
    return ImportError(
        f"`loss_balancers.{part}` needs {package} {oldest} or newer. Found {package} {found}. "
        f"Run `pip install '{package}>={oldest}'`.",
        name=package,
    )


# --- elementary functions -------------------------------------------------------------------------------------------


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
