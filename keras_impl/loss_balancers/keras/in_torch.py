"""A balancer of PyTorch as pure functions of its state, as `loss_balancers.jax.functional_form` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from loss_balancers import spec
from loss_balancers.torch import DistillationLossBalancer

State = dict[str, Tensor]


class _Methods(nn.Module):
    """Calls any method of a balancer: `functional_call` calls ``forward`` alone."""

    def __init__(self, balancer: DistillationLossBalancer) -> None:
        super().__init__()
        self.balancer = balancer

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.balancer, method)(*args, **kwargs)


class FunctionalForm:
    """The balancer's methods as functions of its state, which they do not change.

    A state is a dict from name to tensor. It is empty where the same losses have the same aggregate at every step.
    """

    def __init__(self, balancer: Any) -> None:
        self._methods = _Methods(balancer)
        self._settings = balancer._settings
        self._entries = self._settings.state if self._settings.can_change else ()

    def apply(self, state: State, loss: Mapping[str, Any], **amounts: Any) -> tuple[Tensor, State]:
        """A training call: the aggregate, and the state with the losses observed."""
        return self._called(state, "__call__", loss, training=bool(self._entries), **amounts)

    def evaluate(self, state: State, loss: Mapping[str, Any], **amounts: Any) -> Tensor:
        """The aggregate alone: nothing is observed."""
        return self._called(state, "__call__", loss, **amounts)[0]

    def observe(self, state: State, loss: Mapping[str, Any], **amounts: Any) -> State:
        """The state with the losses observed."""
        return self._called(state, "observe", loss, **amounts)[1] if state else state

    def commit(self, state: State) -> State:
        """The state after an optimizer step."""
        return self._called(state, "step")[1] if state else state

    def discard(self, state: State) -> State:
        """The state without what was observed since the last commit."""
        return self._called(state, "discard")[1] if state else state

    def weights(self, state: State, loss: Mapping[str, Any], **amounts: Any) -> dict[str, Any]:
        """The weight that `apply` would apply to each loss."""
        return self._called(state, "weights", loss, **amounts)[0]

    def breakdown(self, state: State, loss: Mapping[str, Any], **amounts: Any) -> dict[str, Tensor]:
        """What `apply` makes of each loss, for logging."""
        return self._called(state, "breakdown", loss, **amounts)[0]

    def export_state(self, state: State) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names."""
        self._check_has_state()
        return self._called(state, "export_state")[0]

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> State:
        """The state that `export_state` returned."""
        self._check_has_state()
        begin = {entry.name: torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype)) for entry in self._entries}
        return self._called(begin, "load_state", exported, renamed=renamed)[1]

    def _called(self, state: State, method: str, *args: Any, training: bool = False, **kwargs: Any) -> tuple[Any, State]:
        """What a method returns for a state, and the state after it. The method writes to copies."""
        mine = {name: value.detach().clone() for name, value in state.items()}
        self._methods.train(training)
        buffers = {f"balancer.{name}": value for name, value in mine.items()}
        return functional_call(self._methods, buffers, (method, *args), kwargs), mine

    def _check_has_state(self) -> None:
        if not self._settings.state:
            raise spec.errors.no_state(self._settings.balancer)
