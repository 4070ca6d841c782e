"""The modes of JAX's lanes: each runs groups of golden vectors in one way that training code does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import loss_balancers.jax
from loss_balancers.parity.bits import array_bits
from loss_balancers.parity.lanes import Result
from loss_balancers.spec import FORMAT_OF_DTYPE, FORMATS, Group

Losses = dict[str, Array]
#: From the losses of all groups to their aggregates.
Aggregates = Callable[[list[Losses]], list[Array]]
#: From the losses and the cotangents of all groups to their aggregates and gradients.
Step = Callable[[list[Losses], list[Array]], tuple[list[Array], list[Losses]]]


def run_mode(platform: str, mode: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    """Runs groups in a mode, on the devices of a platform as JAX calls it."""
    devices = jax.local_devices(backend=platform)
    # float64 exists in JAX only with x64: switched on for the vectors that have it, and only inside this function.
    wide = mode == "x64" or any("f64" in group.formats.values() for group in groups)
    with jax.enable_x64(wide), jax.default_device(devices[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
        results = list(SHARDED[mode](groups, devices) if mode in SHARDED else ONE_DEVICE[mode](groups))
    yield from results


def _balancers(groups: Sequence[Group]) -> list[Any]:
    return [getattr(loss_balancers.jax, group.balancer)(**group.settings) for group in groups]


def _aggregates(balancers: list[Any]) -> Aggregates:
    return lambda batch: [balancer(losses) for balancer, losses in zip(balancers, batch, strict=True)]


def _pullback_step(aggregates: Aggregates) -> Step:
    def step(batch: list[Losses], cotangents: list[Array]) -> tuple[list[Array], list[Losses]]:
        outputs, pullback = jax.vjp(aggregates, batch)
        return outputs, pullback(cotangents)[0]

    return step


def _of(groups: Sequence[Group]) -> Step:
    return _pullback_step(_aggregates(_balancers(groups)))


def _batch(groups: Sequence[Group], index: int) -> tuple[list[Losses], list[Array]]:
    """Losses and cotangents of one vector of each group."""
    losses = [{name: _array(value, group.formats[name]) for name, value in group.vectors[index].losses.items()} for group in groups]
    return losses, [_array(group.vectors[index].cotangent, group.result) for group in groups]


def _array(value: float, fmt: str) -> Array:
    return jnp.asarray(np.asarray(value, jnp.dtype(FORMATS[fmt].dtype)))  # type: ignore[index]


def _results(outputs: list[Any], gradients: list[Any]) -> list[Result]:
    return [
        Result(_bits(output), {name: _bits(g) for name, g in losses.items()})
        for output, losses in zip(outputs, gradients, strict=True)
    ]


def _bits(x: Any) -> tuple[str, int]:
    x = np.asarray(x)
    return FORMAT_OF_DTYPE[x.dtype.name], int(array_bits(x))


def _each(step: Step, groups: Sequence[Group]) -> Iterator[list[Result]]:
    for index in range(len(groups[0].vectors)):
        yield _results(*step(*_batch(groups, index)))


def _eager(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(_of(groups), groups)


def _jit(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(jax.jit(_of(groups)), groups)


def _remat(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(jax.jit(_pullback_step(jax.checkpoint(_aggregates(_balancers(groups))))), groups)


def _stacked(groups: Sequence[Group], indices: Sequence[int]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(_batch(groups, index) for index in indices))


def _row(stacked: Any, index: int) -> list[Result]:
    return _results(*jax.tree.map(lambda x: x[index], stacked))


def _all_at_once(transform: Callable[[Step], Callable[..., Any]], groups: Sequence[Group]) -> Iterator[list[Result]]:
    indices = range(len(groups[0].vectors))
    out = jax.device_get(jax.jit(transform(_of(groups)))(*_stacked(groups, indices)))
    return (_row(out, index) for index in indices)


def _vmap(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _all_at_once(jax.vmap, groups)


def _scan(groups: Sequence[Group]) -> Iterator[list[Result]]:
    def transform(step: Step) -> Callable[..., Any]:
        return lambda *rows: jax.lax.scan(lambda carry, row: (carry, step(*row)), None, rows)[1]

    return _all_at_once(transform, groups)


def _grad(groups: Sequence[Group]) -> Iterator[list[Result]]:
    """`value_and_grad` with the modules as arguments, as a training step has it."""
    balancers = _balancers(groups)

    def objective(balancers: Any, batch: Any, cotangents: Any) -> Any:
        outputs = _aggregates(balancers)(batch)
        return _objective(outputs, cotangents), outputs

    compiled = jax.jit(jax.value_and_grad(objective, argnums=1, has_aux=True))

    def step(batch: list[Losses], cotangents: list[Array]) -> tuple[list[Array], list[Losses]]:
        (_, outputs), gradients = compiled(balancers, batch, cotangents)
        return outputs, gradients

    return _each(step, groups)


def _objective(outputs: Sequence[Array], cotangents: Sequence[Array]) -> Any:
    """A scalar whose gradient gives each aggregate its cotangent. The sum itself is nobody's business."""
    return sum(jnp.sum((o * ct).astype(jnp.float32)) for o, ct in zip(outputs, cotangents, strict=True))


