"""Balancers that change over time: state that `__call__` observes and `step()` commits."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.amounts import unstacked
from loss_balancers.jax.base import DistillationLossBalancer, broken_down
from loss_balancers.jax.carried import BalancerState, BalancerTable, Forwards, check_axis_name, read, write
from loss_balancers.jax.functional import balance
from loss_balancers.jax.observing import (
    Inputs,
    State,
    advanced,
    as_observed,
    enough,
    expanded,
    look_up,
    observed,
    pending_mean,
    with_amounts,
)

#: After how many training calls without a `step()` a balancer warns.
_PATIENCE = 100


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

    Without a `step()`, a warning comes at the 100th call in Python. A compiled call counts once, when it is traced.

    State:
        ``steps`` and ``skipped``, int32 ``()``; ``pending``, float32 ``(2 n + 2,)``, what was observed since the last commit.
        Each is a `BalancerState`.
    """

    #: Whether losses must be scalars: they must if their values make weights.
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
        table = settings.table
        self._table = None if table is None else BalancerTable(jnp.asarray(table))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order, fixed at construction; empty if the balancer takes any."""
        return self._settings.names

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Switches modes, for `nnx.view`.

        Args:
          use_running_average: If True, eval mode: nothing is observed. If False, training mode. If None, as it is.
        """
        # The argument is indented by two spaces: `nnx.view_info` finds it only so.
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, loss: Mapping[str, Float[Array, ...]], *, count: Any = None, share: Any = None) -> Float[Array, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``.

        Args:
            loss: The losses.
            count: The number of items or tokens that each loss is the mean of: a number of at least 0, or a mapping from name to
                number, on the host or the device. Default 1. A loss with the count 0 is absent, and its weight is 0.
            share: The part of the step's mean that each loss is, in the same forms, where losses are sums over this call's items
                divided by the number of all items of the step. Give at most one of the two, and the same one
                in all calls of a step.

        Raises:
            TypeError: Both ``count`` and ``share`` are given, or one is not made of numbers. Else: see `canonical`.
            ValueError: A number is negative or not finite, or the names are not those of the losses. Else: see `canonical`.
        """
        inputs = self._inputs(loss, count, share)
        if not self.use_running_average:
            self._observe(inputs, stacklevel=3)
        return self._aggregate(inputs)

    def observe(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses as a training call does, and computes no aggregate.

        For loops whose call runs in eval mode, or in a transform that may not change state (`jax.grad`, say): call this beside it,
        outside of the transform, once per call. ``count``, ``share`` and what it raises: as `__call__`.
        """
        self._observe(self._inputs(loss, count, share), stacklevel=3)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after it, as a learning rate schedule.

        With ``axis_name``, the sums and counts of that axis are added first. Without an observation since the last call,
        only the counter ``steps`` changes.
        """
        self._forwards.count = -1
        self._commit()

    def discard(self) -> None:
        """Drops what was observed since the last commit, for an optimizer step that is not taken (a loss scale skips it, say).

        No counter moves. In a `shard_map`, call it on every device.
        """
        write(self.pending, jnp.zeros_like(read(self.pending)))

    def weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """The weight that `__call__` would apply to each loss, in canonical order: scalars on the device. Changes no state.

        ``count``, ``share`` and what it raises: as `__call__`.
        """
        return self._weights(self._inputs(loss, count, share))

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """What `__call__` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. Changes
            no state. For an absent loss all are 0.

        ``count``, ``share`` and what it raises: as `__call__`.
        """
        inputs = self._inputs(loss, count, share)
        weights = self._weights(inputs).values()
        return broken_down(inputs.names, inputs.terms, inputs.dtypes, weights, self._aggregate(inputs))

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework.

        Returns:
            ``schema``, ``balancer``, ``settings``, ``names`` and ``state``. These are copies, and copying waits for the device.
            Save it with `loss_balancers.spec.save_state`: plain ``torch.load`` refuses NumPy arrays (docs/state.md).

        Raises:
            RuntimeError: This balancer is abstract.
        """
        settings = self._settings
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self._state())):
            what = "Build it outside of `nnx.eval_shape` first."
            raise spec.errors.no_values_to_export("abstract", what)
        state = {name: np.array(read(variable)) for name, variable in self._state().items()}
        return spec.exported(settings.balancer, settings.as_json(), settings.names, state)

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
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.state, exported, renamed)
        state = self._state()
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)):
            what = "Build it outside of `nnx.eval_shape` first."
            raise spec.errors.state_without_values("abstract", what)
        for name, variable in state.items():
            write(variable, jnp.array(arrays[name]))

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self._settings, field.name)!r}" for field in fields(self._settings))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        return repr(self)  # nnx's own shows no static attribute

    @abstractmethod
    def _factors(self, inputs: Inputs) -> Array:
        """The factors of the losses (spec A5), float32, made from committed state and, if the method says so, ``inputs.losses``."""

    def _aggregate(self, inputs: Inputs) -> Array:
        """The aggregate: the sum of the losses by their factors."""
        factors = self._factors(inputs)
        return balance(inputs.terms, inputs.dtypes, inputs.masked(factors) if len(factors) == len(inputs.names) else factors)

    def _committed(self, mean: Array, present: Array) -> State:
        """The method's own state after a commit of the ``mean`` of each loss; unchanged for a loss that is not ``present``."""
        del mean, present
        return {}

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Raises unless the losses have the fixed names."""
        if names != self.names:
            raise spec.errors.fixed_names(self.names, names)

    def _weights(self, inputs: Inputs) -> dict[str, Array]:
        factors = expanded(self._factors(inputs), len(inputs.names))
        return dict(zip(inputs.names, unstacked(inputs.masked(factors)), strict=True))

    def _inputs(self, loss: Mapping[str, Any], count: Any, share: Any) -> Inputs:
        """The inputs of a call. Everything that can be wrong with it is found here, before anything is observed."""
        names, terms, dtypes = self._ordered(loss)
        self._check_names(names)
        if self._scalars and terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        amounts = None if count is None and share is None else spec.checked_amounts(names, count, share)
        losses = as_observed([] if len(self._values()["pending"]) == 2 else terms)
        inputs = Inputs(names, terms, dtypes, losses, losses)
        return inputs if amounts is None else with_amounts(inputs, amounts)

    def _observe(self, inputs: Inputs, stacklevel: int) -> None:
        pending = self._state()["pending"]
        if self._auto_step is None:
            self._warn_if_never_stepped(stacklevel + 1)
        else:
            due = enough(read(pending), self._auto_step)
            self._commit(due if self._axis_name is None else lax.pmax(due, self._axis_name))
        write(pending, observed(read(pending), inputs.sums, inputs.amounts, inputs.valid))

    def _commit(self, due: Array | None = None) -> None:
        """Commits; if ``due`` is given, only where it is true, so that the decision stays on the device."""
        variables, state = self._state(), self._values()
        pending = self._over_ranks(state["pending"])
        own = self._committed(*pending_mean(pending)) if len(pending) > 2 else {}
        new = own | advanced(state, pending)
        if due is not None:
            new = {name: jnp.where(due, value, state[name]) for name, value in new.items()}
        # Everything slow is done. An interrupt between these assignments would leave a part of the commit, but is unlikely.
        for name, value in new.items():
            write(variables[name], value)

    def _over_ranks(self, pending: Array) -> Array:
        """The sum of ``pending`` over the mapped axis, if there is one."""
        return pending if self._axis_name is None else lax.psum(pending, self._axis_name)

    def _state(self) -> dict[str, BalancerState]:
        return {entry.name: getattr(self, entry.name) for entry in self._settings.state}

    def _values(self) -> State:
        return {name: read(variable) for name, variable in self._state().items()}

    def _scheduled(self) -> Array:
        """What the schedules give at this step."""
        assert self._table is not None
        return look_up(read(self._table), read(self.steps))

    def _warn_if_never_stepped(self, stacklevel: int) -> None:
        if self._forwards.count >= 0:
            self._forwards.count += 1
            if self._forwards.count == _PATIENCE:
                self._forwards.count = -1
                warnings.warn(spec.errors.never_stepped(_PATIENCE), UserWarning, stacklevel=stacklevel)
