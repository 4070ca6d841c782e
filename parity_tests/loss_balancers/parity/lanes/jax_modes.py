"""The modes of JAX's lanes: each runs groups of golden vectors in one way that training code does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.golden.vectors import shape
from loss_balancers.parity.jax_versions import enable_x64, merged_copy
from loss_balancers.parity.lanes.absent import NotCompiledError
from loss_balancers.parity.lanes.jax_compiled import compiled
from loss_balancers.parity.lanes.jax_program import Losses, Program, Step, array, batch_of, narrowed, packed, results, wide
from loss_balancers.spec import FORMATS, Group

Results = Iterator[list[Result]]


def run_in_jax(platform: str, mode: str, groups: Sequence[Group]) -> Results:
    """Runs groups in a mode, on the devices of a platform as JAX calls it."""
    devices = jax.local_devices(backend=platform)
    # float64 exists in JAX only with x64: switched on for the vectors that have it, and only inside this function.
    wide = mode == "x64" or any("f64" in group.formats.values() for group in groups)
    with enable_x64(wide), jax.default_device(devices[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
        found = list(SHARDED[mode](groups, devices) if mode in SHARDED else ONE_DEVICE[mode](groups))
    yield from found


def _one_by_one(step: Step, program: Program) -> Results:
    """Step by step; each sequence with a new balancer."""
    groups = program.groups
    sequences, steps = shape(groups[0])
    for sequence in range(sequences):
        state = program.begin
        for t in range(steps):
            state, balanced = step(state, *batch_of(groups, sequence, t))
            yield results(balanced)


def _eager(groups: Sequence[Group]) -> Results:
    program = Program(groups)

    def step(state: Any, *batch: Any) -> Any:
        return program.step(state, *jax.tree.map(jnp.asarray, batch))

    return _one_by_one(step, program)


def _jit(groups: Sequence[Group]) -> Results:
    program = Program(groups)
    return _one_by_one(compiled(packed(program.step)), program)


def _x64(groups: Sequence[Group]) -> Results:
    if jnp.zeros((), float).dtype != jnp.float64:
        raise NotCompiledError("jax_enable_x64 cannot be switched on here")
    return _jit(groups)


def _remat(groups: Sequence[Group]) -> Results:
    """The forward is computed again in the backward: it observes once all the same."""
    program = Program(groups)
    return _one_by_one(compiled(packed(partial(program.step, forward=jax.checkpoint(program.forward)))), program)


def _objective(outputs: Sequence[Array], cotangents: Sequence[Array]) -> Any:
    """A scalar whose gradient gives each aggregate its cotangent. The sum itself is nobody's business."""
    return sum(jnp.sum((o * ct).astype(jnp.float32)) for o, ct in zip(outputs, cotangents, strict=True))


def _step(groups: Sequence[Group]) -> Results:
    """A jitted training step with optax and Flax's transforms, the modules as arguments, which change in place.

    The losses are computed from parameters, the aggregate is used further, the parameters are updated.
    """
    program, optimizer = Program(groups), optax.adam(1e-3)

    def objective(balancers: list[Any], trained: Any, cotangents: list[Array], keywords: Any, one: Array) -> Any:
        parameters, learned = trained
        batch = _losses_from(parameters, one, groups)
        outputs = program.outputs(balancers, batch, keywords, learned)
        return _objective(outputs, cotangents), (batch, outputs)

    def step(
        balancers: list[Any],
        parameters: list[Losses],
        cotangents: list[Array],
        keywords: Any,
        learned: Any,
        updates: Any,
        one: Array,
    ) -> Any:
        value_and_grad = nnx.value_and_grad(objective, argnums=1, has_aux=True)
        given = value_and_grad(balancers, (parameters, learned), cotangents, keywords, one)
        (_, (batch, outputs)), (gradients, to_learned) = given
        moves, moments = optimizer.update(gradients, optimizer.init(parameters), parameters)
        balanced = program.balanced(balancers, batch, keywords, updates, outputs, gradients, to_learned)
        return balanced, (optax.apply_updates(parameters, moves), moments)

    return _one_by_one(_in_wide_formats(program, step), program)


def _losses_from(wide_batch: list[Losses], one: Array, groups: Sequence[Group]) -> list[Losses]:
    """Arithmetic in the wide format, then the conversion that XLA might elide."""
    return [
        {name: (x * one.astype(x.dtype)).astype(FORMATS[group.formats[name]].dtype) for name, x in losses.items()}  # type: ignore[index]
        for losses, group in zip(wide_batch, groups, strict=True)
    ]


