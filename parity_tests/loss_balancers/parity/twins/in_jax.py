"""Runs somebody's JAX balancer: eager, or jitted as it is, under `vmap`, in a `scan`, with `jax.checkpoint`, in a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loss_balancers.parity.jax_versions import enable_x64, merged_copy
from loss_balancers.parity.lanes.jax_compiled import compiled
from loss_balancers.parity.twins.cases import Losses, rounded
from loss_balancers.parity.twins.lanes import TwinLane
from loss_balancers.parity.twins.outcome import (
    Outcome,
    Plan,
    Run,
    check_aggregate,
    checked_weights,
    is_number,
    narrowed,
    nudges_of,
    of_forward,
    of_state,
    of_weights,
)

#: From state, losses and cotangents to the state after the step, and what it gave: the aggregate, gradients and second
#: derivatives of each forward, and the weights.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def run(balancer: Callable[..., Any], lane: TwinLane, runs: Sequence[Run], plan: Plan) -> list[list[Outcome]]:
    """The outcomes of runs of one signature."""
    first = runs[0].steps[0]
    # float64 exists in JAX only with x64: switched on for the cases that have it, and only here.
    wide = any(x.dtype == np.float64 for x in first.values())
    device = jax.local_devices(backend=lane.device)[0]
    with enable_x64(True) if wide else nullcontext(), jax.default_device(device):
        twin = _Twin(balancer, lane, plan, device)
        if lane.mode == "eager":
            return [_eager(twin.afresh(), one) for one in runs]
        aggregate = jax.eval_shape(partial(twin.checked, first), twin.begin, _arrays(first))[0]
        # Arguments of the compiled function: as constants the compiler would fold them, with its own arithmetic.
        sent_back = [_cotangent(aggregate, cotangent) for cotangent in plan.cotangents]
        given = MODES[lane.mode](twin, runs, sent_back)
        return [[twin.outcome(one, aggregate.dtype.name, *row) for row in rows] for one, rows in zip(runs, given, strict=True)]


def names_of_state(balancer: Any) -> set[str]:
    """The names of its variables but for parameters, with dots between those of modules."""
    return set(_variables(nnx.state(balancer, nnx.Not(nnx.Param)))) if isinstance(balancer, nnx.Module) else set()


def _variables(state: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


class _Twin:
    """Somebody's balancer as a function of its state: that of an NNX module is an argument, and the caller's own stays as it is."""

    def __init__(self, balancer: Callable[..., Any], lane: TwinLane, plan: Plan, device: Any) -> None:
        self.lane, self.plan, self._device, self._original = lane, plan, device, balancer
        self._balancer, self._graph, self.begin = balancer, None, None
        if isinstance(balancer, nnx.Module):
            # A copy, because what a graph holds beside variables, such as counts of calls in Python, is shared.
            self._graph, state = nnx.split(copy.deepcopy(balancer))
            self.begin = jax.device_put(state, device)
        #: Weights that are numbers, and so the same at every step; the others a step hands on.
        self._numbers: dict[str, Any] = {}

    def afresh(self) -> _Twin:
        """The twin as if nobody had called it."""
        return _Twin(self._original, self.lane, self.plan, self._device)

    def call(self, state: Any, losses: Any) -> tuple[Any, Any]:
        """The aggregate, and the state after the forward."""
        if self._graph is None:
            return self._balancer(losses), state
        module: Any = merged_copy(self._graph, state)
        return module(losses), nnx.state(module)

    def checked(self, losses: Losses, state: Any, x: Any) -> tuple[Any, Any]:
        """The same, unless the aggregate is none."""
        aggregate, state = self.call(state, x)
        check_aggregate(self.lane, aggregate, jax.Array, str(getattr(aggregate, "dtype", "")), losses)
        return aggregate, state

    def after(self, state: Any, x: Any, commits: bool) -> tuple[Any, dict[str, Any]]:
        """The state after a commit, and the weights before it."""
        module: Any = self._balancer if self._graph is None else merged_copy(self._graph, state)
        weights = checked_weights("jax", module.weights(x)) if self.plan.weights else {}
        self._numbers = {name: weight for name, weight in weights.items() if is_number(weight)}
        if commits and self.plan.commit:
            module.step()
        state = state if self._graph is None else nnx.state(module)
        return state, {name: weight for name, weight in weights.items() if name not in self._numbers}

    def step(self, commits: bool, call: Any = None) -> Step:
        """A forward for each cotangent, as of micro-batches, then the weights and a commit."""
        forward = call or self.call

        def step(state: Any, x: Any, cotangents: Any) -> tuple[Any, Any]:
            forwards = []
            for cotangent in cotangents:
                aggregate, pullback, after = jax.vjp(partial(forward, state), x, has_aux=True)
                second = _second(partial(forward, state), x, cotangent) if self.plan.second else {}
                forwards.append((aggregate, pullback(cotangent)[0], second))
                state = after
            state, weights = self.after(state, x, commits)
            return state, (forwards, weights)

        return step

    def outcome(self, one: Run, fmt: str, state: Any, given: Any) -> Outcome:
        """What a step gave, by name; ``state`` is that after it."""
        forwards, weights = given
        outcome: Outcome = {}
        dtypes = {name: x.dtype.name for name, x in one.steps[0].items()}
        for index, (cotangent, (aggregate, gradients, second)) in enumerate(zip(self.plan.cotangents, forwards, strict=True)):
            by_name = {name: narrowed(np.asarray(x), dtypes[name]) for name, x in gradients.items()}
            formats = {**dtypes, "the cotangent": fmt}
            rows = {name: {to: narrowed(np.asarray(x), formats[to]) for to, x in row.items()} for name, row in second.items()}
            outcome |= of_forward(index, cotangent, narrowed(np.asarray(aggregate), fmt), by_name, rows)
        outcome |= of_weights({**self._numbers, **weights})
        return outcome | self._state(state) if one.commits else outcome

    def _state(self, state: Any) -> Outcome:
        if self.plan.exported:
            module: Any = self._original if self._graph is None else merged_copy(self._graph, state)
            return of_state(module.export_state()["state"])
        return of_state({name: _variables(state)[name] for name in self.plan.entries})


def _second(forward: Callable[..., Any], x: Any, cotangent: Any) -> dict[str, dict[str, Any]]:
    """The derivatives of the gradient to each loss, to every loss and to the cotangent."""

    def gradient(name: str, x: Any, cotangent: Any) -> Any:
        return jax.vjp(forward, x, has_aux=True)[1](cotangent)[0][name]

    rows = {}
    for name in x:
        value, pullback = jax.vjp(partial(gradient, name), x, cotangent)
        to_losses, to_cotangent = pullback(jnp.ones_like(value))
        rows[name] = {**to_losses, "the cotangent": to_cotangent}
    return rows


def _eager(twin: _Twin, one: Run) -> list[Outcome]:
    state, found = twin.begin, []
    for losses in one.steps:
        x, aggregates, before = _arrays(losses), [], state
        for _ in twin.plan.cotangents:  # `vjp` would sort the dict
            aggregate, before = twin.checked(losses, before, x)
            aggregates.append(aggregate)
        cotangents = [
            _cotangent(aggregate, cotangent) for aggregate, cotangent in zip(aggregates, twin.plan.cotangents, strict=True)
        ]
        state, (forwards, weights) = twin.step(one.commits)(state, x, cotangents)
        forwards = [(aggregate, *rest) for aggregate, (_, *rest) in zip(aggregates, forwards, strict=True)]
        found.append(twin.outcome(one, aggregates[0].dtype.name, state, (forwards, weights)))
    return found


#: For each run, after each step: the state, and what the step gave.
Given = list[list[tuple[Any, Any]]]


def _jit(twin: _Twin, runs: Sequence[Run], cotangents: Any, call: Any = None) -> Given:
    program = compiled(twin.step(runs[0].commits, call))
    return [_one_by_one(program, twin.begin, one, cotangents) for one in runs]


def _one_by_one(program: Step, state: Any, one: Run, cotangents: Any) -> list[tuple[Any, Any]]:
    found = []
    for losses in one.steps:
        state, given = program(state, _arrays(losses), cotangents)
        found.append((state, given))
    return found


def _remat(twin: _Twin, runs: Sequence[Run], cotangents: Any) -> Given:
    return _jit(twin, runs, cotangents, jax.checkpoint(twin.call))


def _vmap(twin: _Twin, runs: Sequence[Run], cotangents: Any) -> Given:
    program = compiled(jax.vmap(twin.step(runs[0].commits), (0, 0, None)))
    state = jax.tree.map(lambda x: jnp.stack([x] * len(runs)), twin.begin)
    columns = []
    for t in range(len(runs[0].steps)):
        state, given = program(state, _stacked([one.steps[t] for one in runs]), cotangents)
        columns.append(_rows((state, given), len(runs)))
    return [list(rows) for rows in zip(*columns, strict=True)]


def _scan(twin: _Twin, runs: Sequence[Run], cotangents: Any) -> Given:
    """All steps of all runs in one scan, which carries the state; where a run begins, it begins too."""
    step, length = twin.step(runs[0].commits), len(runs[0].steps)

    def scanned(begin: Any, first: Any, x: Any, cotangents: Any) -> Any:
        def body(state: Any, row: Any) -> Any:
            state = jax.tree.map(lambda new, old: jnp.where(row[0], new, old), begin, state)
            state, given = step(state, row[1], cotangents)
            return state, (state, given)

        return jax.lax.scan(body, begin, (first, x))[1]

    first = jnp.asarray([t == 0 for _ in runs for t in range(length)])
    x = _stacked([losses for one in runs for losses in one.steps])
    rows = _rows(compiled(scanned)(twin.begin, first, x, cotangents), len(first))
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def _embedded(twin: _Twin, runs: Sequence[Run], cotangents: Any) -> Given:
    """Losses computed, balanced and differentiated in one graph, where XLA may keep more digits than a format has."""
    step = twin.step(runs[0].commits)
    dtypes = {name: x.dtype for name, x in runs[0].steps[0].items()}

    def outer(state: Any, parameters: Any, nudges: Any, cotangents: Any) -> Any:
        losses = {name: (x + nudges[name]).astype(dtypes[name]) for name, x in parameters.items()}
        state, (forwards, weights) = step(state, losses, cotangents)
        return state, (jax.tree.map(_wide, forwards), weights)

    program = compiled(outer)
    found = []
    for one in runs:
        state, rows = twin.begin, []
        for losses in one.steps:
            parameters = {name: _wide(x) for name, x in _arrays(losses).items()}
            state, given = program(state, parameters, _arrays(nudges_of(losses)), cotangents)
            rows.append((state, given))
        found.append(rows)
    return found


def _wide(x: jax.Array) -> jax.Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _arrays(losses: Losses) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in losses.items()}


def _stacked(cases: Sequence[Losses]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(np.stack([losses[name] for losses in cases])) for name in cases[0]}


def _rows(stacked: Any, count: int) -> list[Any]:
    host = jax.device_get(stacked)
    return [jax.tree.map(lambda x, index=index: x[index, ...], host) for index in range(count)]


def _cotangent(aggregate: Any, cotangent: float) -> jax.Array:
    return jnp.full(aggregate.shape, rounded(cotangent, aggregate.dtype.name), aggregate.dtype)


MODES: dict[str, Callable[[_Twin, Sequence[Run], Any], Given]] = {
    "jit": _jit,
    "vmap": _vmap,
    "scan": _scan,
    "remat": _remat,
    "step": _embedded,
}
