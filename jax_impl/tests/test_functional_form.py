"""The functional form: the bits of the module, in every transform, and no state where none is needed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from with_state import NAMES

import loss_balancers.jax
from loss_balancers.jax import DistillationLossBalancer, StaticLossBalancer, WeightedSumLossBalancer, functional_form
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import varying
from loss_balancers.spec import registry, schedules

EXAMPLES = registry.examples()
CHANGING = [name for name, settings in EXAMPLES.items() if settings.can_change]
EMA = partial(loss_balancers.jax.EMANormalizedLossBalancer, NAMES)
KD = NAMES[:-1]
#: What a call is given beside the losses.
KEYWORDS = {"plain": {}, "count": {"count": 3}, "share": {"share": 0.25}, "absent": {"count": {"student_loss": 2}}}


def keywords_of(kind, losses):
    given = KEYWORDS[kind]
    return {"count": {name: float(name == "student_loss") * 2 for name in losses}} if kind == "absent" else given


@pytest.fixture(params=[*EXAMPLES, *(f"{name} auto_step" for name, settings in EXAMPLES.items() if settings.state)])
def balancers(request):
    """A module, and the functional form of an equal one."""
    name, *auto = request.param.split()
    more = {"auto_step": 2} if auto else {}
    return registry.make(EXAMPLES[name], loss_balancers.jax, **more), functional_form(
        registry.make(EXAMPLES[name], loss_balancers.jax, **more)
    )


@pytest.mark.parametrize(("mode", "kind"), [("eager", "plain"), *(("jit", kind) for kind in KEYWORDS)])
def test_the_bits_are_those_of_the_module(balancers, kind, mode, draw):
    balancer, form = balancers
    state = form.init()
    compiled = jax.jit if mode == "jit" else lambda f: f

    def objective(losses, state, keywords):
        return form.apply(state, losses, **keywords)

    step = compiled(jax.value_and_grad(objective, has_aux=True))
    commit = compiled(form.commit)
    for i in range(6):
        losses = draw(i)
        if i == 3:
            losses[NAMES[0]] = losses[NAMES[0]] * jnp.inf
        keywords = keywords_of(kind, losses)
        expected_weights, expected_parts = balancer.weights(losses, **keywords), balancer.breakdown(losses, **keywords)
        weights, parts = form.weights(state, losses, **keywords), form.breakdown(state, losses, **keywords)
        (aggregate, state), gradients = step(losses, state, keywords)
        expected, expected_gradients = nnx.value_and_grad(lambda x, b, k=keywords: b(x, **k))(losses, balancer)
        for actual, wanted in [(weights, expected_weights), (parts, expected_parts), (gradients, expected_gradients)]:
            assert list(actual) == list(wanted)
            for key in wanted:
                assert_same_bits(jnp.asarray(actual[key]), jnp.asarray(wanted[key]))
        assert_same_bits(aggregate, expected)
        if i % 2:
            state = commit(state)
            balancer.step()
        for key, value in state.items():
            assert_same_bits(value, getattr(balancer, key)[...])


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


def test_no_state_where_the_weights_are_constants(draw):
    schedule = schedules.linear(0.0, 1.0, 3)
    for balancer in (
        StaticLossBalancer([0.25, 0.25]),
        WeightedSumLossBalancer(dict.fromkeys(KD, 2.0), 0.5),
        loss_balancers.jax.ScheduledLossBalancer(0.25, tuple(draw())),
        loss_balancers.jax.LogitsAndIntermediatesLossBalancer(0.5),
    ):
        form = functional_form(balancer)
        state = form.init()
        assert state == {}
        aggregate, state = form.apply(state, draw())
        assert_same_bits(aggregate, balancer(draw()))
        assert form.commit(form.discard(form.observe(state, draw()))) == {}
        assert list(form.weights({}, draw())) == list(balancer.weights(draw()))
    for balancer in (WeightedSumLossBalancer(dict.fromkeys(KD, schedule), 0.5), EMA()):
        assert functional_form(balancer).init()


@pytest.mark.parametrize("name", CHANGING)
def test_validation_and_what_is_discarded_leave_nothing(name, draw):
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.jax))
    _, state = form.apply(form.init(), draw(0))
    state = form.commit(state)
    before = jax.tree.map(np.array, state)
    validated = form.evaluate(state, draw(1))
    assert_same_bits(validated, form.breakdown(state, draw(1))["total"])
    jax.tree.map(assert_same_bits, state, before)
    assert_same_bits(form.apply(state, draw(1))[0], validated)
    jax.tree.map(assert_same_bits, state, before)  # what was given is as it was
    jax.tree.map(assert_same_bits, form.discard(form.observe(state, draw(2))), before)
    assert all(not variable[...].any() for variable in form._balancer._state().values())


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


@pytest.mark.parametrize("name", CHANGING)
def test_the_state_moves_to_the_module_and_back(name, draw):
    form, module = (
        functional_form(registry.make(EXAMPLES[name], loss_balancers.jax)),
        registry.make(EXAMPLES[name], loss_balancers.jax),
    )
    state = form.observe(form.commit(form.observe(form.init(), draw(0))), draw(1))
    module.load_state(form.export_state(state))
    for key, value in form.load_state(module.export_state()).items():
        assert_same_bits(value, state[key])
        assert_same_bits(value, getattr(module, key)[...])


class OfOnesOwn(DistillationLossBalancer):
    def __call__(self, loss):
        return self.canonical(loss)[NAMES[0]]


class WithVariables(OfOnesOwn):
    def __init__(self):
        super().__init__()
        self.seen = nnx.Variable(jnp.zeros(()))


def test_a_balancer_of_ones_own(draw):
    form = functional_form(OfOnesOwn())
    aggregate, state = form.apply(form.init(), draw())
    assert_same_bits(aggregate, OfOnesOwn()(draw()))
    assert state == {}


@pytest.mark.parametrize("given", [None, StaticLossBalancer, WithVariables()], ids=["none", "class", "variables"])
def test_what_is_no_balancer_is_refused(given):
    with pytest.raises(TypeError, match=r"takes a balancer of this library.*Received an object of type"):
        functional_form(given)


def test_a_state_of_something_else_is_refused(draw):
    form = functional_form(EMA())
    right = form.init()
    wrong = [
        {},
        None,
        [right],
        {**right, "more": right["steps"]},
        {**right, "steps": right["steps"].astype(jnp.float32)},
        {**right, "pending": right["pending"][:-1]},
        {**right, "pending": 0.0},
    ]
    for state in wrong:
        for call in (form.apply, form.evaluate, form.observe, form.weights, form.breakdown):
            with pytest.raises(ValueError, match=r"state of a `EMANormalizedLossBalancer` must have.*Received"):
                call(state, draw())
        for call in (form.commit, form.discard, form.export_state):
            with pytest.raises(ValueError, match="state of a `EMANormalizedLossBalancer` must have"):
                call(state)
    with pytest.raises(ValueError, match="state of a `StaticLossBalancer`"):
        functional_form(StaticLossBalancer()).apply(right, draw())
    with pytest.raises(TypeError, match="A `StaticLossBalancer` has no state"):
        functional_form(StaticLossBalancer()).export_state({})


def test_the_error_of_a_module_whose_state_cannot_get_out_names_both_ways(draw):
    graphdef, state = nnx.split(EMA())
    with pytest.raises(RuntimeError, match=r"copy=True\)`(.|\n)*functional_form"):
        jax.value_and_grad(lambda losses, state: nnx.merge(graphdef, state)(losses))(draw(), state)
