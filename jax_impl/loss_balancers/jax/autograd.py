"""The weighted sum as a linear map: forward, transpose, and their derivatives, which are each other.

Two primitives: `total` (K terms to one) and `spread` (one to K), the gradient of `total`. Each is differentiated by the
other, so that every order of derivative has the spec's rounding; the derivative of `keep` (zero at a zero loss) appears nowhere.

To JAX each is one operation, whatever K is: it traces, batches, linearizes and transposes one and not one for every term. What
it consists of is written out when a program is lowered: a chain of scalar operations, or for many scalars a vector and a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from loss_balancers.jax.rounding import keep, narrow, widen
from loss_balancers.jax.scalars import add_in_order, stack, unstack

#: Up to how many scalars are a chain of scalar operations, which TPU runs without lane rotations. A compiler gets 8 operations a
#: term of it where the sum by hand has 2; of a vector and a loop, a term costs it next to nothing.
MOST_CHAINED = 32
#: How many additions one turn of the loop makes: on GPU a turn is a launch.
ADDED_AT_ONCE = 64


class LinearMap(NamedTuple):
    """One weighted sum, all but its terms. It is static: JAX compares it."""

    #: In the compute format; None if they are a vector on the device, which is then the last operand.
    weights: tuple[float, ...] | None
    #: For each term, which of the weights is its own. A tangent that is zero is left out, and its term with it.
    places: tuple[int, ...]
    #: The dtypes of the terms, of the result, and of the arithmetic between them.
    terms: tuple[np.dtype[Any], ...]
    result: np.dtype[Any]
    compute: np.dtype[Any]

    def of(self, chosen: Sequence[int]) -> LinearMap:
        """The map of the chosen terms alone."""
        places, terms = tuple(self.places[i] for i in chosen), tuple(self.terms[i] for i in chosen)
        return self._replace(places=places, terms=terms)


def total(linear: LinearMap, vector: Sequence[Array], terms: Sequence[Array]) -> Array:
    """RN of the sum of keep(RN(w_i x_i)), added in order (spec A4 to A7). ``vector`` holds the weights if ``linear`` does not."""
    if _of_one_type(terms, vector):
        return cast(Array, total_p.bind(*terms, *vector, linear=linear))
    return _chained(linear, vector, terms)  # JAX's own operations make them of one type


def spread(linear: LinearMap, vector: Sequence[Array], g: Array) -> list[Array]:
    """The gradient of `total` to each term: keep(RN(w_i g)) in the term's dtype (spec A8)."""
    return spread_p.bind(g, *vector, linear=linear)


def _of_one_type(terms: Sequence[Array], vector: Sequence[Array]) -> bool:
    """Whether the operands are alike on a mesh: in a `shard_map`, what differs between devices has a type of its own."""
    (vma, sharding), *others = [_on_mesh(x) for x in terms]
    return all(other == (vma, sharding) for other in others) and all(_on_mesh(x)[0] == vma for x in vector)


def _on_mesh(x: Array) -> tuple[Any, Any]:
    aval = jax.typeof(x)
    return getattr(aval, "vma", None), getattr(aval, "sharding", None)


def _total(*operands: Array, linear: LinearMap) -> Array:
    """What `total` computes."""
    terms, vector = _split(linear, operands)
    return (_looped if _is_long(linear, terms[0]) else _chained)(linear, vector, terms)


def _chained(linear: LinearMap, vector: Sequence[Array], terms: Sequence[Array]) -> Array:
    weights = _sealed(_weights(linear, vector, terms[0]))
    products = [keep(lax.mul(widen(x, linear.compute), w)) for w, x in zip(weights, terms, strict=True)]
    s = products[0]
    for p in products[1:]:
        s = lax.add(s, p)
    return narrow(s, linear.result)


def _looped(linear: LinearMap, vector: Sequence[Array], terms: Sequence[Array]) -> Array:
    products = keep(lax.mul(_widened_vector(linear, terms), _sealed(_vector_of_weights(linear, vector))))
    turns = (len(terms) - 2) // ADDED_AT_ONCE
    after = len(terms) - turns * ADDED_AT_ONCE
    s = add_in_order(lax.index_in_dim(products, 0, keepdims=False), lax.slice_in_dim(products, 1, after))
    if turns:
        rows = lax.reshape(lax.slice_in_dim(products, after, None), (turns, ADDED_AT_ONCE))
        s, _ = lax.scan(lambda s, row: (add_in_order(s, row), None), s, rows)
    return narrow(s, linear.result)


def _spread(g: Array, *vector: Array, linear: LinearMap) -> list[Array]:
    """What `spread` computes."""
    wide = widen(g, linear.compute)
    if _is_long(linear, g):
        weights = _vector_of_weights(linear, vector)
        products = unstack(lax.mul(lax.broadcast(wide, weights.shape), weights))
    else:
        products = [lax.mul(wide, w) for w in _weights(linear, vector, g)]
    return [narrow(p, dtype) for p, dtype in zip(products, linear.terms, strict=True)]


