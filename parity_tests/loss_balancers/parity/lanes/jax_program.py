"""The balancers of some groups in JAX as pure functions, state in and state out: what every mode transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import loss_balancers.jax
from loss_balancers.jax.carried import write
from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.golden.vectors import balancer_of, state_bits
from loss_balancers.parity.jax_versions import merged_copy
from loss_balancers.spec import FORMATS, Group
from loss_balancers.spec.registry import SETTINGS

Losses = dict[str, Array]
#: ``count`` or ``share``, by name of the loss, or neither.
Keywords = dict[str, Losses]
#: What `update()` is given, ``loss`` and keywords, of balancers that have it; else empty.
Update = dict[str, Losses]
#: The parameter by its name, or nothing.
Learned = dict[str, Array]
#: What one step is given: losses, cotangents, keywords, parameters and updates of each group.
Batch = tuple[list[Losses], list[Array], list[Keywords], list[Learned], list[Update]]


class Balanced(NamedTuple):
    """What one step gives for each group: of its forward aggregate, gradients and weights, and the state after the commit.

    ``learned`` are the gradients to the parameters.
    """

    outputs: list[Array]
    gradients: list[Losses]
    weights: list[Losses]
    states: list[dict[str, Array]]
    learned: list[Learned]


#: From the states of all balancers, losses, cotangents, keywords, parameters and updates to the next states and what is given,
#: packed or not.
Step = Callable[[Any, list[Losses], list[Array], list[Keywords], list[Learned], list[Update]], tuple[Any, Any]]


class Program:
    """The balancers of groups, taken apart: a graph that does not change, and the state ``begin`` of new ones."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.graph, self.begin = nnx.split([balancer_of(group, loss_balancers.jax) for group in groups])
        self._settings = [SETTINGS[group.balancer].from_json(group.settings) for group in groups]

    def step(
        self,
        state: Any,
        batch: list[Losses],
        cotangents: list[Array],
        keywords: list[Keywords],
        learned: list[Learned],
        updates: list[Update],
        forward: Any = None,
    ) -> tuple[Any, Balanced]:
        """A forward, its gradient and a commit."""
        forward = forward or self.forward
        outputs, pullback, observed = jax.vjp(lambda b, p: forward(state, b, keywords, p), batch, learned, has_aux=True)
        gradients = pullback(cotangents)
        balancers = merged_copy(self.graph, observed)
        balanced = self.balanced(balancers, batch, keywords, updates, outputs, *gradients)
        return nnx.state(balancers), balanced

    def forward(self, state: Any, batch: list[Losses], keywords: list[Keywords], learned: list[Learned]) -> tuple[list[Array], Any]:
        """The aggregates, and the state with the losses observed."""
        balancers = merged_copy(self.graph, state)
        return self.outputs(balancers, batch, keywords, learned), nnx.state(balancers)

    def outputs(self, balancers: list[Any], batch: list[Losses], keywords: list[Keywords], learned: list[Learned]) -> list[Array]:
        """The aggregates, with these parameters. Observes the losses."""
        for balancer, by_name in zip(balancers, learned, strict=True):
            for name, value in by_name.items():
                write(getattr(balancer, name), value)
        return [balancer(losses, **more) for balancer, losses, more in zip(balancers, batch, keywords, strict=True)]

    def balanced(
        self,
        balancers: list[Any],
        batch: list[Losses],
        keywords: list[Keywords],
        updates: list[Update],
        outputs: list[Array],
        gradients: list[Losses],
        learned: list[Learned],
    ) -> Balanced:
        """All that is given. Commits what was observed."""
        weights, states = [], []
        of_groups = zip(balancers, batch, keywords, updates, self._settings, strict=True)
        for balancer, losses, more, update, settings in of_groups:
            weights.append({} if settings.weights_are == "constants" else balancer.weights(losses, **more))
            if update:
                balancer.update(**update)
            if settings.state:
                balancer.step()
            states.append({entry.name: getattr(balancer, entry.name)[...] for entry in settings.state})
        return Balanced(outputs, gradients, weights, states, learned)


