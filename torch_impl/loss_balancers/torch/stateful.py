"""Balancers that change over time: state that `forward` observes and `step()` commits."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.compiler import is_dynamo_compiling
from torch.nn.functional import pad

from loss_balancers import spec
from loss_balancers.torch.base import DistillationLossBalancer, broken_down
from loss_balancers.torch.carried import CarriesState
from loss_balancers.torch.portable import div_of_kept
from loss_balancers.torch.recomputation import recomputing, unless_recomputing
from loss_balancers.torch.rounding import finite, keep, narrow, widen

State = dict[str, Tensor]

FLOAT = torch.float32

#: After how many training forwards without a `step()` a balancer warns.
_PATIENCE = 100


def observed(pending: Tensor, losses: Tensor) -> Tensor:
    """``pending`` with the losses added; with one call more left out if a sum would not be finite (spec T3)."""
    taken = keep(pending + pad(pad(losses, (0, 1), value=1.0), (0, 1)))
    left_out = pending + pad(torch.zeros_like(pending[:-1]), (0, 1), value=1.0)
    return torch.where(finite(taken).all(), taken, left_out)


def pending_mean(pending: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the observed losses, and whether it is one (spec T4)."""
    sums, count = pending[:-2], pending[-2]
    informative = (count > 0) & finite(sums).all()
    return div_of_kept(torch.where(informative, sums, 1.0), torch.where(informative, count, 1.0).expand_as(sums)), informative


def advanced(state: State, pending: Tensor) -> State:
    """The counters after a commit of ``pending``, the sums cleared (spec T4)."""
    return {
        "steps": state["steps"] + 1,
        "skipped": state["skipped"] + pending[-1].to(torch.int32),
        "pending": torch.zeros_like(pending),
    }


def look_up(table: Tensor, step: Tensor) -> Tensor:
    """The row of a step: the last one from the table's end on."""
    return table.index_select(0, step.clamp(max=len(table) - 1).reshape(1)).squeeze(0)


def as_observed(terms: list[Tensor]) -> Tensor:
    """The losses as state sees them: a float32 vector, detached, rounded and flushed (spec T2)."""
    detached = [x.detach() for x in terms]
    return keep(torch.stack([narrow(x, FLOAT) if x.dtype == torch.float64 else widen(x, FLOAT) for x in detached]))


class Inputs(NamedTuple):
    """The losses of a call in canonical order, and what the state sees of them: an empty vector if it observes none."""

    names: tuple[str, ...]
    terms: list[Tensor]
    dtypes: tuple[torch.dtype, ...]
    losses: Tensor


def _check_process_group(group: Any) -> None:
    """Refuses what is no process group, None or False; `new_group` gives an int to the ranks that are not in it."""
    if group is None or group is False or not dist.is_available():
        return
    if not isinstance(group, dist.ProcessGroup) and group != dist.GroupMember.NON_GROUP_MEMBER:
        raise spec.errors.process_group_type(group)


