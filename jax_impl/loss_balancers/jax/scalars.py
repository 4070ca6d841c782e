"""Many scalars as a vector, back, and added in order: one operation each, for the lowering of `autograd`.

JAX has no operation of many scalars. What it costs to compile a sum of 64 losses is Python's time for every operation of every
term; here a term costs one or two calls of the builder of StableHLO. Nothing of this is differentiated or batched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir


def stack(scalars: Sequence[Array]) -> Array:
    """The vector of these scalars."""
    return lax.concatenate(vectors_p.bind(*scalars), 0)


def unstack(vector: Array) -> list[Array]:
    """The elements of a vector."""
    return unstack_p.bind(vector)


def add_in_order(s: Array, vector: Array) -> Array:
    """``s`` plus each element of ``vector``, in order: no compiler may change it, nor a device, as it may in a sum of its own."""
    return cast(Array, add_p.bind(s, vector))


def _type(x: Any, *shape: int) -> Any:
    return ir.RankedTensorType.get(shape, ir.RankedTensorType(x.type).element_type)


def _vectors(ctx: Any, *scalars: Any) -> list[Any]:
    del ctx
    return [stablehlo.reshape(_type(x, 1), x) for x in scalars]


def _unstack(ctx: Any, vector: Any) -> list[Any]:
    one = mlir.dense_int_array([1])
    places = [mlir.dense_int_array([i]) for i in range(ctx.avals_in[-1].shape[0] + 1)]
    elements = [stablehlo.slice(vector, *ends, one) for ends in pairwise(places)]
    return [stablehlo.reshape(_type(vector), x) for x in elements]


def _add(ctx: Any, s: Any, vector: Any) -> list[Any]:
    for x in _unstack(ctx, vector):
        s = stablehlo.add(s, x)
    return [s]


def _primitive(name: str, lower: Callable[..., Any], results: Callable[..., Any]) -> Primitive:
    function = Primitive(f"loss_balancers_{name}")
    function.multiple_results = name != "add"
    function.def_abstract_eval(results)
    mlir.register_lowering(function, lower)
    return function


vectors_p = _primitive("vectors", _vectors, lambda *scalars: [ShapedArray((1,), x.dtype) for x in scalars])
unstack_p = _primitive("unstack", _unstack, lambda vector: [ShapedArray((), vector.dtype)] * vector.shape[0])
add_p = _primitive("add", _add, lambda s, vector: ShapedArray((), s.dtype))
