"""How a layer carries a balancer's settings and state, and which framework computes."""
# Keras is not installed where pyright runs, which takes this folder for it.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import keras  # type: ignore[reportMissingImports]

from loss_balancers import spec
from loss_balancers.spec.registry import SETTINGS, make


def functional_form(settings: spec.Settings, auto_step: int | None) -> Any:
    """The balancer of these settings as pure functions of its state, in the framework of Keras' backend."""
    more = {"auto_step": auto_step} if settings.state else {}
    if keras.backend.backend() == "jax":
        from loss_balancers import jax

        return jax.functional_form(make(settings, jax, **more))
    from loss_balancers import torch

    device: Any = keras.ops.convert_to_tensor(0.0).device  # where Keras computes
    return torch.functional_form(make(settings, torch, **more).to(device))


def recomputed() -> Callable[[], bool]:
    """Whether a call is repeated in a backward (`keras.remat`), as the backend tells: it must not be observed again."""
    if keras.backend.backend() == "jax":
        return lambda: False
    from loss_balancers.torch.recomputation import recomputing

    return recomputing


class CarriesState(keras.layers.Layer):
    """State in non-trainable weights, float32 and int32 under every dtype policy; a parameter in a trainable one; settings in
    the layer's configuration.
    """

    def __init__(self, settings: spec.Settings, auto_step: int | None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # losses keep their dtypes
        if not isinstance(settings, spec.Settings):
            raise spec.errors.not_settings(settings)
        spec.check_auto_step(auto_step)
        self.settings, self.auto_step = settings, auto_step
        self._form = functional_form(settings, auto_step)
        self._recomputed = recomputed()
        self._state = {entry.name: self._weight_of(entry) for entry in (settings.entries if settings.can_change else ())}
        #: What calls and commits change: all but the parameter, which the optimizer changes.
        self._committed = [entry.name for entry in settings.state if entry.name in self._state]
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The arguments, by which a ``.keras`` file makes the layer again."""
        mine = {"balancer": self.settings.balancer, "settings": self.settings.to_json(), "auto_step": self.auto_step}
        return {**super().get_config(), **mine}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The layer that `get_config` described."""
        given = dict(config)
        settings = SETTINGS[given.pop("balancer")].from_json(given.pop("settings"))
        return cls(settings, **given)

    def _weight_of(self, entry: spec.StateEntry) -> Any:
        def beginning(shape: Any, dtype: Any = None) -> Any:
            return keras.ops.convert_to_tensor(entry.start, dtype) if entry.start else keras.ops.zeros(shape, dtype)

        trainable = entry in self.settings.learned
        return self.add_weight(
            shape=entry.shape, dtype=entry.dtype, initializer=beginning, trainable=trainable, autocast=False, name=entry.name
        )

    def _values(self) -> dict[str, Any]:
        """The state by name: in a `StatelessScope`, the scope's."""
        return {name: variable.value for name, variable in self._state.items()}

    def _assign(self, state: Mapping[str, Any]) -> None:
        for name in self._committed:
            self._state[name].assign(state[name])
