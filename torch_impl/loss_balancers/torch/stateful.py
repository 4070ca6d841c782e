"""Balancers that change over time: state that `forward` observes and `step()` commits."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.compiler import is_dynamo_compiling

from loss_balancers import spec
from loss_balancers.torch.base import DistillationLossBalancer
from loss_balancers.torch.portable import div, rmul
from loss_balancers.torch.rounding import compute_dtype, keep, narrow, widen

State = dict[str, Tensor]

FLOAT = torch.float32

#: After how many training forwards without a `step()` a balancer warns.
_PATIENCE = 100


def observed(pending: Tensor, losses: Tensor) -> Tensor:
    """``pending`` with the losses added; with one call more left out if a sum would not be finite (spec T3)."""
    one, zero = losses.new_ones(1), losses.new_zeros(1)
    taken = keep(pending + torch.cat([losses, one, zero]))
    left_out = pending + torch.cat([torch.zeros_like(losses), zero, one])
    return torch.where(taken.isfinite().all(), taken, left_out)


def pending_mean(pending: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the observed losses, and whether it is one (spec T4)."""
    sums, count = pending[:-2], pending[-2]
    informative = (count > 0) & sums.isfinite().all()
    return div(torch.where(informative, sums, 1.0), torch.where(informative, count, 1.0).expand_as(sums)), informative


def advanced(state: State, pending: Tensor, due: Tensor) -> State:
    """The counters after a commit of ``pending``, the sums cleared; unchanged where a commit is not due (spec T4)."""
    return {
        "steps": state["steps"] + due.to(torch.int32),
        "skipped": state["skipped"] + torch.where(due, pending[-1], 0.0).to(torch.int32),
        "pending": torch.where(due, 0.0, state["pending"]),
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


def _recomputing() -> bool:
    """Whether this is a forward that activation checkpointing repeats: one within a backward."""
    return not is_dynamo_compiling() and torch._C._current_graph_task_id() != -1


class StatefulLossBalancer(DistillationLossBalancer):
    """What the balancers that change over time share.

    Weights are a function of committed state and, only where the method says so, of the current losses, detached.
    In training mode `forward` observes the losses and changes no weight; :meth:`step` commits, once per optimizer step. Nothing
    is observed in eval mode, nor when a forward is recomputed in a backward (activation checkpointing).

    State:
        ``steps`` and ``skipped``, int32 ``()``, buffers; ``pending``, float32 ``(n + 2,)``, what was observed since the last
        commit. Each keeps its dtype whatever `half()` does to the model. ``state_dict()`` holds all of them.
    """

    steps: Tensor
    skipped: Tensor
    pending: Tensor

    def __init__(self, settings: Any, auto_step: int | None, process_group: Any) -> None:
        super().__init__()
        spec.check_auto_step(auto_step)
        self._settings = settings
        self._auto_step = auto_step
        self._process_group = process_group
        self._forwards = 0
        for entry in settings.state:
            value = torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype))
            if entry.name == "pending":
                # No buffer: those of rank 0 are sent to all by DistributedDataParallel, over what the others have observed.
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
        if self.training and not _recomputing():
            self._observe(inputs.losses)
        return self._aggregate(inputs)

    @torch.no_grad()
    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after it, as a learning rate schedule.

        With a process group, the sums and counts of all ranks are added first, in one all-reduce; so all ranks must call it.
        Without an observation since the last call, state stays as it is but for the counter ``steps``.
        """
        self._forwards = -1
        self._commit(torch.ones((), dtype=torch.bool, device=self.steps.device))

    def weights(self, loss: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weight that `forward` would apply to each loss, in canonical order: float32 scalars on the device. Changes no state.

        Raises: as `forward`.
        """
        inputs = self._inputs(loss)
        factors = self._factors(inputs).unbind(0)
        shared = len(inputs.names) - len(factors) + 1
        return dict(zip(inputs.names, (*factors[:1] * shared, *factors[1:]), strict=True))

    def breakdown(self, loss: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `forward` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. Changes
            no state.
        """
        inputs = self._inputs(loss)
        parts: dict[str, Tensor] = {}
        for (name, weight), x in zip(self.weights(loss).items(), inputs.terms, strict=True):
            raw = x.detach()
            wide = widen(raw, compute_dtype(x.dtype))
            weighted = rmul(wide, weight.to(wide.dtype).expand_as(wide))
            parts |= {f"{name}/raw": raw, f"{name}/weight": weight, f"{name}/weighted": weighted}
        return {**parts, "total": self._aggregate(inputs).detach()}

    def export_state(self) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework.

        Returns:
            ``schema``, ``balancer``, ``settings``, ``names`` and ``state``. Copies; to copy waits for the device.
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
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(torch.from_numpy(arrays[name]))

    def extra_repr(self) -> str:
        """What ``repr`` shows of the settings."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self._settings).items() if name in self._settings.as_json())

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

    def _inputs(self, loss: Mapping[str, Any]) -> Inputs:
        names, terms, dtypes = self._ordered(loss)
        if self.names and names != self.names:
            raise spec.errors.fixed_names(self.names, names)
        if len(self.pending) == 2:
            return Inputs(names, terms, dtypes, self.pending[:0])
        if terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        return Inputs(names, terms, dtypes, as_observed(terms))

    @torch.no_grad()
    def _observe(self, losses: Tensor) -> None:
        if self._auto_step is not None:
            self._commit(self.pending[-2:].sum() >= self._auto_step)
        elif not is_dynamo_compiling():
            self._warn_if_never_stepped()
        self.pending.copy_(observed(self.pending, losses))

    def _commit(self, due: Tensor) -> None:
        """Commits where ``due``; the decision stays on the device."""
        state = self._state()
        pending = self._over_ranks(state["pending"])
        mean, informative = pending_mean(pending)
        own = {name: torch.where(due & informative, value, state[name]) for name, value in self._committed(mean).items()}
        for name, value in (own | advanced(state, pending, due)).items():
            state[name].copy_(value)

    def _over_ranks(self, pending: Tensor) -> Tensor:
        """The sum of ``pending`` over the ranks of the process group, if there is one."""
        group = self._process_group
        if group is False or not (dist.is_available() and dist.is_initialized()):
            return pending
        pending = pending.clone()
        dist.all_reduce(pending, group=group)
        return pending

    def _state(self) -> State:
        return {entry.name: getattr(self, entry.name) for entry in self._settings.state}

    def _warn_if_never_stepped(self) -> None:
        if self._forwards >= 0:
            self._forwards += 1
            if self._forwards == _PATIENCE:
                self._forwards = -1
                warnings.warn(spec.errors.never_stepped(_PATIENCE), UserWarning, stacklevel=6)  # past two frames of nn.Module

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves state to another device with the model, and leaves its formats as they are."""
        if recurse:
            for module in self.children():
                module._apply(fn)

        def moved(x: Tensor) -> Tensor:
            return fn(x.view(torch.int32)).view(x.dtype)  # as integers, which `half()` and its like pass by

        self.pending, self._table = moved(self.pending), moved(self._table)
        return super()._apply(moved, recurse=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "pending"] = self.pending

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        # For a moment a buffer, so that it is found, checked and copied as one.
        pending = self.pending
        del self.pending
        self.register_buffer("pending", pending)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        del self.pending
        self.pending = pending
