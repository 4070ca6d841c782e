"""The lanes of JAX: eager, jit, vmap, scan, value_and_grad of the module, and inside a larger jit; on every device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from loss_balancers.jax import StaticLossBalancer
from loss_balancers.parity.bits import array_bits
from loss_balancers.parity.lanes import Lane, Result
from loss_balancers.spec import FORMAT_OF_DTYPE, FORMATS, Group

Losses = dict[str, Array]
#: From the losses and the cotangents of all groups to their aggregates and gradients.
Step = Callable[[list[Losses], list[Array]], tuple[list[Array], list[Losses]]]


def jax_lanes() -> list[Lane]:
    """Every mode, on each kind of device."""
    devices = {device.platform: device for device in [*jax.devices("cpu"), *jax.devices()]}
    return [Lane("jax", platform, mode, partial(_run, device, mode)) for platform, device in devices.items() for mode in MODES]


def _run(device: Any, mode: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    # float64 exists in JAX only with x64: switched on for the vectors that have it, and only inside this function.
    wide = any("f64" in group.formats.values() for group in groups)
    with jax.enable_x64(wide), jax.default_device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
        results = list(MODES[mode](groups))
    yield from results


def _batch(groups: Sequence[Group], index: int) -> tuple[list[Losses], list[Array]]:
    losses = [{name: _array(value, group.formats[name]) for name, value in group.vectors[index].losses.items()} for group in groups]
    return losses, [_array(group.vectors[index].cotangent, group.result) for group in groups]


def _array(value: float, fmt: str) -> Array:
    return jnp.asarray(np.asarray(value, jnp.dtype(FORMATS[fmt].dtype)))  # type: ignore[index]


def _step(groups: Sequence[Group]) -> Step:
    balancers = [StaticLossBalancer(**group.settings) for group in groups]

    def step(batch: list[Losses], cotangents: list[Array]) -> tuple[list[Array], list[Losses]]:
        outputs, pullback = jax.vjp(lambda batch: [b(losses) for b, losses in zip(balancers, batch, strict=True)], batch)
        return outputs, pullback(cotangents)[0]

    return step


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
    return _each(_step(groups), groups)


def _jit(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(jax.jit(_step(groups)), groups)


def _stacked(transform: Callable[[Step], Callable[..., Any]], groups: Sequence[Group]) -> Iterator[list[Result]]:
    rows = [_batch(groups, index) for index in range(len(groups[0].vectors))]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *rows)
    out = jax.device_get(jax.jit(transform(_step(groups)))(*stacked))
    for index in range(len(rows)):
        yield _results(*jax.tree.map(lambda x, index=index: x[index], out))


def _vmap(groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _stacked(jax.vmap, groups)


def _scan(groups: Sequence[Group]) -> Iterator[list[Result]]:
    def transform(step: Step) -> Callable[..., Any]:
        return lambda *rows: jax.lax.scan(lambda carry, row: (carry, step(*row)), None, rows)[1]

    return _stacked(transform, groups)


def _grad(groups: Sequence[Group]) -> Iterator[list[Result]]:
    """`value_and_grad` with the modules as arguments, as a training step has it."""
    balancers = [StaticLossBalancer(**group.settings) for group in groups]

    def objective(balancers: Any, batch: Any, cotangents: Any) -> Any:
        outputs = [b(losses) for b, losses in zip(balancers, batch, strict=True)]
        # Each aggregate gets its cotangent; summed in the widest format, where the sum itself is nobody's business.
        return sum(jnp.sum((o * ct).astype(jnp.float32)) for o, ct in zip(outputs, cotangents, strict=True)), outputs

    compiled = jax.jit(jax.value_and_grad(objective, argnums=1, has_aux=True))

    def step(batch: list[Losses], cotangents: list[Array]) -> tuple[list[Array], list[Losses]]:
        (_, outputs), gradients = compiled(balancers, batch, cotangents)
        return outputs, gradients

    return _each(step, groups)


def _embedded(groups: Sequence[Group]) -> Iterator[list[Result]]:
    """The losses computed in the graph that balances them, and the aggregate used in it, as a real step does."""
    inner = _step(groups)

    @jax.jit
    def outer(batch: list[Losses], cotangents: list[Array], one: Array) -> tuple[list[Array], list[Losses]]:
        def losses_of(wide: list[Losses]) -> list[Losses]:
            # Arithmetic in the wide format, then the conversion that XLA might elide.
            return [
                {name: (x * one.astype(x.dtype)).astype(fmt) for (name, x), fmt in zip(losses.items(), formats, strict=True)}
                for losses, formats in zip(wide, dtypes, strict=True)
            ]

        outputs, gradients = inner(losses_of(batch), [ct * one.astype(ct.dtype) for ct in cotangents])
        # Back in the wide format: a value that the narrow one does not hold would show.
        return [_wide(o) for o in outputs], [{name: _wide(g) for name, g in losses.items()} for losses in gradients]

    dtypes: list[list[Any]] = []

    def step(batch: list[Losses], cotangents: list[Array]) -> tuple[list[Array], list[Losses]]:
        dtypes[:] = [[losses[name].dtype for name in sorted(losses)] for losses in batch]  # jit hands dicts on sorted
        wide = [{name: _wide(x) for name, x in losses.items()} for losses in batch]
        outputs, gradients = outer(wide, cotangents, jnp.float32(1))
        narrow_outputs = [_narrowed(o, ct.dtype) for o, ct in zip(outputs, cotangents, strict=True)]
        return narrow_outputs, [
            {name: _narrowed(g, losses[name].dtype) for name, g in grads.items()}
            for grads, losses in zip(gradients, batch, strict=True)
        ]

    return _each(step, groups)


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _narrowed(x: Array, dtype: Any) -> Any:
    """``x`` in its own format if that holds it, else as it is, which will then count as a difference."""
    wide = np.asarray(x)
    narrow = wide.astype(dtype)
    exact = np.isnan(wide) or narrow.astype(wide.dtype) == wide
    return narrow if exact else wide


MODES: dict[str, Callable[[Sequence[Group]], Iterator[list[Result]]]] = {
    "eager": _eager,
    "jit": _jit,
    "vmap": _vmap,
    "scan": _scan,
    "grad": _grad,
    "embedded": _embedded,
}
