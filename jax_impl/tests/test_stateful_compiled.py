"""A balancer with state compiles once, gives what eager gives, moves nothing to or from the device, and can be donated."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from with_state import EXAMPLES

from loss_balancers.jax import ScheduledLossBalancer
from loss_balancers.jax.carried import BalancerState
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import in_mode
from loss_balancers.spec import schedules

#: One with nothing of its own, one that observes, one with ratios.
of_each_sort = pytest.mark.parametrize("make", ["scheduled", "ema", "logits"], indirect=True)


def train_step(balancer, losses):
    aggregate = balancer(losses)
    balancer.step()
    return aggregate


@of_each_sort
def test_one_trace_in_a_thousand_steps(make, draw, graph, assert_same_state):
    traces = []

    @nnx.jit(**in_mode(graph))
    def compiled(balancer, losses):
        traces.append(1)
        return train_step(balancer, losses)

    balancer, eager = make(), make()
    drawn = [draw(i) for i in range(8)]
    for i in range(1000):
        aggregate = compiled(balancer, drawn[i % 8])
        if i < 20:
            assert_same_bits(aggregate, train_step(eager, drawn[i % 8]))
            assert_same_state(balancer, eager)
    assert len(traces) == 1
    assert balancer.steps[...] == 1000


@of_each_sort
def test_split_and_merge_under_plain_jit(make, draw, assert_same_state):
    balancer, eager = make(auto_step=2), make(auto_step=2)
    graphdef, state = nnx.split(balancer)
    traces = []

    @jax.jit
    def compiled(state, losses):
        traces.append(1)
        merged = nnx.merge(graphdef, state)
        aggregate = merged(losses)
        return aggregate, nnx.state(merged)

    for i in range(8):
        aggregate, state = compiled(state, draw(i))
        assert_same_bits(aggregate, eager(draw(i)))
    nnx.update(balancer, state)
    assert_same_state(balancer, eager)
    assert len(traces) == 1


@of_each_sort
def test_equal_balancers_share_a_compilation_and_others_do_not(make, draw):
    traces = []

    @nnx.jit
    def compiled(balancer, losses):
        traces.append(1)
        return train_step(balancer, losses)

    for _ in range(3):
        compiled(make(), draw())
    assert len(traces) == 1
    compiled(make(auto_step=3), draw())
    assert len(traces) == 2


@of_each_sort
def test_eval_mode_is_a_compilation_of_its_own_and_observes_nothing(make, draw, values, assert_same_state):
    compiled = nnx.jit(lambda balancer, losses: balancer(losses))
    balancer = make()
    compiled(balancer, draw())
    before = values(balancer)
    balancer.eval()
    for _ in range(2):
        compiled(balancer, draw(1))
    assert_same_state(balancer, before)


def test_the_table_is_no_constant_of_the_graph(draw):
    balancer = ScheduledLossBalancer(schedules.linear(0.0, 1.0, 100_000), names=tuple(draw()))
    graphdef, state = nnx.split(balancer)
    text = jax.jit(lambda state, losses: nnx.merge(graphdef, state)(losses)).lower(state, draw()).as_text()
    assert len(text) < 50_000
    assert "tensor<100001x2xf32>" in text.split("{", 2)[1] + text.split("func.func", 2)[1]  # an argument


@of_each_sort
@pytest.mark.parametrize("auto_step", [None, 2], ids=["step", "auto-step"])
def test_state_is_replaced_not_scattered_into(make, draw, auto_step):
    balancer = make(auto_step=auto_step)
    graphdef, state = nnx.split(balancer)

    def step(state, losses):
        merged = nnx.merge(graphdef, state)
        return train_step(merged, losses), nnx.state(merged)

    assert "scatter" not in jax.jit(step).lower(state, draw()).as_text()
    assert "scatter" in jax.jit(lambda x: x.at[0].set(1.0)).lower(jnp.zeros(3)).as_text()  # the search can see


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(
    ("make", "way", "auto_step"),
    # Each example eager with one value of `auto_step` and compiled with the other; the next one the other way round.
    [(name, way, (None, 2)[(i + j) % 2]) for i, name in enumerate(EXAMPLES) for j, way in enumerate(("eager", "jit"))],
    indirect=["make"],
)
def test_no_transfer(make, draw, way, auto_step):
    balancer = make(auto_step=auto_step)
    grad = nnx.value_and_grad(lambda losses, balancer: balancer(losses))

    def step(balancer, losses):
        result = grad(losses, balancer)
        balancer.step()
        return result

    def methods(balancer, losses):
        balancer.observe(losses)
        if balancer._settings.weights_are == "derivatives" and way == "eager":
            return balancer(losses), balancer.step()  # `jax.grad` moves the cotangent 1 to the device
        return balancer(losses), balancer.weights(losses), balancer.breakdown(losses), balancer.step()

    step, methods = (nnx.jit(step), nnx.jit(methods)) if way == "jit" else (step, methods)
    losses = draw()
    for call in (step, methods) if way == "jit" else (methods,):
        call(balancer, losses)
        with jax.transfer_guard("disallow"):
            for _ in range(3):
                call(balancer, losses)


@of_each_sort
def test_donated_state(make, draw, assert_same_state):
    balancer, eager = make(), make()
    graphdef, state, table = nnx.split(balancer, BalancerState, ...)

    def step(state, table, losses):
        merged = nnx.merge(graphdef, state, table)
        aggregate = train_step(merged, losses)
        return aggregate, nnx.state(merged, BalancerState)

    compiled = jax.jit(step, donate_argnums=0)
    for i in range(5):
        given = state
        aggregate, state = compiled(state, table, draw(i))
        assert all(x.is_deleted() for x in jax.tree.leaves(given))
        assert_same_bits(aggregate, train_step(eager, draw(i)))
    nnx.update(balancer, state)
    assert_same_state(balancer, eager)


@of_each_sort
def test_a_whole_balancer_donated_after_loading(make, draw, assert_same_state):
    balancer, eager = make(), make()
    train_step(eager, draw(9))
    exported = eager.export_state()
    balancer.load_state(exported)
    compiled = nnx.jit(train_step, donate_argnums=0)
    for i in range(3):
        assert_same_bits(compiled(balancer, draw(i)), train_step(eager, draw(i)))
    assert_same_state(balancer, eager)
    make().load_state(exported)  # whose arrays are still there
