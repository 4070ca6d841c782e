"""State, or a parameter, that a balancer hands out as arrays and takes over from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from loss_balancers import spec
from loss_balancers.torch.carried import on_meta
from loss_balancers.torch.rounding import compiling
from loss_balancers.torch.transforms import check_not_transformed


def copy_all(state: list[Tensor], values: list[Tensor]) -> None:
    """Writes state: all of it by one call into PyTorch, so that an interrupt comes before or after it.

    Compiled code is one call anyway. There Inductor would fuse the copy with the operations that its values come from, into one
    kernel whose blocks read ``pending`` while another overwrites it (PyTorch's issue 198033; seen on an H100: steps were lost).
    """
    if compiling():
        for variable, value in zip(state, values, strict=True):
            variable.copy_(value)
    else:
        torch._foreach_copy_(state, values)  # type: ignore[reportPrivateImportUsage]


class MovesState(nn.Module):
    """What all balancers share that hold something from call to call: it moves to balancers of either framework."""

    _settings: Any
    #: Of each balancer: gives what it holds, by name.
    _values: Any

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework.

        Returns:
            ``schema``, ``balancer``, ``settings``, ``names`` and ``state``. These are copies, and copying waits for the device.
            Save it with `loss_balancers.spec.save_state`: plain ``torch.load`` refuses NumPy arrays (docs/state.md). What an
            optimizer keeps of a parameter is not in it.

        Raises:
            RuntimeError: This balancer is on the device "meta", its parameter is sharded, or a transform of `torch.func` is active.
        """
        check_not_transformed("export_state()")
        settings, state = self._settings, self._values()
        if any(value.is_meta for value in state.values()):
            what = "Call `to_empty(device=...)` on the model first."
            raise spec.errors.no_values_to_export('on the device "meta"', what)
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in state.items()}
        return spec.exported(settings.balancer, settings.as_json(), settings.names, arrays)

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> None:
        """Takes over a state that `export_state` returned, in either framework.

        Args:
            exported: The state.
            renamed: If the losses have changed: from a name of this balancer to its name there, or to None for a loss that starts
                afresh. Losses of the state that no name refers to are dropped.

        Raises:
            TypeError: ``exported`` is not a mapping.
            ValueError: ``exported`` is of another balancer, other settings or other losses. Then nothing has changed.
            RuntimeError: This balancer is on the device "meta", its parameter is sharded, or a transform of `torch.func` is active.
        """
        check_not_transformed("load_state()")
        settings = self._settings
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.entries, exported, renamed)
        state = self._values()
        if any(value.is_meta for value in state.values()):
            raise on_meta()
        with torch.no_grad():  # a parameter may not be written to otherwise
            copy_all(list(state.values()), [torch.from_numpy(arrays[name]) for name in state])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes over all of it or, with an error, nothing. PyTorch by itself would write every entry but the wrong one."""
        wrong = _what_is_wrong(self, state_dict, prefix, not local_metadata.get("assign_to_params_buffers", False))
        if wrong:
            error_msgs += wrong
            return
        own: Any = (self._parameters, self._buffers)
        held = [(tensors, name, x, x.detach().clone()) for tensors in own for name, x in tensors.items() if x is not None]
        found = (error_msgs, missing_keys, unexpected_keys) if strict else (error_msgs,)
        before = sum(map(len, found))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if sum(map(len, found)) > before:
            with torch.no_grad():
                for tensors, name, x, values in held:
                    tensors[name] = x  # ``assign=True`` puts another there
                    x.copy_(values)


def _what_is_wrong(balancer: Any, state_dict: dict[str, Any], prefix: str, in_place: bool) -> list[str]:
    """Messages about what only a balancer knows to be wrong. What is from before there were counts is made as it is now."""
    try:
        check_not_transformed("load_state_dict()")
    except RuntimeError as error:
        return [str(error)]
    wrong = []
    for entry in balancer._settings.entries:
        value: Any = state_dict.get(prefix + entry.name)
        if type(value) not in (Tensor, Parameter) or value.is_meta or value.layout is not torch.strided:
            continue
        if in_place and getattr(balancer, entry.name).is_meta:
            wrong.append(f"{prefix}{entry.name}: {on_meta()}")
        if entry.name == "pending" and entry.named and value.shape == (entry.named + 2,):
            state_dict[prefix + entry.name] = value = torch.cat([value[:-2], value[-2:-1].expand(entry.named), value[-2:]])
        if value.shape == entry.shape:
            try:
                spec.check_values(entry, value.detach().to("cpu", torch.float64).numpy())
            except ValueError as error:
                wrong.append(f"{prefix}{entry.name}: {error}")
    return wrong