@jax.tree_util.register_pytree_node_class
class Packed:
    """The arrays of a tree as a vector for each dtype.

    XLA on CPU compiles a few vectors faster than many scalars, in each of which it may repeat what they share: the golden vectors
    take a tenth less in float32, and a quarter less where formats are mixed.
    """

    def __init__(self, vectors: dict[str, Any], like: Any) -> None:
        self._vectors, self._like = vectors, like

    @classmethod
    def of(cls, tree: Any) -> Packed:
        """Packs arrays of JAX."""
        arrays, structure = jax.tree.flatten(tree)
        of_dtype: dict[str, list[Array]] = {}
        for x in arrays:
            of_dtype.setdefault(str(x.dtype), []).append(x.ravel())
        like = structure, tuple((str(x.dtype), x.shape) for x in arrays)
        return cls({dtype: jnp.concatenate(flat) for dtype, flat in of_dtype.items()}, like)

    def unpacked(self) -> Any:
        """The tree, with arrays of NumPy."""
        structure, kinds = self._like
        rest = {dtype: np.asarray(vector) for dtype, vector in self._vectors.items()}
        arrays = []
        for dtype, shape in kinds:
            flat, rest[dtype] = np.split(rest[dtype], [math.prod(shape)])
            arrays.append(flat.reshape(shape))
        return jax.tree.unflatten(structure, arrays)

    def tree_flatten(self) -> Any:
        """The vectors, and what does not change, as `register_pytree_node_class` asks."""
        return (self._vectors,), self._like

    @classmethod
    def tree_unflatten(cls, like: Any, children: Any) -> Packed:
        """The reverse."""
        (vectors,) = children
        return cls(vectors, like)


def packed(step: Step) -> Step:
    """The step with what it gives of each group packed, to be compiled."""

    def packed_step(state: Any, *batch: Any) -> Any:
        state, balanced = step(state, *batch)
        return state, [Packed.of(of_group) for of_group in zip(*balanced, strict=True)]

    return packed_step


def batch_of(groups: Sequence[Group], sequence: int, t: int) -> Batch:
    """Losses, cotangents, keywords, parameters and updates of one step of each group.

    As arrays of NumPy: each of JAX's would go through its dispatch.
    """
    vectors = [group.sequences[sequence][t] for group in groups]
    losses, afters = (
        [
            {name: array(value, FORMATS[group.formats[name]].dtype) for name, value in row.items()}  # type: ignore[index]
            for group, row in zip(groups, rows, strict=True)
        ]
        for rows in ([vector.losses for vector in vectors], [vector.after for vector in vectors])
    )
    cotangents = [
        array(vector.cotangent, FORMATS[group.result].dtype)  # type: ignore[index]
        for group, vector in zip(groups, vectors, strict=True)
    ]
    keywords = [
        {group.keyword: {name: array(value, "float32") for name, value in vector.amounts.items()}} if group.keyword else {}
        for group, vector in zip(groups, vectors, strict=True)
    ]
    learned = [{name: array(values, "float32") for name, values in vector.learned.items()} for vector in vectors]
    updates = [{"loss": x, **more} if x else {} for x, more in zip(afters, keywords, strict=True)]
    return losses, cotangents, keywords, learned, updates


def array(value: Any, dtype: str = "bool") -> Any:
    """A scalar, or a vector, of a dtype that JAX has."""
    return np.asarray(value, jnp.dtype(dtype))


def results(balanced: Balanced | list[Packed]) -> list[Result]:
    """What was given, packed or not, as bits, group by group."""
    given = jax.device_get(balanced)
    of_groups = zip(*given, strict=True) if isinstance(given, Balanced) else (of_group.unpacked() for of_group in given)
    return [
        Result(_bits({"": output})[""], *map(_bits, by_name))  # in the order that `Balanced` has
        for output, *by_name in of_groups
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