def _sealed(weights: Any) -> Any:
    """The weights behind a barrier, so that XLA does not know a product, even of a constant loss.

    It does not keep the order of additions by constants: of (a + 0.1) + 0.7 it makes a + 0.8, on CPU, GPU and TPU. The barrier is
    on the weights, which are scalars, so that what computes the losses may still be fused with the sum.
    """
    return lax.optimization_barrier(weights)


def _split(linear: LinearMap, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The terms, and the vector of weights if there is one."""
    return operands[: len(linear.terms)], operands[len(linear.terms) :]


def _is_long(linear: LinearMap, x: Array) -> bool:
    return x.ndim == 0 and len(linear.places) > MOST_CHAINED


def _weights(linear: LinearMap, vector: Sequence[Array], like: Array) -> list[Any]:
    """The weight of each term; those of a vector broadcast, if `vmap` made a vector for each row."""
    if linear.weights is not None:
        return [linear.compute.type(linear.weights[i]) for i in linear.places]
    (weights,) = vector
    each = [lax.index_in_dim(weights, i, keepdims=False) for i in linear.places]
    return [lax.broadcast_in_dim(w, like.shape, tuple(range(w.ndim))) for w in each]


def _widened_vector(linear: LinearMap, terms: Sequence[Array]) -> Array:
    if all(dtype == linear.terms[0] for dtype in linear.terms):
        return widen(stack(terms), linear.compute)
    return stack([widen(x, linear.compute) for x in terms])


def _vector_of_weights(linear: LinearMap, vector: Sequence[Array]) -> Any:
    if linear.weights is not None:
        return np.array([linear.weights[i] for i in linear.places], linear.compute)
    (weights,) = vector
    return weights if len(linear.places) == len(weights) else stack(_weights(linear, vector, weights[0]))


def _primitive(compute: Callable[..., Any], multiple_results: bool) -> Primitive:
    function = Primitive(f"loss_balancers{compute.__name__}")
    function.multiple_results = multiple_results
    function.def_impl(partial(jax.jit, static_argnames="linear")(compute))
    mlir.register_lowering(function, mlir.lower_fun(compute, multiple_results=multiple_results))
    return function


total_p = _primitive(_total, multiple_results=False)
spread_p = _primitive(_spread, multiple_results=True)


@total_p.def_abstract_eval
def _(*operands: Any, linear: LinearMap) -> Any:
    return operands[0].update(dtype=linear.result, weak_type=False)


@spread_p.def_abstract_eval
def _(g: Any, *vector: Any, linear: LinearMap) -> Any:
    del vector
    return [g.update(dtype=dtype, weak_type=False) for dtype in linear.terms]


def _total_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, linear: LinearMap) -> tuple[Any, Any]:
    terms, vector = _split(linear, primals)
    moving = [i for i in range(len(terms)) if type(tangents[i]) is not ad.Zero]
    return total(linear, vector, terms), total(linear.of(moving), vector, [tangents[i] for i in moving])


def _total_transpose(g: Any, *operands: Any, linear: LinearMap) -> list[Any]:
    terms, vector = _split(linear, operands)
    chosen = [i for i, x in enumerate(terms) if ad.is_undefined_primal(x)]
    if type(g) is ad.Zero:
        return [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in operands]
    gradients = dict(zip(chosen, spread(linear.of(chosen), vector, g), strict=True))
    return [gradients.get(i) for i in range(len(operands))]


def _spread_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, linear: LinearMap) -> tuple[Any, Any]:
    g, *vector = primals
    return spread(linear, vector, g), spread(linear, vector, tangents[0])


def _spread_transpose(cotangents: Sequence[Any], g: Any, *vector: Any, linear: LinearMap) -> list[Any]:
    moving = [i for i, each in enumerate(cotangents) if type(each) is not ad.Zero]
    if not moving:
        return [ad.Zero(g.aval), *(None for _ in vector)]
    back = linear.of(moving)._replace(result=g.aval.dtype)
    return [total(back, vector, [cotangents[i] for i in moving]), *(None for _ in vector)]


def _batch(function: Primitive, args: Sequence[Any], dims: Sequence[Any], *, linear: LinearMap) -> tuple[Any, Any]:
    """A new axis comes first; in a vector of weights, which then holds a vector for each row, it comes second."""
    size = next(x.shape[dim] for x, dim in zip(args, dims, strict=True) if dim is not None)
    last = len(args) - (linear.weights is None)
    operands = [batching.bdim_at_front(x, dim, size) for x, dim in zip(args[:last], dims[:last], strict=True)]
    for x, dim in zip(args[last:], dims[last:], strict=True):
        if dim is None and x.ndim == 1:
            operands.append(x)  # one vector for all rows
        else:
            operands.append(batching.bdim_at_front(x, dim, size).swapaxes(0, 1))
    out = function.bind(*operands, linear=linear)
    return out, [0] * len(out) if function.multiple_results else 0


ad.primitive_jvps[total_p] = _total_jvp
ad.primitive_jvps[spread_p] = _spread_jvp
ad.primitive_transposes[total_p] = _total_transpose
ad.primitive_transposes[spread_p] = _spread_transpose
batching.primitive_batchers[total_p] = partial(_batch, total_p)
batching.primitive_batchers[spread_p] = partial(_batch, spread_p)