def _in_wide_formats(program: Program, step: Callable[..., Any]) -> Step:
    """A step that takes losses in the wide format, and hands aggregates and gradients on in it.

    A value that the narrow format does not hold would show.
    """

    def in_wide_formats(*args: Any) -> Any:
        balanced, *rest = step(*args)
        outputs, gradients = jax.tree.map(wide, (balanced.outputs, balanced.gradients))
        return balanced._replace(outputs=outputs, gradients=gradients), rest

    program_of_step = compiled(in_wide_formats, nnx.jit)

    def pure_step(state: Any, batch: list[Losses], cotangents: list[Array], keywords: Any, learned: Any, updates: Any) -> Any:
        balancers = merged_copy(program.graph, state)
        balanced, _ = program_of_step(balancers, jax.tree.map(wide, batch), cotangents, keywords, learned, updates, jnp.float32(1))
        outputs, gradients = jax.tree.map(
            lambda x, like: narrowed(x, like.dtype), (balanced.outputs, balanced.gradients), (cotangents, batch)
        )
        return nnx.state(balancers), balanced._replace(outputs=outputs, gradients=gradients)

    return pure_step


def _vmap(groups: Sequence[Group]) -> Results:
    """All sequences at once, step by step."""
    program = Program(groups)
    sequences, _ = shape(groups[0])
    return _side_by_side(compiled(jax.vmap(packed(program.step))), program, [list(range(sequences))], lambda tree: tree)


def _sharded(groups: Sequence[Group], devices: Sequence[Any]) -> Results:
    """Arrays with a sequence on each device, and the compiler partitions the step."""
    if len(devices) < 2:
        raise RuntimeError(f"A sharded lane needs at least two devices. Received {len(devices)}.")
    program = Program(groups)
    sharding = NamedSharding(Mesh(np.array(devices), ("sequences",)), PartitionSpec("sequences"))
    step = compiled(jax.vmap(packed(program.step)), in_shardings=sharding, out_shardings=sharding)
    sequences, width = shape(groups[0])[0], len(devices)
    # The last round is filled up from the front.
    rounds = [[(start + k) % sequences for k in range(width)] for start in range(0, sequences, width)]

    def on_all(state: Any, *batch: Any) -> Any:
        given = step(state, *batch)
        for x in jax.tree.leaves(given):
            if x.sharding.device_set != set(devices):
                raise NotCompiledError(f"a result is on {len(x.sharding.device_set)} of {len(devices)} devices")
        return given

    return _side_by_side(on_all, program, rounds, lambda tree: jax.device_put(tree, sharding))


def _side_by_side(step: Step, program: Program, rounds: Sequence[Sequence[int]], put: Callable[[Any], Any]) -> Results:
    """Rounds of sequences, each step of a round at once. Of a sequence that comes twice, the first time counts."""
    groups = program.groups
    sequences, steps = shape(groups[0])
    found: dict[tuple[int, int], list[Result]] = {}
    for chosen in rounds:
        state = put(_stacked([program.begin] * len(chosen)))
        for t in range(steps):
            state, balanced = step(state, *put(_stacked([batch_of(groups, sequence, t) for sequence in chosen])))
            balanced = jax.device_get(balanced)
            for k, sequence in enumerate(chosen):
                if (sequence, t) not in found:
                    found[sequence, t] = results(_row(balanced, k))
    yield from (found[sequence, t] for sequence in range(sequences) for t in range(steps))


def _scan(groups: Sequence[Group]) -> Results:
    """All steps of all sequences in one `lax.scan`, which carries the state; where a sequence begins, it begins too."""
    program = Program(groups)
    sequences, steps = shape(groups[0])

    def step(state: Any, row: Any) -> Any:
        first, *batch = row
        state = jax.tree.map(lambda new, old: jnp.where(first, new, old), program.begin, state)
        return packed(program.step)(state, *batch)

    rows = [(array(t == 0), *batch_of(groups, sequence, t)) for sequence in range(sequences) for t in range(steps)]
    _, balanced = compiled(partial(jax.lax.scan, step))(program.begin, _stacked(rows))
    balanced = jax.device_get(balanced)
    return (results(_row(balanced, index)) for index in range(len(rows)))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def _row(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], stacked)


ONE_DEVICE: dict[str, Callable[[Sequence[Group]], Results]] = {
    "eager": _eager,
    "jit": _jit,
    "vmap": _vmap,
    "scan": _scan,
    "remat": _remat,
    "step": _step,
    "x64": _x64,
}
SHARDED: dict[str, Callable[[Sequence[Group], Sequence[Any]], Results]] = {
    "sharded": _sharded,
}
MODES = (*ONE_DEVICE, *SHARDED)
