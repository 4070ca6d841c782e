"""Balancers with a parameter, which the user's optimizer trains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.carried import Unchanged, check_held, read
from loss_balancers.jax.functions import entered, finished, summed
from loss_balancers.jax.moving import MovesState
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable import flushed, rmul
from loss_balancers.jax.rounding import FLOAT
from loss_balancers.jax.weighed import WeighedLossBalancer

#: After how many training calls without a `step()` a balancer looks whether its parameter has changed: more than make a step.
_PATIENCE = 1000


class LearnedLossBalancer(MovesState, WeighedLossBalancer):
    """What the balancers with a parameter share: it is in the aggregate, and the user's optimizer trains it with the student.

    The aggregate is ``sum(a * w_k * L_k + b * z_k)``, where the weight ``w_k`` and the penalty ``z_k`` follow from the parameter of
    the loss. Both have derivatives by the losses and by the parameter.

    The parameter is an `nnx.Param`: a model that has the balancer as an attribute hands it to the optimizer, and
    `optax.masked` keeps it out of weight decay. Where gradients are averaged over devices by hand, average this one too.

    If the first training step leaves the parameter as it is, a warning comes once: at the `step()` of the balancer, or after
    1,000 training calls. Where all of its calls are traced, as in `nnx.grad` by the whole model, it is the second `step()`. A
    compiled step is not looked at.

    State:
        None that `step()` commits. The parameter, float32 ``(K,)``, in canonical order.
    """

    _scalars = True

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        (entry,) = settings.learned
        setattr(self, entry.name, nnx.Param(jnp.asarray(entry.start, FLOAT)))
        self._unchanged = Unchanged()
        self.use_running_average = False

    @property
    def parameter(self) -> nnx.Param[Array]:
        """The parameter, whatever its name is."""
        return getattr(self, self._settings.parameter)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Switches modes, for `nnx.view`.

        Args:
          use_running_average: If True, eval mode: calls are not counted. If False, training mode. If None, as it is.
        """
        # The argument is indented by two spaces: `nnx.view_info` finds it only so.
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, loss: Mapping[str, Float[Array, ""]], *, count: Any = None, share: Any = None) -> Float[Array, ""]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``.

        Args:
            loss: The losses.
            count: The number of items that each loss is the mean of, as balancers with state take it: a number, or a mapping from
                name to number. Here only 0 matters: a loss with the count 0 is absent, and neither it nor its parameter has a part
                in the aggregate.
            share: The part of the step's mean that each loss is, in the same forms; 0 says the same.

        Raises:
            TypeError: Both ``count`` and ``share`` are given, or one is not made of numbers. Else: see `canonical`.
            ValueError: A number is negative or not finite, or the names are not those of the losses. Else: see `canonical`.
        """
        inputs, state = self._inputs(loss, count, share), self._values()
        if not self.use_running_average:
            self._watch(state)
        return self._aggregate(state, inputs)

    def step(self) -> None:
        """Looks whether the parameter has changed since the last call, and warns once if it has not. Else it does nothing."""
        self._warn_if_unchanged(self._values(), stacklevel=3)

    def discard(self) -> None:
        """For an optimizer step that is not taken: the parameter need not have changed."""
        self._unchanged.begin()

    def is_optimized_by(self, optimizer: Any) -> bool:
        """Whether an optimizer keeps something for the parameter, which is found by its name and its shape.

        Args:
            optimizer: An `nnx.Optimizer`, or the state of an optimizer of Optax.

        Raises:
            TypeError: ``optimizer`` is neither.
            ValueError: It keeps no array for any parameter (`optax.sgd` without momentum), so that nobody can tell.
        """
        of_nnx = isinstance(optimizer, nnx.Optimizer)
        leaves = jax.tree_util.tree_leaves_with_path(nnx.state(optimizer).get("opt_state", {}) if of_nnx else optimizer)
        arrays = all(isinstance(x, (Array, np.ndarray, jax.ShapeDtypeStruct)) for _, x in leaves)
        if not (of_nnx or (arrays and isinstance(optimizer, tuple))):  # Optax's states are tuples
            raise spec.errors.optimizer_unknown(optimizer, "an `nnx.Optimizer`, or the state of an optimizer of Optax")
        (entry,) = self._settings.learned
        if any(x.shape == entry.shape and entry.name in map(_name_of, path) for path, x in leaves):
            return True
        if not any(x.shape for _, x in leaves):
            raise spec.errors.optimizer_keeps_nothing(entry.name)
        return False

    @staticmethod
    def _weight_and_penalty(settings: Any, s: Array) -> tuple[Array, Array]:
        """The weight of each loss, and the penalty of its parameter. Every balancer has its own."""
        raise NotImplementedError

    def _aggregate(self, state: State, inputs: Inputs) -> Array:
        s = state[self._settings.parameter]
        return _aggregate_of(type(self), self._settings, inputs.dtypes, s, inputs.terms, inputs.present)

    def _weights(self, state: State, inputs: Inputs) -> dict[str, Array]:
        return super()._weights({name: lax.stop_gradient(value) for name, value in state.items()}, inputs)

    def _state(self) -> dict[str, nnx.Param[Array]]:
        return {self._settings.parameter: self.parameter}

    def _values(self) -> State:
        """The parameter by its name.

        Raises:
            RuntimeError: It has no values, or another shape or dtype.
        """
        (entry,) = self._settings.learned
        check_held(self._state(), {entry.name: entry.shape})
        value = read(self.parameter)
        if value.dtype != FLOAT:
            raise spec.errors.parameter_converted(entry.name, FLOAT, value.dtype)
        return {entry.name: value}

    def _watch(self, state: State) -> None:
        """Counts a training call."""
        (value,) = state.values()
        if self._unchanged.counted(value) > _PATIENCE:
            self._warn_if_unchanged(state, stacklevel=4)

    def _warn_if_unchanged(self, state: State, stacklevel: int) -> None:
        (value,) = state.values()
        if self._unchanged.holds(value):
            warnings.warn(spec.errors.never_learned(self._settings.parameter), UserWarning, stacklevel=stacklevel)


# Jitted, so that an eager call is one dispatch; inlined into the graph of a caller that is jitted itself.
@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _aggregate_of(
    method: Any, settings: Any, dtypes: tuple[Any, ...], s: Array, terms: Sequence[Array], present: Array | None
) -> Array:
    """The aggregate (spec P2)."""
    losses, (a, b), count = entered(terms, dtypes, present), settings.parts, len(terms)
    s = flushed(s)  # and in a backward the sum of the gradients of both ways
    s = s if present is None else chosen(present, s, settings.neutral)
    weight, penalty = method._weight_and_penalty(settings, s)
    numbers = jnp.concatenate([rmul(losses, weight), penalty])
    parts: Any = (a,) * count + (b,) * count
    if present is not None:
        parts = jnp.concatenate([chosen(present, jnp.full_like(s, part), 0.0) for part in (a, b)])
    return finished(summed(numbers, parts), settings.factor, dtypes, present)


def _name_of(key: Any) -> Any:
    """What a part of a path in a tree is called."""
    return getattr(key, "key", getattr(key, "name", None))
