"""Balancers whose weights are made at every call, on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.amounts import unstacked, without_absent
from loss_balancers.jax.base import DistillationLossBalancer, broken_down
from loss_balancers.jax.functional import balance
from loss_balancers.jax.observing import Inputs, State, as_observed, expanded, with_amounts


class WeighedLossBalancer(DistillationLossBalancer):
    """What all balancers share whose weights are tensors, or derivatives, with state and without.

    Weights that are tensors follow from `_factors`. Where the settings say that they are derivatives, the aggregate is a function
    of the losses: `_aggregate` is the balancer's own, and there are no factors.

    State:
        None here. `StatefulLossBalancer` adds it.
    """

    #: Whether losses must be scalars: they must if their values make weights, or if weights are derivatives.
    _scalars: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self._settings = settings

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses in canonical order, fixed at construction; empty if the balancer takes any."""
        return self._settings.names

    def __call__(self, loss: Mapping[str, Float[Array, ...]], *, count: Any = None, share: Any = None) -> Float[Array, "*shape"]:
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

    def weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """The weight that `__call__` would apply to each loss, in canonical order: scalars on the device. Changes no state.

        If the aggregate is a function of the losses, there are no weights: in their place the derivative of the aggregate by each
        loss, detached, in the loss's dtype.

        ``count``, ``share`` and what it raises: as `__call__`.
        """
        return self._weights(self._values(), self._inputs(loss, count, share))

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """What `__call__` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. Changes
            no state. For an absent loss all are 0. ``total`` is the aggregate; where weights are derivatives, the products need
            not add up to it.

        ``count``, ``share`` and what it raises: as `__call__`.
        """
        return self._broken_down(self._values(), self._inputs(loss, count, share))

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self._settings, field.name)!r}" for field in fields(self._settings))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        return repr(self)  # nnx's own shows no static attribute

    def _values(self) -> State:
        """The values of the state, by name: what `step()` committed last, and what is pending."""
        return {}

    def _factors(self, state: State, inputs: Inputs) -> Array:
        """The factors of the losses (spec A5), float32, made from committed state and, if the method says so, ``inputs.losses``.

        Every balancer whose weights are tensors has its own.
        """
        raise NotImplementedError

    def _aggregate(self, state: State, inputs: Inputs) -> Array:
        """The aggregate: the sum of the losses by their factors."""
        factors = self._factors(state, inputs)
        return balance(inputs.terms, inputs.dtypes, inputs.masked(factors) if len(factors) == len(inputs.names) else factors)

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Raises unless the losses have the fixed names."""
        if names != self.names:
            raise spec.errors.fixed_names(self.names, names)

    def _broken_down(self, state: State, inputs: Inputs) -> dict[str, Array]:
        weights = self._weights(state, inputs).values()
        return broken_down(inputs.names, inputs.terms, inputs.dtypes, weights, self._aggregate(state, inputs))

    def _weights(self, state: State, inputs: Inputs) -> dict[str, Array]:
        if self._settings.weights_are == "derivatives":
            return dict(zip(inputs.names, derivatives(partial(self._aggregate, state), inputs), strict=True))
        factors = expanded(self._factors(state, inputs), len(inputs.names))
        return dict(zip(inputs.names, unstacked(inputs.masked(factors)), strict=True))

    def _inputs(self, loss: Mapping[str, Any], count: Any, share: Any) -> Inputs:
        """The inputs of a call. Everything that can be wrong with it is found here, before anything is observed."""
        names, terms, dtypes = self._ordered(loss)
        self._check_names(names)
        if self._scalars and terms[0].ndim:
            raise spec.errors.not_a_scalar({name: tuple(x.shape) for name, x in zip(names, terms, strict=True)})
        if jnp.float64 in dtypes and not self._settings.takes_float64:
            raise spec.errors.losses_of_float64([name for name, dtype in zip(names, dtypes, strict=True) if dtype == jnp.float64])
        amounts = None if count is None and share is None else spec.checked_amounts(names, count, share)
        losses = as_observed(terms if self._observes else [])
        inputs = Inputs(names, terms, dtypes, losses, losses)
        return inputs if amounts is None else with_amounts(inputs, amounts)

    @property
    def _observes(self) -> bool:
        """Whether weights or state see the losses as a vector, which is ``losses`` of `Inputs`."""
        return self._settings.weights_are == "tensors"


def derivatives(aggregate: Callable[[Inputs], Array], inputs: Inputs) -> list[Array]:
    """The derivative of an aggregate by each loss, detached, in the loss's dtype: 0 for a loss that is absent or unused."""
    terms = [lax.stop_gradient(x) for x in inputs.terms]
    found = jax.grad(lambda terms: aggregate(inputs._replace(terms=terms)))(terms)
    return found if inputs.present is None else without_absent(found, inputs.present)