def _embedded(groups: Sequence[Group]) -> Iterator[list[Result]]:
    """The losses computed in the graph that balances them, and the aggregate used in it, as a real step does."""
    inner = _of(groups)

    def outer(wide: list[Losses], cotangents: list[Array], one: Array) -> tuple[list[Array], list[Losses]]:
        return inner(_losses_from(wide, one, groups), [ct * one.astype(ct.dtype) for ct in cotangents])

    return _each_wide(jax.jit(_widened(outer)), groups)


def _step(groups: Sequence[Group]) -> Iterator[list[Result]]:
    """A jitted training step with optax: the losses are computed from parameters, and updated by their gradient."""
    aggregates, optimizer = _aggregates(_balancers(groups)), optax.adam(1e-3)

    def step(parameters: list[Losses], cotangents: list[Array], one: Array) -> tuple[list[Array], list[Losses], Any]:
        def objective(parameters: list[Losses]) -> Any:
            outputs = aggregates(_losses_from(parameters, one, groups))
            return _objective(outputs, cotangents), outputs

        (_, outputs), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
        return outputs, gradients, (optax.apply_updates(parameters, updates), state)

    return _each_wide(jax.jit(_widened(step)), groups)


def _losses_from(wide: list[Losses], one: Array, groups: Sequence[Group]) -> list[Losses]:
    """Arithmetic in the wide format, then the conversion that XLA might elide."""
    return [
        {name: (x * one.astype(x.dtype)).astype(FORMATS[group.formats[name]].dtype) for name, x in losses.items()}  # type: ignore[index]
        for losses, group in zip(wide, groups, strict=True)
    ]


def _widened(step: Callable[..., Any]) -> Callable[..., Any]:
    """Hands results on in the wide format: a value that the narrow one does not hold would show."""

    def wide_step(*args: Any) -> Any:
        outputs, gradients, *rest = step(*args)
        return jax.tree.map(_wide, (outputs, gradients)), rest

    return wide_step


def _each_wide(compiled: Callable[..., Any], groups: Sequence[Group]) -> Iterator[list[Result]]:
    def step(batch: list[Losses], cotangents: list[Array]) -> Any:
        results, _ = compiled(jax.tree.map(_wide, batch), cotangents, jnp.float32(1))
        return jax.tree.map(lambda x, like: _narrowed(x, like.dtype), results, (cotangents, batch))

    return _each(step, groups)


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _narrowed(x: Array, dtype: Any) -> Any:
    """``x`` in its own format if that holds it, else as it is, which will then count as a difference."""
    wide = np.asarray(x)
    narrow = wide.astype(dtype)
    exact = np.isnan(wide) or narrow.astype(wide.dtype) == wide
    return narrow if exact else wide


def _sharded(groups: Sequence[Group], devices: Sequence[Any]) -> Iterator[list[Result]]:
    """Arrays with a vector on each device, and the compiler partitions the step."""
    sharding = _over(devices)
    return _a_vector_a_device(jax.jit(jax.vmap(_of(groups)), in_shardings=sharding, out_shardings=sharding), groups, sharding)


def _shard_map(groups: Sequence[Group], devices: Sequence[Any]) -> Iterator[list[Result]]:
    """The same, and each device is given the step on its own shard."""
    sharding = _over(devices)
    step = jax.shard_map(_of(groups), mesh=sharding.mesh, in_specs=sharding.spec, out_specs=sharding.spec)
    return _a_vector_a_device(jax.jit(step), groups, sharding)


def _over(devices: Sequence[Any]) -> NamedSharding:
    if len(devices) < 2:
        raise RuntimeError(f"A sharded lane needs at least two devices. Received {len(devices)}.")
    return NamedSharding(Mesh(np.array(devices), ("vectors",)), PartitionSpec("vectors"))


def _a_vector_a_device(step: Callable[..., Any], groups: Sequence[Group], sharding: NamedSharding) -> Iterator[list[Result]]:
    count, width = len(groups[0].vectors), sharding.num_devices
    for start in range(0, count, width):
        # The last lot is filled up from the front.
        stacked = _stacked(groups, [(start + k) % count for k in range(width)])
        out = jax.device_get(step(*jax.device_put(stacked, sharding)))
        yield from (_row(out, k) for k in range(min(width, count - start)))


ONE_DEVICE: dict[str, Callable[[Sequence[Group]], Iterator[list[Result]]]] = {
    "eager": _eager,
    "jit": _jit,
    "vmap": _vmap,
    "scan": _scan,
    "remat": _remat,
    "grad": _grad,
    "embedded": _embedded,
    "step": _step,
    "x64": _jit,
}
SHARDED: dict[str, Callable[[Sequence[Group], Sequence[Any]], Iterator[list[Result]]]] = {
    "sharded": _sharded,
    "shard_map": _shard_map,
}
MODES = (*ONE_DEVICE, *SHARDED)
