"""Balancers that change over time: state that `forward` observes and `step()` commits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.compiler import is_dynamo_compiling

from loss_balancers import spec
from loss_balancers.spec.formats import PATIENCE
from loss_balancers.torch.carried import CarriesState
from loss_balancers.torch.functional import KnownFactors
from loss_balancers.torch.known import LastFactors
from loss_balancers.torch.moving import MovesState, copy_all
from loss_balancers.torch.observing import Inputs, State, advanced, observed, pending_mean, without_losses
from loss_balancers.torch.recomputation import recomputing, unless_recomputing
from loss_balancers.torch.transforms import check_not_transformed, under_torch_func
from loss_balancers.torch.weighed import WeighedLossBalancer
from loss_balancers.torch.wrapped import check_not_joining


def _check_process_group(group: Any) -> None:
    """Raises unless ``group`` is a process group, None or False; `new_group` gives an int to the ranks that are not in it."""
    if group is None or group is False or not dist.is_available():
        return
    if not isinstance(group, dist.ProcessGroup) and group != dist.GroupMember.NON_GROUP_MEMBER:
        raise spec.errors.process_group_type(group)


class StatefulLossBalancer(MovesState, CarriesState, WeighedLossBalancer):
    """What the balancers that change over time share.

    Weights are a function of committed state and, only where the method says so, of the current losses, detached.
    In training mode `forward` observes the losses and changes no weight; :meth:`step` commits, once per optimizer step. Nothing
    is observed in eval mode, nor when a forward is recomputed in a backward (activation checkpointing).

    Over ranks, `step()` is one all-reduce of ``pending``. With ``auto_step`` each training forward has one, since only the
    device knows whether a commit is due: all ranks must then have the same number of forwards. With ``process_group=False`` each
    rank has weights of its own. DistributedDataParallel sends rank 0's buffers to all ranks, but not those of a balancer.

    State:
        ``steps`` and ``skipped``, int32 ``()``; ``pending``, float32 ``(2 n + 2,)``, what this rank observed since the last commit.
        Each keeps its dtype whatever `half()` does to the model. ``state_dict()`` holds all of them: save it after `step()`, when
        no rank has anything pending. The table of weights is a buffer too, not saved.
    """

    steps: Tensor
    skipped: Tensor
    pending: Tensor

    def __init__(self, settings: Any, auto_step: int | None, process_group: Any) -> None:
        super().__init__(settings)
        spec.check_auto_step(auto_step)
        _check_process_group(process_group)
        self._auto_step = auto_step
        self._process_group = process_group
        self._forwards = 0
        self._last_factors = LastFactors()
        self._register(settings.state)

    def forward(self, loss: Mapping[str, Float[Tensor, ...]], *, count: Any = None, share: Any = None) -> Float[Tensor, "*shape"]:
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
        if self.training:
            self._observe(inputs, stacklevel=5)  # past two frames of nn.Module
        return self._aggregate(self._values(), inputs)

    def observe(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses as a training forward does, and computes no aggregate.

        For loops whose forward runs in eval mode, or under `torch.func`, which refuses to change state: call this beside it,
        outside of the transform, once per forward. ``count``, ``share`` and what it raises: as `forward`.
        """
        self._observe(self._inputs(loss, count, share), stacklevel=3)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after it, as a learning rate schedule.

        With a process group, the sums and counts of all ranks are added first, in one all-reduce; so all ranks must call it, even
        a rank that observed nothing. Without an observation since the last call, only the counter ``steps`` changes.
        """
        check_not_transformed("step()")
        self._forwards = -1
        state = self._commit()
        if not (is_dynamo_compiling() or self._settings.sees_losses):
            self._factors_of(state)  # made here, and not in the first forward after

    def discard(self) -> None:
        """Drops what was observed since the last commit, for an optimizer step that is not taken (a `GradScaler` skips it, say).

        No counter moves. Each rank drops its own observations, so all ranks must call it.
        """
        check_not_transformed("discard()")
        self._forwards = -1  # whoever discards knows of `step()`
        self.pending.zero_()

    def _committed(self, state: State, mean: Tensor, present: Tensor) -> State:
        """The method's own state after a commit of the ``mean`` of each loss; unchanged for a loss that is not ``present``."""
        del state, mean, present
        return {}

    def _known_factors(self, state: State, inputs: Inputs) -> KnownFactors | None:
        if inputs.present is not None or is_dynamo_compiling() or self._settings.sees_losses:
            return None
        return self._factors_of(state)

    def _factors_of(self, state: State) -> KnownFactors | None:
        """The factors that follow from committed state alone."""
        read = [state[name] for name in self._factors_follow_from(state)]
        return self._last_factors.get(read, self._table, lambda: self._factors(state, without_losses(self.names)))

    def _factors_follow_from(self, state: State) -> Iterable[str]:
        """The entries of ``state`` that factors of committed state are made of."""
        return (name for name in state if name != "pending")

    def _observe(self, inputs: Inputs, stacklevel: int, after: bool = False) -> None:
        if recomputing():
            return
        if under_torch_func():
            raise spec.errors.under_a_transform()
        if self._auto_step is None and not (after or is_dynamo_compiling()):
            self._warn_if_never_stepped(stacklevel + 1)
        pending = self.pending
        if self._auto_step is not None and not after:
            due = pending[-2:].sum() >= self._auto_step
            self._commit(unless_recomputing(due, torch.zeros_like(due)))
        if is_dynamo_compiling():
            pending.copy_(unless_recomputing(observed(pending, inputs, after=after), pending))
        else:
            observed(pending, inputs, out=pending, after=after)

    def _commit(self, due: Tensor | None = None) -> State:
        """Commits; if ``due`` is given, only where it is true. Returns the state."""
        state = self._values()
        new = self._stepped(state, due)
        copy_all([state[name] for name in new], list(new.values()))
        return state

    def _stepped(self, state: State, due: Tensor | None = None) -> State:
        """What a commit changes of ``state``; if ``due`` is given, only where it is true: the decision stays on the device."""
        pending = self._over_ranks(state["pending"])
        own = self._committed(state | {"pending": pending}, *pending_mean(pending)) if pending.shape[0] > 2 else {}
        new = own | advanced(state, pending)
        return new if due is None else {name: torch.where(due, value, state[name]) for name, value in new.items()}

    def _taken(self, state: State, inputs: Inputs, after: bool = False) -> State:
        """What a training call changes of ``state``: it commits if ``auto_step`` says so, and observes; or what `update()` does."""
        due: State = {}
        if self._auto_step is not None and not after:
            due = self._stepped(state, state["pending"][-2:].sum() >= self._auto_step)
            state = state | due
        return due | {"pending": observed(state["pending"], inputs, after=after)}

    def _over_ranks(self, pending: Tensor) -> Tensor:
        """The sum of ``pending`` over the ranks of the process group, if there is one and this rank is in it."""
        group = self._process_group
        if isinstance(group, int) or not (dist.is_available() and dist.is_initialized()):  # False, or an outsider's group
            return pending
        if not is_dynamo_compiling():
            check_not_joining(self)
        pending = pending.clone()
        dist.all_reduce(pending, group=group)
        return pending

    def _warn_if_never_stepped(self, stacklevel: int) -> None:
        if self._forwards >= 0:
            self._forwards += 1
            if self._forwards == PATIENCE:
                self._forwards = -1
                warnings.warn(spec.errors.never_stepped(PATIENCE), UserWarning, stacklevel=stacklevel)
