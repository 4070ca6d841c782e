"""A balancer as pure functions of its state, as Optax has transformations: for loops that carry their state themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.base import DistillationLossBalancer
from loss_balancers.jax.moving import MovesState
from loss_balancers.jax.observing import State


def functional_form(balancer: DistillationLossBalancer) -> FunctionalForm:
    """A balancer as pure functions, with the same bits: ``init``, ``apply`` and ``commit``.

    Args:
        balancer: A balancer of this library, or one of your own: without variables, or a `StatefulLossBalancer`, or a
            `LearnedLossBalancer`. What it holds as state is neither read nor changed.

    Raises:
        TypeError: ``balancer`` is something else.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from loss_balancers.jax import EMANormalizedLossBalancer, functional_form
        >>> form = functional_form(EMANormalizedLossBalancer(("student_loss", "MSELoss_0"), lagged=True))
        >>> def objective(w, state):
        ...     return form.apply(state, {"student_loss": w, "MSELoss_0": 8 * w})
        >>> state = form.init()
        >>> for _ in range(2):
        ...     (loss, state), gradient = jax.value_and_grad(objective, has_aux=True)(jnp.float32(0.5), state)
        ...     state = form.commit(state)
        >>> print(loss, gradient, state["steps"])
        2.0 4.0 2
    """
    return FunctionalForm(balancer)


class FunctionalForm:
    """The pure functions that `functional_form` returns: see there.

    A state is a dict from name to array, which Orbax, `jax.tree.map`, `jax.lax.scan`, `shard_map` and every other transform take.
    It is empty where the same losses have the same aggregate at every step: a `StaticLossBalancer`, or numbers as weights. A
    parameter is part of it, by which you differentiate and which you update yourself. No function changes a state that it is
    given. None warns of steps that never come.

    ``loss``, ``count``, ``share``, and what a function raises, are as for the balancer. Besides, each raises a ValueError if
    ``state`` is not a state of this balancer.
    """

    def __init__(self, balancer: DistillationLossBalancer) -> None:
        entries: tuple[spec.StateEntry, ...] = ()
        if isinstance(balancer, MovesState):
            entries = balancer._settings.entries
        elif not isinstance(balancer, DistillationLossBalancer) or jax.tree.leaves(nnx.state(balancer)):
            raise spec.errors.not_a_balancer(balancer)
        self._balancer: Any = balancer
        self._entries = entries if entries and self._balancer._settings.can_change else ()
        self._expected = {entry.name: (entry.shape, entry.dtype) for entry in self._entries}
        #: What a balancer whose state says nothing reads its weights by.
        self._zero = {entry.name: np.zeros(entry.shape, entry.dtype) for entry in entries}

    def init(self) -> State:
        """The state at the beginning: int32 and float32 arrays by name, as the balancer's docstring lists them."""
        return {
            entry.name: jnp.asarray(entry.start, entry.dtype) if entry.start else jnp.zeros(entry.shape, entry.dtype)
            for entry in self._entries
        }

    def apply(
        self, state: State, loss: Mapping[str, Float[Array, ...]], *, count: Any = None, share: Any = None
    ) -> tuple[Float[Array, "*shape"], State]:
        """A training call: the aggregate, and the state with the losses observed."""
        if not self._entries:
            return self.evaluate(state, loss, count=count, share=share), state
        self._check(state)
        inputs = self._balancer._inputs(loss, count, share)
        if "pending" in state:
            state = {**state, **self._balancer._taken(state, inputs)}
        return self._balancer._aggregate(state, inputs), state

    def evaluate(
        self, state: State, loss: Mapping[str, Float[Array, ...]], *, count: Any = None, share: Any = None
    ) -> Float[Array, "*shape"]:
        """The aggregate alone, for validation: nothing is observed."""
        self._check(state)
        if not self._zero:
            return self._balancer(loss, **_given(count, share))
        return self._balancer._aggregate({**self._zero, **state}, self._balancer._inputs(loss, count, share))

    def observe(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> State:
        """The state with the losses observed, and no aggregate."""
        self._check(state)
        if "pending" not in state:
            return state
        return {**state, **self._balancer._taken(state, self._balancer._inputs(loss, count, share))}

    def update(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> State:
        """The state with the losses after the optimizer's step observed, of a balancer that has `update()`.

        Raises:
            TypeError: The balancer has none.
        """
        self._check(state)
        if not (self._entries and self._balancer._settings.updates):
            raise spec.errors.without_update(type(self._balancer).__name__)
        return {**state, **self._balancer._taken(state, self._balancer._inputs(loss, count, share), after=True)}

    def end_epoch(self, state: State) -> State:
        """The state after the end of an epoch, of a balancer that has `end_epoch()`.

        Raises:
            TypeError: The balancer has none.
            RuntimeError: An epoch ends by itself: `epoch_steps` is set.
        """
        self._check(state)
        if not (self._entries and self._balancer._settings.has_epochs):
            raise spec.errors.without_epochs(type(self._balancer).__name__)
        return {**state, **self._balancer._epoch_ended(state)}

    def commit(self, state: State) -> State:
        """The state after an optimizer step: what was observed since the last commit moves the weights."""
        self._check(state)
        return {**state, **self._balancer._stepped(state)} if "pending" in state else state

    def discard(self, state: State) -> State:
        """The state without what was observed since the last commit, for an optimizer step that is not taken."""
        self._check(state)
        return {**state, "pending": jnp.zeros_like(state["pending"])} if "pending" in state else state

    def weights(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """The weight that `apply` would apply to each loss, in canonical order."""
        self._check(state)
        if not self._zero:
            return self._balancer.weights(loss, **_given(count, share))
        return self._balancer._weights({**self._zero, **state}, self._balancer._inputs(loss, count, share))

    def breakdown(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """What `apply` makes of each loss, for logging: as the balancer's `breakdown`."""
        self._check(state)
        if not self._zero:
            return self._balancer.breakdown(loss, **_given(count, share))
        return self._balancer._broken_down({**self._zero, **state}, self._balancer._inputs(loss, count, share))

    def export_state(self, state: State) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework: as the balancer's `export_state`.

        Raises:
            TypeError: The balancer is one without state.
        """
        self._check(state)
        settings = self._settings_of_state()
        arrays = {name: np.array(value) for name, value in {**self._zero, **state}.items()}
        return spec.exported(settings.balancer, settings.as_json(), settings.names, arrays)

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> State:
        """The state that `export_state` returned, in either framework. ``renamed`` and errors: as the balancer's `load_state`.

        Raises:
            TypeError: The balancer is one without state.
        """
        settings = self._settings_of_state()
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.entries, exported, renamed)
        return {entry.name: jnp.array(arrays[entry.name]) for entry in self._entries}

    def _settings_of_state(self) -> Any:
        if not self._zero:
            raise spec.errors.no_state(type(self._balancer).__name__)
        return self._balancer._settings

    def _check(self, state: State) -> None:
        """Raises unless the state has this balancer's entries; shapes and dtypes are known while tracing, too."""
        received = {name: _described(x) for name, x in state.items()} if isinstance(state, Mapping) else _described(state)
        if received != self._expected:
            raise spec.errors.functional_state(type(self._balancer).__name__, self._expected, received)


def _described(x: Any) -> tuple[Any, str]:
    """The shape and the dtype of an array; of anything else None and its type."""
    return (x.shape, str(x.dtype)) if isinstance(x, (Array, np.ndarray)) else (None, type(x).__name__)


def _given(count: Any, share: Any) -> dict[str, Any]:
    """The keywords that are given: a balancer of one's own need not take them."""
    return {name: amount for name, amount in (("count", count), ("share", share)) if amount is not None}
