"""Runs somebody's JAX balancer: eager, or jitted as it is, under `vmap`, in a `scan`, with `jax.checkpoint`, in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loss_balancers.parity.jax_compiled import compiled
from loss_balancers.parity.twin_cases import Losses, rounded
from loss_balancers.parity.twin_lanes import TwinLane
from loss_balancers.parity.twin_outcomes import AGGREGATE, Outcome, check_aggregate, gradient_name, narrowed, nudges_of

#: From the balancer's state and losses to its aggregate.
Function = Callable[[Any, Any], Any]
#: From state, losses and cotangents to the aggregate and, for each cotangent, the gradients by name.
Step = Callable[[Any, Any, Any], tuple[Any, list[Any]]]


def run(balancer: Callable[..., Any], lane: TwinLane, cases: Sequence[Losses], cotangents: Sequence[float]) -> list[Outcome]:
    """The outcomes of cases of one signature."""
    # float64 exists in JAX only with x64: switched on for the cases that have it, and only here.
    wide = any(x.dtype == np.float64 for x in cases[0].values())
    device = jax.local_devices(backend=lane.device)[0]
    with jax.enable_x64(True) if wide else nullcontext(), jax.default_device(device):
        function, state = _split(balancer, device)
        if lane.mode == "eager":
            return [_eager(function, state, lane, losses, cotangents) for losses in cases]
        aggregate = jax.eval_shape(partial(_checked, function, lane, cases[0]), state, _arrays(cases[0]))
        # Arguments of the compiled function: as constants the compiler would fold them, with its own arithmetic.
        sent_back = [_cotangent(aggregate, cotangent) for cotangent in cotangents]
        results = MODES[lane.mode](function, state, cases, sent_back)
    return [_outcome(aggregate, gradients, cotangents) for aggregate, gradients in results]


def _split(balancer: Callable[..., Any], device: Any) -> tuple[Function, Any]:
    """The balancer as a function of its state: an NNX module's is an argument, on the device, and the caller's own untouched."""
    if not isinstance(balancer, nnx.Module):
        return lambda state, losses: balancer(losses), None
    graph, state = nnx.split(balancer)
    return lambda state, losses: nnx.merge(graph, state, copy=True)(losses), jax.device_put(state, device)  # type: ignore[operator]


def _checked(function: Function, lane: TwinLane, losses: Losses, state: Any, x: Any) -> Any:
    aggregate = function(state, x)
    check_aggregate(lane, aggregate, jax.Array, str(getattr(aggregate, "dtype", "")), losses)
    return aggregate


def _eager(function: Function, state: Any, lane: TwinLane, losses: Losses, cotangents: Sequence[float]) -> Outcome:
    x = _arrays(losses)
    aggregate = _checked(function, lane, losses, state, x)  # `vjp` would sort the dict
    _, pullback = jax.vjp(partial(function, state), x)
    return _outcome(aggregate, [pullback(_cotangent(aggregate, cotangent))[0] for cotangent in cotangents], cotangents)


def _jit(function: Function, state: Any, cases: Sequence[Losses], cotangents: Any) -> list[Any]:
    step = compiled(_step(function))
    return [step(state, _arrays(losses), cotangents) for losses in cases]


def _remat(function: Function, state: Any, cases: Sequence[Losses], cotangents: Any) -> list[Any]:
    return _jit(jax.checkpoint(function), state, cases, cotangents)


def _vmap(function: Function, state: Any, cases: Sequence[Losses], cotangents: Any) -> list[Any]:
    return _rows(compiled(jax.vmap(_step(function), (None, 0, None)))(state, _stacked(cases), cotangents), len(cases))


def _scan(function: Function, state: Any, cases: Sequence[Losses], cotangents: Any) -> list[Any]:
    step = _step(function)

    def scanned(state: Any, x: Any, cotangents: Any) -> Any:
        return jax.lax.scan(lambda carry, row: (carry, step(state, row, cotangents)), None, x)[1]

    return _rows(compiled(scanned)(state, _stacked(cases), cotangents), len(cases))


def _embedded(function: Function, state: Any, cases: Sequence[Losses], cotangents: Any) -> list[Any]:
    """Losses computed, balanced and differentiated in one graph, where XLA may keep more digits than a format has."""
    step = _step(function)
    dtypes = {name: x.dtype for name, x in cases[0].items()}

    def outer(state: Any, parameters: Any, nudges: Any, cotangents: Any) -> Any:
        losses = {name: (x + nudges[name]).astype(dtypes[name]) for name, x in parameters.items()}
        return jax.tree.map(_wide, step(state, losses, cotangents))

    program = compiled(outer)
    results = []
    for losses in cases:
        parameters = {name: _wide(x) for name, x in _arrays(losses).items()}
        aggregate, gradients = jax.device_get(program(state, parameters, _arrays(nudges_of(losses)), cotangents))
        by_name = [{name: narrowed(np.asarray(x), dtypes[name].name) for name, x in row.items()} for row in gradients]
        results.append((narrowed(np.asarray(aggregate), cotangents[0].dtype.name), by_name))
    return results


def _wide(x: jax.Array) -> jax.Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _step(function: Function) -> Step:
    def step(state: Any, x: Any, cotangents: Any) -> tuple[Any, list[Any]]:
        aggregate, pullback = jax.vjp(partial(function, state), x)
        return aggregate, [pullback(cotangent)[0] for cotangent in cotangents]

    return step


def _arrays(losses: Losses) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in losses.items()}


def _stacked(cases: Sequence[Losses]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(np.stack([losses[name] for losses in cases])) for name in cases[0]}


def _rows(stacked: Any, count: int) -> list[Any]:
    host = jax.device_get(stacked)
    return [jax.tree.map(lambda x, index=index: x[index, ...], host) for index in range(count)]


def _cotangent(aggregate: Any, cotangent: float) -> jax.Array:
    return jnp.full(aggregate.shape, rounded(cotangent, aggregate.dtype.name), aggregate.dtype)


def _outcome(aggregate: Any, gradients: Sequence[Any], cotangents: Sequence[float]) -> Outcome:
    outcome = {AGGREGATE: np.asarray(aggregate)}
    for cotangent, by_name in zip(cotangents, gradients, strict=True):
        outcome |= {gradient_name(name, cotangent): np.asarray(gradient) for name, gradient in by_name.items()}
    return outcome


MODES: dict[str, Callable[[Function, Any, Sequence[Losses], Any], list[Any]]] = {
    "jit": _jit,
    "vmap": _vmap,
    "scan": _scan,
    "remat": _remat,
    "step": _embedded,
}
