"""What is wrong with a state, and with a call that would change one."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from loss_balancers.spec.errors.words import shown


def fixed_names(names: Sequence[str], received: Sequence[str]) -> ValueError:
    return ValueError(
        f"The losses must be those that the balancer was built for. It has {list(names)}; received {list(received)}. Correct the "
        f"names on one side. (docs/spec S5){_absent_from_a_batch(names, received)}"
    )


def _absent_from_a_batch(names: Sequence[str], received: Sequence[str]) -> str:
    """The probable cause in code, and what to write instead; empty if none is missing, or one is unknown (misspelt)."""
    missing = [name for name in names if name not in received]
    if not missing or not set(received) <= set(names):
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
        f"`step()` was not called in {forwards} training forwards: the balancer still has the state it began with. Call "
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


def without_update(balancer: str) -> TypeError:
    return TypeError(
        f"A `{balancer}` does not observe losses after the optimizer's step. Received `update()`. Leave it out. (docs/spec Q4)"
    )


def without_epochs(balancer: str) -> TypeError:
    return TypeError(f"A `{balancer}` has no epochs. Received `end_epoch()`. Leave it out. (docs/spec D2)")


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
