"""Balancers that change over time: state that `__call__` observes and `step()` commits."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.base import DistillationLossBalancer, broken_down
from loss_balancers.jax.carried import BalancerState, BalancerTable, Forwards, check_axis_name, write
from loss_balancers.jax.portable import div_of_kept
from loss_balancers.jax.rounding import keep, narrow, widen

State = dict[str, Array]

FLOAT = np.dtype(np.float32)

#: After how many training calls without a `step()` a balancer warns.
_PATIENCE = 100


@partial(jax.jit, inline=True)
def observed(pending: Array, losses: Array) -> Array:
    """``pending`` with the losses added; with one call more left out if a sum would not be finite (spec T3)."""
    one, zero = jnp.ones(1, FLOAT), jnp.zeros(1, FLOAT)
    taken = keep(pending + jnp.concatenate([losses, one, zero]))
    left_out = pending + jnp.concatenate([jnp.zeros_like(losses), zero, one])
    return jnp.where(jnp.isfinite(taken).all(), taken, left_out)


@partial(jax.jit, inline=True)
def pending_mean(pending: Array) -> tuple[Array, Array]:
    """The mean of the observed losses, and whether it is one (spec T4)."""
    sums, count = pending[:-2], pending[-2]
    informative = (count > 0) & jnp.isfinite(sums).all()
    ones = jnp.ones_like(sums)
    return div_of_kept(jnp.where(informative, sums, ones), jnp.where(informative, count, ones)), informative


@partial(jax.jit, inline=True)
def advanced(state: State, pending: Array) -> State:
    """The counters after a commit of ``pending``, the sums cleared (spec T4)."""
    return {
        "steps": state["steps"] + 1,
        "skipped": state["skipped"] + pending[-1].astype(jnp.int32),
        "pending": jnp.zeros_like(pending),
    }


@partial(jax.jit, inline=True)
def look_up(table: Array, step: Array) -> Array:
    """The row of a step: the last one from the table's end on."""
    return lax.dynamic_index_in_dim(table, jnp.minimum(step, len(table) - 1), keepdims=False)


@partial(jax.jit, inline=True)
def as_observed(terms: list[Array]) -> Array:
    """The losses as state sees them: a float32 vector, detached, rounded and flushed (spec T2)."""
    if not terms:
        return jnp.zeros(0, FLOAT)
    detached = [lax.stop_gradient(x) for x in terms]
    return keep(jnp.stack([narrow(x, FLOAT) if x.dtype == jnp.float64 else widen(x, FLOAT) for x in detached]))


@partial(jax.jit, inline=True)
def unstacked(factors: Array) -> tuple[Array, ...]:
    """The elements of a vector."""
    return tuple(factors)


@partial(jax.jit, static_argnums=1, inline=True)
def enough(pending: Array, auto_step: int) -> Array:
    """Whether ``pending`` is of as many calls as make an optimizer step."""
    return pending[-2:].sum() >= auto_step


class Inputs(NamedTuple):
    """The losses of a call in canonical order, and what the state sees of them: an empty vector if it observes none."""

    names: tuple[str, ...]
    terms: list[Array]
    dtypes: tuple[Any, ...]
    losses: Array


