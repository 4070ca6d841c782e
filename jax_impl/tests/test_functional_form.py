"""The functional form in what JAX does to a function: `jit`, `scan`, `vmap`, `remat`, `shard_map`, donation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from with_state import KEYWORDS, NAMES, calls

import loss_balancers.jax
from loss_balancers.jax import functional_form
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import merged_copy, varying
from loss_balancers.spec import registry

EXAMPLES = registry.examples()
CHANGING = [name for name, settings in EXAMPLES.items() if settings.state and settings.can_change]
EMA = partial(loss_balancers.jax.EMANormalizedLossBalancer, NAMES)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("name", "auto_step", "keyword"), calls(CHANGING))
def test_jit_has_the_bits_of_eager(name, auto_step, keyword, draw):
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax, auto_step=auto_step))

    def step(state, losses, keywords):
        (aggregate, state), gradients = jax.value_and_grad(lambda x: form.apply(state, x, **keywords), has_aux=True)(losses)
        return aggregate, gradients, state, form.commit(state), form.weights(state, losses), form.breakdown(state, losses)

    compiled, state, keywords = jax.jit(step), form.init(), KEYWORDS[keyword]
    for i in range(4):
        losses = draw(i)
        if i == 1:
            losses[NAMES[0]] = losses[NAMES[0]] * jnp.inf
        found, expected = compiled(state, losses, keywords), step(state, losses, keywords)
        jax.tree.map(assert_same_bits, found, expected)
        state = found[3] if i % 2 else found[2]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", CHANGING)
def test_a_scan_has_the_bits_of_calls(name, draw):
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax))
    rows = [draw(i) for i in range(20)]

    def body(state, losses):
        aggregate, state = form.apply(state, losses)
        return form.commit(state), aggregate

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    end, aggregates = jax.jit(partial(jax.lax.scan, body))(form.init(), stacked)
    state = form.init()
    for losses, aggregate in zip(rows, aggregates, strict=True):
        state, wanted = body(state, losses)
        assert_same_bits(aggregate, wanted)
    for key, value in state.items():
        assert_same_bits(end[key], value)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", CHANGING)
def test_an_ensemble_by_vmap_and_a_recomputed_forward(name, draw):
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax))
    rows = [draw(i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), form.init())
    step = jax.remat(form.apply)
    aggregates, observed = jax.jit(jax.vmap(step))(states, stacked)
    committed = jax.vmap(form.commit)(observed)
    for i, losses in enumerate(rows):
        aggregate, state = form.apply(form.init(), losses)
        assert_same_bits(aggregates[i], aggregate)
        for key, value in form.commit(state).items():
            assert_same_bits(committed[key][i], value)
    first = jax.grad(lambda losses: step(form.init(), losses)[0])(rows[0])
    second = jax.grad(lambda losses: form.apply(form.init(), losses)[0])(rows[0])
    jax.tree.map(assert_same_bits, first, second)


def test_a_shard_map_adds_over_its_axis(draw):
    form, alone = functional_form(EMA(lagged=True, axis_name="data")), functional_form(EMA(lagged=True))
    mesh = Mesh(np.array(jax.devices()[:1]), "data")

    @partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec()), out_specs=PartitionSpec())
    def step(state, losses):
        state = state | {"pending": varying(state["pending"], "data")}
        losses = jax.tree.map(lambda x: varying(x, "data"), losses)
        return form.commit(form.apply(state, losses)[1])

    state, wanted = step(form.init(), draw(0)), alone.commit(alone.apply(alone.init(), draw(0))[1])
    jax.tree.map(assert_same_bits, state, wanted)


def test_a_thousand_steps_are_traced_once_and_donate_their_state(draw):
    form, traces = functional_form(EMA(beta=0.5)), 0

    @partial(jax.jit, donate_argnums=0)
    def step(state, losses):
        nonlocal traces
        traces += 1
        aggregate, state = form.apply(state, losses)
        return form.commit(state), aggregate

    state, losses = form.init(), draw(0)
    with jax.transfer_guard("disallow"):
        for _ in range(1_000):
            state, _ = step(state, losses)
    assert traces == 1
    assert state["steps"] == 1_000


@pytest.mark.skipif(merged_copy is nnx.merge, reason="this version of Flax always merges a copy")
def test_the_error_of_a_module_whose_state_cannot_get_out_names_both_ways(draw):
    graphdef, state = nnx.split(EMA())
    with pytest.raises(RuntimeError, match=r"copy=True\)`(.|\n)*functional_form"):
        jax.value_and_grad(lambda losses, state: nnx.merge(graphdef, state)(losses))(draw(), state)
