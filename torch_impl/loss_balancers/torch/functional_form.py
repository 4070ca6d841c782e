"""A balancer as pure functions of its state, as `torch.func` has modules: for loops that carry their state themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loss_balancers import spec
from loss_balancers.torch.base import DistillationLossBalancer
from loss_balancers.torch.moving import MovesState
from loss_balancers.torch.observing import State
from loss_balancers.torch.transforms import check_not_transformed


def functional_form(balancer: DistillationLossBalancer) -> FunctionalForm:
    """A balancer as pure functions, with the same bits: ``init``, ``apply`` and ``commit``.

    Args:
        balancer: A balancer of this library, or one of your own: without parameters and buffers, or a `StatefulLossBalancer`, or a
            `LearnedLossBalancer`. What it holds as state is neither read nor changed.

    Raises:
        TypeError: ``balancer`` is something else.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import EMANormalizedLossBalancer, functional_form
        >>> form = functional_form(EMANormalizedLossBalancer(("student_loss", "MSELoss_0"), lagged=True))
        >>> def objective(w, state):
        ...     loss, state = form.apply(state, {"student_loss": w, "MSELoss_0": 8 * w})
        ...     return loss, (loss, state)
        >>> state = form.init()
        >>> for _ in range(2):
        ...     gradient, (loss, state) = torch.func.grad(objective, has_aux=True)(torch.tensor(0.5), state)
        ...     state = form.commit(state)
        >>> print(loss.item(), gradient.item(), state["steps"].item())
        2.0 4.0 2
    """
    return FunctionalForm(balancer)


class FunctionalForm:
    """The pure functions that `functional_form` returns: see there.

    A state is a dict from name to tensor, which `torch.save`, `torch.utils._pytree`, `torch.func.vmap` and every other transform
    take. It is empty where the same losses have the same aggregate at every step: a `StaticLossBalancer`, or numbers as weights. A
    parameter is part of it, by which you differentiate and which you update yourself. No function changes a state that it is
    given. None warns of steps that never come.

    ``loss``, ``count``, ``share``, and what a function raises, are as for the balancer. Besides, each raises a ValueError if
    ``state`` is not a state of this balancer.
    """

    def __init__(self, balancer: DistillationLossBalancer) -> None:
        entries: tuple[spec.StateEntry, ...] = ()
        if isinstance(balancer, MovesState):
            entries = balancer._settings.entries
        elif not isinstance(balancer, DistillationLossBalancer) or [*balancer.parameters(), *balancer.buffers()]:
            raise spec.errors.not_a_balancer(balancer)
        self._balancer: Any = balancer
        self._entries = entries if entries and self._balancer._settings.can_change else ()
        self._expected = {entry.name: (entry.shape, entry.dtype) for entry in self._entries}
        #: What a balancer whose state says nothing reads its weights by: zeros.
        self._zero = tuple(entry.name for entry in entries)

    def init(self) -> State:
        """The state at the beginning: int32 and float32 tensors by name, as the balancer's docstring lists them.

        It is on the device of the balancer.
        """
        return {entry.name: self._beginning(entry) for entry in self._entries}

    def _beginning(self, entry: spec.StateEntry) -> Tensor:
        held = getattr(self._balancer, entry.name).detach()
        return torch.tensor(entry.start, dtype=held.dtype, device=held.device) if entry.start else torch.zeros_like(held)

    def apply(
        self, state: State, loss: Mapping[str, Float[Tensor, ...]], *, count: Any = None, share: Any = None
    ) -> tuple[Float[Tensor, "*shape"], State]:
        """A training call: the aggregate, and the state with the losses observed."""
        if not self._entries:
            return self.evaluate(state, loss, count=count, share=share), state
        self._check(state)
        inputs = self._balancer._inputs(loss, count, share)
        if "pending" in state:
            state = {**state, **self._balancer._taken(state, inputs)}
        return self._balancer._aggregate(state, inputs), state

    def evaluate(
        self, state: State, loss: Mapping[str, Float[Tensor, ...]], *, count: Any = None, share: Any = None
    ) -> Float[Tensor, "*shape"]:
        """The aggregate alone, for validation: nothing is observed."""
        self._check(state)
        if not self._zero:
            return self._balancer(loss, **_given(count, share))
        return self._balancer._aggregate(self._whole(state), self._balancer._inputs(loss, count, share))

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
        return {**state, "pending": torch.zeros_like(state["pending"])} if "pending" in state else state

    def weights(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """The weight that `apply` would apply to each loss, in canonical order."""
        self._check(state)
        if not self._zero:
            return self._balancer.weights(loss, **_given(count, share))
        return self._balancer._weights(self._whole(state), self._balancer._inputs(loss, count, share))

    def breakdown(self, state: State, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Tensor]:
        """What `apply` makes of each loss, for logging: as the balancer's `breakdown`."""
        self._check(state)
        if not self._zero:
            return self._balancer.breakdown(loss, **_given(count, share))
        return self._balancer._broken_down(self._whole(state), self._balancer._inputs(loss, count, share))

    def export_state(self, state: State) -> dict[str, Any]:
        """The state as NumPy arrays with settings and names, to be loaded in either framework: as the balancer's `export_state`.

        Raises:
            TypeError: The balancer is one without state.
        """
        check_not_transformed("export_state()")
        self._check(state)
        settings = self._settings_of_state()
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in self._whole(state).items()}
        return spec.exported(settings.balancer, settings.as_json(), settings.names, arrays)

    def load_state(self, exported: Mapping[str, Any], *, renamed: Mapping[str, str | None] | None = None) -> State:
        """The state that `export_state` returned, in either framework. ``renamed`` and errors: as the balancer's `load_state`.

        Raises:
            TypeError: The balancer is one without state.
        """
        check_not_transformed("load_state()")
        settings = self._settings_of_state()
        arrays = spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.entries, exported, renamed)
        return {name: torch.from_numpy(arrays[name]).to(zero.device) for name, zero in self.init().items()}

    def _whole(self, state: State) -> State:
        """The state; if it says nothing, the zeros that weights are read by."""
        return state or {name: torch.zeros_like(getattr(self._balancer, name)) for name in self._zero}

    def _settings_of_state(self) -> Any:
        if not self._zero:
            raise spec.errors.no_state(type(self._balancer).__name__)
        return self._balancer._settings

    def _check(self, state: State) -> None:
        """Raises unless the state has this balancer's entries, on its device."""
        received = {name: _described(x) for name, x in state.items()} if isinstance(state, Mapping) else _described(state)
        if received != self._expected:
            raise spec.errors.functional_state(type(self._balancer).__name__, self._expected, received)
        for name, x in state.items():
            device = getattr(self._balancer, name).device
            if x.device != device:
                raise spec.errors.functional_device(name, device, x.device)


def _described(x: Any) -> tuple[Any, str]:
    """The shape and the dtype of a tensor; of anything else None and its type."""
    return (tuple(x.shape), str(x.dtype).removeprefix("torch.")) if isinstance(x, Tensor) else (None, type(x).__name__)


def _given(count: Any, share: Any) -> dict[str, Any]:
    """The keywords that are given: a balancer of one's own need not take them."""
    return {name: amount for name, amount in (("count", count), ("share", share)) if amount is not None}