class StatefulLossBalancer(DistillationLossBalancer):
    """What the balancers that change over time share.

    Weights are a function of committed state and, only where the method says so, of the current losses, detached.
    In training mode `__call__` observes the losses and changes no weight; :meth:`step` commits, once per optimizer step. Nothing
    is observed in eval mode (``model.eval()`` sets ``use_running_average``), nor when a call is recomputed in a backward
    (`nnx.remat`).

    A transform must have the balancer, or its state, as an argument: `nnx.jit` and its like, or `jax.jit` over `nnx.split` and
    `nnx.merge`. With global arrays under `jit`, several devices need nothing. In a `shard_map`, whose losses are those of one
    device, pass ``axis_name``, and call `step()` in the same `shard_map` as the calls that it commits: until then ``pending`` is
    each device's own (carried by a scan there, `jax.lax.pcast` it to "varying" first); after it, all state is the same everywhere.

    Who never calls `step()` is warned at the 100th call in Python: a compiled call is one when it is traced, and no more.

    State:
        ``steps`` and ``skipped``, int32 ``()``; ``pending``, float32 ``(n + 2,)``, what was observed since the last commit. Each is
        a `BalancerState`.
    """

    #: Whether losses must be scalars: where their values make weights.
    _scalars: ClassVar[bool] = False

    steps: BalancerState
    skipped: BalancerState
    pending: BalancerState

    def __init__(self, settings: Any, auto_step: int | None, axis_name: Any) -> None:
        super().__init__()
        spec.check_auto_step(auto_step)
        check_axis_name(axis_name)
        self._settings = settings
        self._auto_step = auto_step
        self._axis_name = axis_name
        self._forwards = Forwards()
        self.use_running_average = False
        for entry in settings.state:
            setattr(self, entry.name, BalancerState(jnp.zeros(entry.shape, entry.dtype)))
        self._table = BalancerTable(jnp.asarray(settings.table))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order, fixed at construction; empty if the balancer takes any."""
        return self._settings.names

    def __call__(self, loss: Mapping[str, Float[Array, ...]]) -> Float[Array, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``."""
        inputs = self._inputs(loss)
        if not self.use_running_average:
            self._observe(inputs.losses, stacklevel=3)
        return self._aggregate(inputs)

    def observe(self, loss: Mapping[str, Any]) -> None:
        """Observes the losses as a training call does, and computes no aggregate.

        For loops whose call runs in eval mode, or in a transform that may not change state, as `jax.grad`: call this beside it,
        outside of the transform, once per call.

        Raises: as `__call__`.
        """
        self._observe(self._inputs(loss).losses, stacklevel=3)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after it, as a learning rate schedule.

        With ``axis_name``, the sums and counts of that axis are added first. Without an observation since the last call, state
        stays as it is but for the counter ``steps``.
        """
        self._forwards.count = -1
        self._commit()

    def weights(self, loss: Mapping[str, Any]) -> dict[str, Array]:
        """The weight that `__call__` would apply to each loss, in canonical order: scalars on the device. Changes no state.

        Raises: as `__call__`.
        """
        return self._weights(self._inputs(loss))

    def breakdown(self, loss: Mapping[str, Any]) -> dict[str, Array]:
        """What `__call__` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. Changes
            no state.
        """
        inputs = self._inputs(loss)
        weights = self._weights(inputs).values()
        return broken_down(inputs.names, inputs.terms, inputs.dtypes, weights, self._aggregate(inputs))

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework.

        Returns:
            ``schema``, ``balancer``, ``settings``, ``names`` and ``state``. Copies; to copy waits for the device.
            Save it with `loss_balancers.spec.save_state`: plain ``torch.load`` refuses NumPy arrays (docs/state.md).
        """
        settings = self._settings
        state = {name: np.array(variable[...]) for name, variable in self._state().items()}
        return spec.exported(settings.balancer, settings.as_json(), settings.names, state)

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> None:
        """Takes over a state that `export_state` returned, in either framework.

        Args:
            exported: The state.
            renamed: Where the losses have changed: for a name of this balancer its name there, None for a loss that starts
                afresh. Losses of the state that no name refers to are dropped.

        Raises:
            TypeError: ``exported`` is no mapping.
            ValueError: It is of another balancer, of other settings or other losses. Then nothing has changed.
        """
        settings = self._settings
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.state, exported, renamed)
        for name, variable in self._state().items():
            variable[...] = jnp.array(arrays[name])

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self._settings, field.name)!r}" for field in fields(self._settings))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        return repr(self)  # nnx's own shows no static attribute

    @abstractmethod
    def _factors(self, inputs: Inputs) -> Array:
        """The factors of the losses (spec A5), float32, by committed state and, if the method says so, ``inputs.losses``."""

    @abstractmethod
    def _aggregate(self, inputs: Inputs) -> Array:
        """The aggregate."""

    def _committed(self, mean: Array) -> State:
        """The method's own state after a commit of ``mean``."""
        del mean
        return {}

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Refuses losses of other names than those fixed."""
        if names != self.names:
            raise spec.errors.fixed_names(self.names, names)

    def _weights(self, inputs: Inputs) -> dict[str, Array]:
        factors = unstacked(self._factors(inputs))
        shared = len(inputs.names) - len(factors) + 1
        return dict(zip(inputs.names, (*factors[:1] * shared, *factors[1:]), strict=True))

    def _inputs(self, loss: Mapping[str, Any]) -> Inputs:
        """All that can be wrong with a call is found here, before anything is observed."""
        names, terms, dtypes = self._ordered(loss)
        self._check_names(names)
        if self._scalars and terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        if len(self._values()["pending"]) == 2:
            return Inputs(names, terms, dtypes, as_observed([]))
        return Inputs(names, terms, dtypes, as_observed(terms))

    def _observe(self, losses: Array, stacklevel: int) -> None:
        pending = self._state()["pending"]
        if self._auto_step is None:
            self._warn_if_never_stepped(stacklevel + 1)
        else:
            due = enough(pending[...], self._auto_step)
            self._commit(due if self._axis_name is None else lax.pmax(due, self._axis_name))
        write(pending, observed(pending[...], losses))

    def _commit(self, due: Array | None = None) -> None:
        """Commits, with ``due`` where that is true: the decision stays on the device."""
        variables, state = self._state(), self._values()
        pending = self._over_ranks(state["pending"])
        mean, informative = pending_mean(pending)
        own = {name: jnp.where(informative, value, state[name]) for name, value in self._committed(mean).items()}
        for name, value in (own | advanced(state, pending)).items():
            write(variables[name], value if due is None else jnp.where(due, value, state[name]))

    def _over_ranks(self, pending: Array) -> Array:
        """The sum of ``pending`` over the mapped axis, if there is one."""
        return pending if self._axis_name is None else lax.psum(pending, self._axis_name)

    def _state(self) -> dict[str, BalancerState]:
        return {entry.name: getattr(self, entry.name) for entry in self._settings.state}

    def _values(self) -> State:
        return {name: variable[...] for name, variable in self._state().items()}

    def _warn_if_never_stepped(self, stacklevel: int) -> None:
        if self._forwards.count >= 0:
            self._forwards.count += 1
            if self._forwards.count == _PATIENCE:
                self._forwards.count = -1
                warnings.warn(spec.errors.never_stepped(_PATIENCE), UserWarning, stacklevel=stacklevel)
