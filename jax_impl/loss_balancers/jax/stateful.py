"""Balancers that change over time: state that `__call__` observes and `step()` commits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.carried import (
    BalancerState,
    BalancerTable,
    Forwards,
    check_axis_name,
    check_held,
    read,
    write,
)
from loss_balancers.jax.moving import MovesState
from loss_balancers.jax.observing import (
    Inputs,
    State,
    advanced,
    enough,
    look_up,
    observed,
    pending_mean,
)
from loss_balancers.jax.weighed import WeighedLossBalancer
from loss_balancers.spec.formats import PATIENCE


class StatefulLossBalancer(MovesState, WeighedLossBalancer):
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

    steps: BalancerState
    skipped: BalancerState
    pending: BalancerState

    def __init__(self, settings: Any, auto_step: int | None, axis_name: Any) -> None:
        super().__init__(settings)
        spec.check_auto_step(auto_step)
        check_axis_name(axis_name)
        self._auto_step = auto_step
        self._axis_name = axis_name
        self._forwards = Forwards()
        self.use_running_average = False
        for entry in settings.state:
            setattr(self, entry.name, BalancerState(jnp.zeros(entry.shape, entry.dtype)))
        table = settings.table
        self._table = None if table is None else BalancerTable(jnp.asarray(table))

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
        return self._aggregate(self._values(), inputs)

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
        self._write(self._stepped(self._values()))

    def discard(self) -> None:
        """Drops what was observed since the last commit, for an optimizer step that is not taken (a loss scale skips it, say).

        No counter moves. In a `shard_map`, call it on every device.
        """
        self._forwards.count = -1  # whoever discards knows of `step()`
        write(self.pending, jnp.zeros_like(self._checked_pending()))

    def _committed(self, state: State, mean: Array, present: Array) -> State:
        """The method's own state after a commit of the ``mean`` of each loss; unchanged for a loss that is not ``present``."""
        del state, mean, present
        return {}

    @property
    def _observes(self) -> bool:
        return any(entry.name == "pending" and entry.named for entry in self._settings.state)

    def _observe(self, inputs: Inputs, stacklevel: int, after: bool = False) -> None:
        if self._auto_step is None and not after:
            self._warn_if_never_stepped(stacklevel + 1)
        self._write(self._taken(self._values(), inputs, after))

    def _taken(self, state: State, inputs: Inputs, after: bool = False) -> State:
        """What a training call changes of ``state``: it commits if ``auto_step`` says so, and observes; or what `update()` does."""
        due = {}
        if self._auto_step is not None and not after:
            due = self._stepped(state, self._over_ranks(enough(state["pending"], self._auto_step), lax.pmax))
            state = state | due
        return due | {"pending": observed(state["pending"], inputs.sums, inputs.amounts, inputs.valid, after)}

    def _stepped(self, state: State, due: Array | None = None) -> State:
        """What a commit changes of ``state``; if ``due`` is given, only where it is true: the decision stays on the device."""
        pending = self._over_ranks(state["pending"])
        own = self._committed(state | {"pending": pending}, *pending_mean(pending)) if len(pending) > 2 else {}
        new = own | advanced(state, pending)
        return new if due is None else {name: jnp.where(due, value, state[name]) for name, value in new.items()}

    def _write(self, new: State) -> None:
        # Everything slow is done. An interrupt between these assignments would leave a part of the commit, but is unlikely.
        for name, value in new.items():
            write(getattr(self, name), value)

    def _over_ranks(self, x: Array, reduce: Callable[..., Array] = lax.psum) -> Array:
        """``x``, reduced over the mapped axis, if there is one."""
        return x if self._axis_name is None else reduce(x, self._axis_name)

    def _state(self) -> dict[str, BalancerState]:
        return {entry.name: getattr(self, entry.name) for entry in self._settings.state}

    def _check_held(self) -> None:
        """Raises unless state and table have values, in the shapes that they were made with."""
        variables: dict[str, Any] = dict(self._state())
        shapes = {entry.name: entry.shape for entry in self._settings.state}
        if self._table is not None:
            variables["_table"], shapes["_table"] = self._table, self._table.shape[-2:]  # not built anew for its shape
        check_held(variables, shapes)

    def _checked_pending(self) -> Array:
        """``pending``, once it is known that there are values."""
        self._check_held()
        return read(self.pending)

    def _values(self) -> State:
        self._check_held()
        return {name: read(variable) for name, variable in self._state().items()}

    def _scheduled(self, state: State) -> Array:
        """What the schedules give at the step of ``state``."""
        assert self._table is not None
        return look_up(read(self._table), state["steps"])

    def _warn_if_never_stepped(self, stacklevel: int) -> None:
        if self._forwards.count >= 0:
            self._forwards.count += 1
            if self._forwards.count == PATIENCE:
                self._forwards.count = -1
                warnings.warn(spec.errors.never_stepped(PATIENCE), UserWarning, stacklevel=stacklevel)
