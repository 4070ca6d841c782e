"""Balancers whose weights are made at every call, on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from loss_balancers import spec
from loss_balancers.torch.amounts import without_absent
from loss_balancers.torch.base import DistillationLossBalancer, broken_down
from loss_balancers.torch.functional import KnownFactors, balance
from loss_balancers.torch.observing import Inputs, State, as_observed, expanded, with_amounts
from loss_balancers.torch.recomputation import derivatives_under_hooks, saved_for_backward, saved_tensors_have_hooks
from loss_balancers.torch.rounding import FLOAT


class WeighedLossBalancer(DistillationLossBalancer):
    """What all balancers share whose weights are tensors, or derivatives, with state and without.

    Weights that are tensors follow from `_factors`. Where the settings say that they are derivatives, the aggregate is a function
    of the losses: `_aggregate` is the balancer's own, and there are no factors.

    State:
        None here. `StatefulLossBalancer` adds it.
    """

    #: Whether losses must be scalars: they must if their values make weights, or if weights are derivatives.
    _scalars: ClassVar[bool] = False
    #: Whether weights or state see the losses as a vector, which is ``losses`` of `Inputs`.
    _observes: bool

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._observes = settings.weights_are == "tensors"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order, fixed at construction; empty if the balancer takes any."""
        return self._settings.names

    def forward(self, loss: Mapping[str, Float[Tensor, ...]], *, count: Any = None, share: Any = None) -> Float[Tensor, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``.

        Args:
            loss: The losses.
            count: The number of items that each loss is the mean of, as balancers with state take it: a number, or a mapping from
                name to number. Here only 0 matters: a loss with the count 0 is absent, and its weight is 0.
            share: The part of the step's mean that each loss is, in the same forms; 0 says the same. Weights see the mean.

        Raises:
            TypeError: Both ``count`` and ``share`` are given, or one is not made of numbers. Else: see `canonical`.
            ValueError: A number is negative or not finite, or the names are not those of the losses. Else: see `canonical`.
        """
        return self._aggregate(self._values(), self._inputs(loss, count, share))

    def weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Tensor]:
        """The weight that `forward` would apply to each loss, in canonical order: scalars on the device. Changes no state.

        If the aggregate is a function of the losses, there are no weights: in their place the derivative of the aggregate by each
        loss, detached, in the loss's dtype.

        ``count``, ``share`` and what it raises: as `forward`.
        """
        return self._weights(self._values(), self._inputs(loss, count, share))

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Tensor]:
        """What `forward` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. Changes
            no state. For an absent loss all are 0. ``total`` is the aggregate; where weights are derivatives, the products need
            not add up to it.

        ``count``, ``share`` and what it raises: as `forward`.
        """
        return self._broken_down(self._values(), self._inputs(loss, count, share))

    def extra_repr(self) -> str:
        """What ``repr`` shows of the settings."""
        return ", ".join(f"{field.name}={getattr(self._settings, field.name)!r}" for field in fields(self._settings))

    def _values(self) -> State:
        """The values of the state, by name: what `step()` committed last, and what is pending."""
        return {}

    def _factors(self, state: State, inputs: Inputs) -> Tensor:
        """The factors of the losses (spec A5), float32, made from committed state and, if the method says so, ``inputs.losses``.

        Every balancer whose weights are tensors has its own.
        """
        raise NotImplementedError

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        """The aggregate: the sum of the losses by their factors."""
        known = self._known_factors(state, inputs)
        if known is not None:
            return balance(inputs.terms, inputs.dtypes, known)
        factors = saved_for_backward(self._factors(state, inputs))  # a graph may overwrite the state that the factors are made of
        return balance(inputs.terms, inputs.dtypes, inputs.masked(factors) if len(factors) == len(inputs.names) else factors)

    def _known_factors(self, state: State, inputs: Inputs) -> KnownFactors | None:
        """The factors as they were made of a state with these values before; None if they must be made at every call."""
        del state, inputs
        return None

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Raises unless the losses have the fixed names."""
        # As lists: Dynamo of PyTorch 2.11 and before cannot compare a tuple that is a constant of the host.
        if list(names) != list(self.names):
            raise spec.errors.fixed_names(self.names, names)

    def _broken_down(self, state: State, inputs: Inputs) -> dict[str, Tensor]:
        weights = self._weights(state, inputs).values()
        return broken_down(inputs.names, inputs.terms, inputs.dtypes, weights, self._aggregate(state, inputs))

    def _weights(self, state: State, inputs: Inputs) -> dict[str, Tensor]:
        if self._settings.weights_are == "derivatives":
            return dict(zip(inputs.names, derivatives(partial(self._aggregate, state), inputs), strict=True))
        factors = expanded(self._factors(state, inputs), len(inputs.names))
        return dict(zip(inputs.names, inputs.masked(factors).unbind(0), strict=True))

    def _inputs(self, loss: Mapping[str, Any], count: Any, share: Any) -> Inputs:
        """The inputs of a call. Everything that can be wrong with it is found here, before anything is observed."""
        names, terms, dtypes = self._ordered(loss)
        self._check_names(names)
        if self._scalars and terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        if torch.float64 in dtypes and not self._settings.takes_float64:
            raise spec.errors.losses_of_float64([name for name, dtype in zip(names, dtypes, strict=True) if dtype == torch.float64])
        for name, x in zip(names, terms, strict=True):
            if type(x) is not Tensor and hasattr(x, "device_mesh"):
                raise spec.errors.dtensor_loss(name)
        amounts = None if count is None and share is None else spec.checked_amounts(names, count, share)
        pending = self._checked_pending()
        if pending is not None and pending.device != terms[0].device:
            raise spec.errors.state_device(pending.device, terms[0].device)
        if self._observes:
            losses = as_observed(terms)
        else:
            losses = torch.empty(0, dtype=FLOAT, device=terms[0].device) if pending is None else pending[:0]
        inputs = Inputs(names, terms, dtypes, losses, losses)
        return inputs if amounts is None else with_amounts(inputs, amounts)

    def _checked_pending(self) -> Tensor | None:
        """What was observed since the last commit, once it is known to be as it must; None if there is no state."""
        return None


def derivatives(aggregate: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    """The derivative of an aggregate by each loss, detached, in the loss's dtype: 0 for a loss that is absent or unused."""
    terms = tuple(x.detach() for x in inputs.terms)

    def of_terms(terms: tuple[Tensor, ...]) -> Tensor:
        x = inputs  # entry by entry: Dynamo of PyTorch 2.8 traces neither `_replace` nor a slice of a named tuple
        return aggregate(Inputs(x.names, list(terms), x.dtypes, x.losses, x.sums, x.amounts, x.present, x.valid, x.shares))

    # Not always `torch.autograd.grad`: it raises within a transform of `torch.func`, and Dynamo does not trace it (PyTorch 2.13).
    found = derivatives_under_hooks(of_terms, terms) if saved_tensors_have_hooks() else grad(of_terms)(terms)
    return list(found) if inputs.present is None else without_absent(found, inputs.present)
