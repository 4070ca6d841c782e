"""The balancers of some groups in JAX as pure functions, state in and state out: what every mode transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import loss_balancers.jax
from loss_balancers.parity.lanes import Result
from loss_balancers.parity.vectors import balancer_of, state_bits
from loss_balancers.spec import FORMATS, Group
from loss_balancers.spec.reference import SETTINGS

Losses = dict[str, Array]


class Balanced(NamedTuple):
    """What one step gives for each group: of its forward aggregate, gradients and weights, and the state after the commit."""

    outputs: list[Array]
    gradients: list[Losses]
    weights: list[Losses]
    states: list[dict[str, Array]]


#: From the states of all balancers, losses and cotangents to the next states and what is given.
Step = Callable[[Any, list[Losses], list[Array]], tuple[Any, Balanced]]


class Program:
    """The balancers of groups, taken apart: a graph that does not change, and the state ``begin`` of new ones."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.graph, self.begin = nnx.split([balancer_of(group, loss_balancers.jax) for group in groups])
        self._entries = [[entry.name for entry in SETTINGS[group.balancer].from_json(group.settings).state] for group in groups]

    def step(self, state: Any, batch: list[Losses], cotangents: list[Array], forward: Any = None) -> tuple[Any, Balanced]:
        """A forward, its gradient and a commit."""
        outputs, pullback, observed = jax.vjp(lambda b: (forward or self.forward)(state, b), batch, has_aux=True)
        (gradients,) = pullback(cotangents)
        return self.commit(observed, batch, outputs, gradients)

    def forward(self, state: Any, batch: list[Losses]) -> tuple[list[Array], Any]:
        """The aggregates, and the state with the losses observed."""
        balancers = nnx.merge(self.graph, state, copy=True)
        return self.outputs(balancers, batch), nnx.state(balancers)

    def commit(self, state: Any, batch: list[Losses], outputs: list[Array], gradients: list[Losses]) -> tuple[Any, Balanced]:
        """The state after a commit, and all that was given."""
        balancers = nnx.merge(self.graph, state, copy=True)
        balanced = self.balanced(balancers, batch, outputs, gradients)
        return nnx.state(balancers), balanced

    def outputs(self, balancers: list[Any], batch: list[Losses]) -> list[Array]:
        """The aggregates. Observes the losses."""
        return [balancer(losses) for balancer, losses in zip(balancers, batch, strict=True)]

    def balanced(self, balancers: list[Any], batch: list[Losses], outputs: list[Array], gradients: list[Losses]) -> Balanced:
        """All that is given. Commits what was observed."""
        weights, states = [], []
        for balancer, losses, entries in zip(balancers, batch, self._entries, strict=True):
            weights.append(balancer.weights(losses) if entries else {})
            if entries:
                balancer.step()
            states.append({name: getattr(balancer, name)[...] for name in entries})
        return Balanced(outputs, gradients, weights, states)


def batch_of(groups: Sequence[Group], sequence: int, t: int) -> tuple[list[Losses], list[Array]]:
    """Losses and cotangents of one step of each group, as arrays of NumPy: of JAX's each would go through its dispatch."""
    vectors = [group.sequences[sequence][t] for group in groups]
    losses = [
        {name: array(value, FORMATS[group.formats[name]].dtype) for name, value in vector.losses.items()}  # type: ignore[index]
        for group, vector in zip(groups, vectors, strict=True)
    ]
    return losses, [
        array(vector.cotangent, FORMATS[group.result].dtype)  # type: ignore[index]
        for group, vector in zip(groups, vectors, strict=True)
    ]


def array(value: float, dtype: str = "bool") -> Any:
    """A scalar of a dtype that JAX has."""
    return np.asarray(value, jnp.dtype(dtype))


def results(balanced: Balanced) -> list[Result]:
    """What was given as bits, group by group."""
    return [
        Result(_bits({"": output})[""], _bits(gradients), _bits(weights), _bits(state))
        for output, gradients, weights, state in zip(*jax.device_get(balanced), strict=True)
    ]


def _bits(arrays: Any) -> dict[str, tuple[str, int]]:
    return state_bits({name: np.asarray(x) for name, x in arrays.items()})


def wide(x: Array) -> Array:
    """In float32; float64 stays."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def narrowed(x: Array, dtype: Any) -> Any:
    """``x`` in its own format if that holds it, else as it is, which will then count as a difference."""
    as_given = np.asarray(x)
    narrow = as_given.astype(dtype)
    exact = np.isnan(as_given) or narrow.astype(as_given.dtype) == as_given
    return narrow if exact else as_given
