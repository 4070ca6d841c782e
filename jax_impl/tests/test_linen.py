"""A balancer in a Linen model, by `flax.nnx.bridge.ToLinen`: the bits of the NNX module, state in a mutable collection."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from loss_balancers.jax import ScheduledLossBalancer
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import schedules

STATE = ["balancer_state"]


class Student(nn.Module):
    """A model with its balancer inside, and three losses on top of its own."""

    balancer_class: type
    arguments: tuple

    def setup(self):
        self.scale = self.param("scale", lambda _: jnp.float32(1.5))
        self.balancer = nnx.bridge.ToLinen(self.balancer_class, args=self.arguments, skip_rng=True, metadata_fn=None)

    def __call__(self, losses):
        return self.balancer({name: self.scale * x for name, x in losses.items()})

    def step(self):
        self.balancer.step()

    def weights(self, losses):
        return self.balancer.weights(losses)


@pytest.fixture
def linen(make):
    """The Linen model that has the balancer which `make` makes."""
    balancer = make()
    return Student(type(balancer), arguments_of(balancer))


def arguments_of(balancer):
    """The arguments that make such a balancer, in the form that a Linen module holds."""
    return tuple(nn.FrozenDict(x) if isinstance(x, dict) else x for x in balancer._settings.arguments().values())


def assert_holds(state, balancer):
    assert sorted(state) == sorted(balancer.export_state()["state"])
    for name, variable in balancer._state().items():
        assert_same_bits(state[name], variable[...])


@pytest.mark.in_turn(8)
@pytest.mark.needs_linen_methods
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_run_has_the_bits_of_nnx(linen, make, draw, compiled):
    plain, traces = make(), []
    variables = linen.init(jax.random.key(0), draw())
    assert sorted(variables) == ["balancer_state", *([] if plain._table is None else ["balancer_table"]), "params"]
    assert_holds(variables["balancer_state"]["balancer"], plain)  # `init` observes nothing

    def step(variables, micro_batches):
        traces.append(1)
        aggregate = None
        for losses in micro_batches:

            def loss_fn(params, variables, losses):
                return linen.apply({**variables, "params": params}, losses, mutable=STATE)

            (aggregate, observed), _ = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"], variables, losses)
            variables = {**variables, **observed}
        _, committed = linen.apply(variables, mutable=STATE, method="step")
        return aggregate, {**variables, **committed}

    run = jax.jit(step) if compiled else step
    for i in range(4):
        micro_batches = [draw(2 * i), draw(2 * i + 1)]
        aggregate, variables = run(variables, micro_batches)
        expected = [plain({name: jnp.float32(1.5) * x for name, x in losses.items()}) for losses in micro_batches]
        plain.step()
        assert_same_bits(aggregate, expected[-1])
        assert_holds(variables["balancer_state"]["balancer"], plain)
        for name, weight in linen.apply(variables, draw(9), method="weights").items():
            assert_same_bits(weight, plain.weights(draw(9))[name])
    assert len(traces) == (1 if compiled else 4)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_run_that_steps_by_itself(make, draw, compiled):
    """Whatever the version of Flax: the call is all that it needs."""
    plain = make(auto_step=2)
    linen = nnx.bridge.ToLinen(
        type(plain),
        args=arguments_of(plain),
        kwargs={"auto_step": 2},
        skip_rng=True,
        metadata_fn=None,
    )
    variables = linen.init(jax.random.key(0), draw())
    apply = partial(linen.apply, mutable=STATE)
    run = jax.jit(apply) if compiled else apply
    for i in range(6):
        aggregate, observed = run(variables, draw(i))
        variables = {**variables, **observed}
        assert_same_bits(aggregate, plain(draw(i)))
        assert_holds(variables["balancer_state"], plain)
    assert plain.steps[...] == 2


def test_without_a_mutable_collection_nothing_is_observed(linen, make, draw):
    variables = linen.init(jax.random.key(0), draw())
    before = jax.tree.map(jnp.copy, variables)
    losses = {name: jnp.float32(1.5) * x for name, x in draw().items()}
    assert_same_bits(linen.apply(variables, draw()), make()(losses))
    jax.tree.map(assert_same_bits, variables, before)


def test_errors_keep_their_class_and_words(linen, draw):
    variables = linen.init(jax.random.key(0), draw())
    with pytest.raises(ValueError, match=r"built for|exactly one KD loss"):
        linen.apply(variables, {"M": jnp.float32(1.0)}, mutable=STATE)


def test_the_table_is_no_constant_of_the_graph(draw):
    model = Student(ScheduledLossBalancer, (schedules.linear(0.0, 1.0, 100_000), tuple(draw())))
    variables = model.init(jax.random.key(0), draw())
    text = jax.jit(lambda variables, losses: model.apply(variables, losses, mutable=STATE)).lower(variables, draw()).as_text()
    assert len(text) < 50_000
