"""The layer: a shell around the balancer of the backend's framework."""
# Keras is not installed where pyright runs, which takes this folder for it.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras  # type: ignore[reportMissingImports]

from loss_balancers import spec
from loss_balancers.keras.carried import CarriesState


@keras.saving.register_keras_serializable(package="loss_balancers")
class Balancer(CarriesState):
    """A balancer as a Keras layer, whose state is made of non-trainable weights.

    Call it where the model computes its loss, with the losses by name: it returns the one to train on. A model that has it as an
    attribute carries its state through ``fit`` and saves it in ``.keras`` files.

    Args:
        settings: Settings of `loss_balancers.spec`, such as ``EMANormalizedLossBalancerSettings(names)``. They take the
            arguments of the balancer.
        auto_step: How many training calls make an optimizer step: the optimizer's ``gradient_accumulation_steps``. Default 1, as
            without accumulation. The state is committed at the start of the call that follows them. None: you call :meth:`step`.
        **kwargs: The arguments of a layer, such as ``name``.

    Shape:
        Losses, and the aggregate, as the balancer's.

    Dtype:
        Losses keep theirs, whatever the layer's dtype policy: nothing is cast.

    State:
        As the balancer's, float32 and int32 under every policy; none if the same losses have the same aggregate at every step.
        A parameter is a trainable weight: keep it out of weight decay by the optimizer's ``exclude_from_weight_decay``.

    Raises:
        TypeError: ``settings`` are not settings, or ``auto_step`` is not an int.
        ValueError: ``auto_step`` is out of bounds.

    Example:
        >>> import keras
        >>> from loss_balancers.keras import Balancer
        >>> from loss_balancers.spec import StaticLossBalancerSettings
        >>> balancer = Balancer(StaticLossBalancerSettings(0.25))
        >>> losses = {"student_loss": keras.ops.convert_to_tensor(4.0), "MSELoss_0": keras.ops.convert_to_tensor(8.0)}
        >>> float(balancer(losses, training=True))
        5.0

    Reference:
        Chollet et al., "Keras 3", 2023, https://keras.io: layers, `StatelessScope`, and `Model.compute_loss`.

    Deviations:
        ``weights`` of a Keras layer are its variables, so the weights of losses are :meth:`loss_weights`.
    """

    def __init__(self, settings: spec.Settings, *, auto_step: int | None = 1, **kwargs: Any) -> None:
        super().__init__(settings, auto_step, **kwargs)

    def call(self, loss: Mapping[str, Any], training: bool | None = None, count: Any = None, share: Any = None) -> Any:
        """The aggregate of ``loss``. With ``training=True`` the losses are observed, with False they are not.

        Args:
            loss: From name to loss, the student's named ``student_loss``.
            training: As `Model.compute_loss` got it. A balancer with state must be told, by you or by the model that calls it.
            count: How many items each loss is the mean of, as balancers take it.
            share: What part of the step's mean each loss is, as balancers take it.

        Raises:
            ValueError: ``training`` is not known. Else, and TypeError: as the balancer's.
        """
        if training is None and self._committed:
            raise spec.errors.training_unknown()
        if not training or self._recomputed():
            return self._form.evaluate(self._values(), loss, count=count, share=share)
        aggregate, state = self._form.apply(self._values(), loss, count=count, share=share)
        self._assign(state)
        return aggregate

    def compute_output_spec(self, loss: Mapping[str, Any], **kwargs: Any) -> Any:
        """The shape and the dtype of the aggregate, while Keras builds a model of symbolic tensors."""
        dtypes = [x.dtype for x in loss.values()]
        return keras.KerasTensor(next(iter(loss.values())).shape, keras.backend.result_type(*dtypes))

    def observe(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses as a training call does, and computes no aggregate."""
        self._assign(self._form.observe(self._values(), loss, count=count, share=share))

    def step(self) -> None:
        """Commits what was observed: once per optimizer step, in a loop of your own. In a `StatelessScope` it changes the scope."""
        self._assign(self._form.commit(self._values()))

    def discard(self) -> None:
        """Drops what was observed since the last commit, for an optimizer step that is not taken."""
        self._assign(self._form.discard(self._values()))

    def loss_weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """The weight that a call would apply to each loss, in canonical order. Changes no state."""
        return self._form.weights(self._values(), loss, count=count, share=share)

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """What a call makes of each loss, for logging: as the balancer's ``breakdown``."""
        return self._form.breakdown(self._values(), loss, count=count, share=share)

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, as the balancer's ``export_state``."""
        return self._form.export_state(self._values())

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> None:
        """Takes over a state that ``export_state`` returned, here or in a balancer of either framework."""
        for name, value in self._form.load_state(exported, renamed=renamed).items():
            self._state[name].assign(value)
