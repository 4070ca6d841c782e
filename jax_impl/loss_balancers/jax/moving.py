"""State, or a parameter, that a balancer hands out as arrays and takes over from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loss_balancers import spec
from loss_balancers.jax.carried import OUTSIDE_OF_EVAL_SHAPE, write


class MovesState:
    """What all balancers share that hold something from call to call: it moves to balancers of either framework."""

    _settings: Any
    #: Of each balancer: gives what it holds, by name, as arrays and as variables.
    _values: Any
    _state: Any

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework.

        Returns:
            ``schema``, ``balancer``, ``settings``, ``names`` and ``state``. These are copies, and copying waits for the device.
            Save it with `loss_balancers.spec.save_state`: plain ``torch.load`` refuses NumPy arrays (docs/state.md). What an
            optimizer keeps of a parameter is not in it.

        Raises:
            RuntimeError: This balancer is abstract.
        """
        settings = self._settings
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self._state())):
            raise spec.errors.no_values_to_export("abstract", OUTSIDE_OF_EVAL_SHAPE)
        arrays = {name: np.array(value) for name, value in self._values().items()}
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
            RuntimeError: This balancer is abstract.
        """
        settings = self._settings
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.entries, exported, renamed)
        state = self._state()
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)):
            raise spec.errors.state_without_values("abstract", OUTSIDE_OF_EVAL_SHAPE)
        self._values()  # each must have its shape
        for name, variable in state.items():
            write(variable, jnp.array(arrays[name]))