class StatefulLossBalancer(CarriesState, DistillationLossBalancer):
    """What the balancers that change over time share.

    Weights are a function of committed state and, only where the method says so, of the current losses, detached.
    In training mode `forward` observes the losses and changes no weight; :meth:`step` commits, once per optimizer step. Nothing
    is observed in eval mode, nor when a forward is recomputed in a backward (activation checkpointing).

    Over ranks, `step()` is one all-reduce of ``pending``. With ``auto_step`` each training forward has one, since what is due is
    known on the device alone: all ranks must then have equally many forwards. With ``process_group=False`` each rank has weights
    of its own, unless DistributedDataParallel sends rank 0's buffers to all, as it does by default.

    State:
        ``steps`` and ``skipped``, int32 ``()``; ``pending``, float32 ``(n + 2,)``, what this rank observed since the last commit.
        Each keeps its dtype whatever `half()` does to the model. ``state_dict()`` holds all of them: save it after `step()`, when
        no rank has anything pending.
    """

    #: Whether losses must be scalars: where their values make weights.
    _scalars: ClassVar[bool] = False

    steps: Tensor
    skipped: Tensor

    def __init__(self, settings: Any, auto_step: int | None, process_group: Any) -> None:
        super().__init__()
        spec.check_auto_step(auto_step)
        _check_process_group(process_group)
        self._settings = settings
        self._auto_step = auto_step
        self._process_group = process_group
        self._forwards = 0
        for entry in settings.state:
            value = torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype))
            if entry.name == "pending":
                self.pending = value
            else:
                self.register_buffer(entry.name, value)
        self._table = torch.tensor(settings.table)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order, fixed at construction; empty if the balancer takes any."""
        return self._settings.names

    def forward(self, loss: Mapping[str, Float[Tensor, ...]]) -> Float[Tensor, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``."""
        inputs = self._inputs(loss)
        if self.training:
            self._observe(inputs.losses, stacklevel=5)  # past two frames of nn.Module
        return self._aggregate(inputs)

    def observe(self, loss: Mapping[str, Any]) -> None:
        """Observes the losses as a training forward does, and computes no aggregate.

        For loops whose forward runs in eval mode, or under `torch.func`, which refuses to change state: call this beside it,
        outside of the transform, once per forward.

        Raises: as `forward`.
        """
        self._observe(self._inputs(loss).losses, stacklevel=3)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after it, as a learning rate schedule.

        With a process group, the sums and counts of all ranks are added first, in one all-reduce; so all ranks must call it, also
        one that observed nothing. Without an observation since the last call, state stays as it is but for the counter ``steps``.
        """
        self._forwards = -1
        self._commit()

    def weights(self, loss: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weight that `forward` would apply to each loss, in canonical order: scalars on the device. Changes no state.

        Raises: as `forward`.
        """
        return self._weights(self._inputs(loss))

    def breakdown(self, loss: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `forward` makes of each loss, for logging: detached, on the device, the same names at every step.

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
        state = {name: value.cpu().numpy().copy() for name, value in self._state().items()}
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
        for name, value in self._state().items():
            value.copy_(torch.from_numpy(arrays[name]))

    def extra_repr(self) -> str:
        """What ``repr`` shows of the settings."""
        return ", ".join(f"{field.name}={getattr(self._settings, field.name)!r}" for field in fields(self._settings))

    @abstractmethod
    def _factors(self, inputs: Inputs) -> Tensor:
        """The factors of the losses (spec A5), float32, by committed state and, if the method says so, ``inputs.losses``."""

    @abstractmethod
    def _aggregate(self, inputs: Inputs) -> Tensor:
        """The aggregate."""

    def _committed(self, mean: Tensor) -> State:
        """The method's own state after a commit of ``mean``."""
        del mean
        return {}

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Refuses losses of other names than those fixed."""
        if names != self.names:
            raise spec.errors.fixed_names(self.names, names)

    def _weights(self, inputs: Inputs) -> dict[str, Tensor]:
        factors = self._factors(inputs).unbind(0)
        shared = len(inputs.names) - len(factors) + 1
        return dict(zip(inputs.names, (*factors[:1] * shared, *factors[1:]), strict=True))

    def _inputs(self, loss: Mapping[str, Any]) -> Inputs:
        """All that can be wrong with a call is found here, before anything is observed."""
        names, terms, dtypes = self._ordered(loss)
        self._check_names(names)
        if self._scalars and terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        if len(self._state()["pending"]) == 2:
            return Inputs(names, terms, dtypes, self._table[0, :0])
        return Inputs(names, terms, dtypes, as_observed(terms))

    def _observe(self, losses: Tensor, stacklevel: int) -> None:
        if recomputing():
            return
        if not is_dynamo_compiling():
            if torch._C._are_functorch_transforms_active():
                raise spec.errors.under_a_transform()
            if self._auto_step is None:
                self._warn_if_never_stepped(stacklevel + 1)
        if self._auto_step is not None:
            due = self.pending[-2:].sum() >= self._auto_step
            self._commit(unless_recomputing(due, torch.zeros_like(due)))
        self.pending.copy_(unless_recomputing(observed(self.pending, losses), self.pending))

    def _commit(self, due: Tensor | None = None) -> None:
        """Commits, with ``due`` where that is true: the decision stays on the device."""
        state = self._state()
        pending = self._over_ranks(state["pending"])
        mean, informative = pending_mean(pending)
        own = {name: torch.where(informative, value, state[name]) for name, value in self._committed(mean).items()}
        for name, value in (own | advanced(state, pending)).items():
            state[name].copy_(value if due is None else torch.where(due, value, state[name]))

    def _over_ranks(self, pending: Tensor) -> Tensor:
        """The sum of ``pending`` over the ranks of the process group, if there is one and this rank is in it."""
        group = self._process_group
        if isinstance(group, int) or not (dist.is_available() and dist.is_initialized()):  # False, or an outsider's group
            return pending
        pending = pending.clone()
        dist.all_reduce(pending, group=group)
        return pending

    def _state(self) -> State:
        self._bring_table()  # FSDP2 moves the rest without a word
        return {entry.name: getattr(self, entry.name) for entry in self._settings.state}

    def _warn_if_never_stepped(self, stacklevel: int) -> None:
        if self._forwards >= 0:
            self._forwards += 1
            if self._forwards == _PATIENCE:
                self._forwards = -1
                warnings.warn(spec.errors.never_stepped(_PATIENCE), UserWarning, stacklevel=stacklevel)
