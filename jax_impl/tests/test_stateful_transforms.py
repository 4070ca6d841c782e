"""What JAX and NNX do to a function, done to balancers with state: gradients, remat, scan, and transforms that would lose state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import in_mode, merged_copy

#: One with nothing of its own, one that observes, one with ratios.
of_each_sort = pytest.mark.parametrize("make", ["scheduled", "ema", "logits"], indirect=True)


def warm(balancer, draw):
    """A balancer some steps into training."""
    for i in range(3):
        balancer(draw(i))
        balancer.step()
    return balancer


def train_step(balancer, losses):
    aggregate = balancer(losses)
    balancer.step()
    return aggregate


# --- gradients ------------------------------------------------------------------------------------------------------


@of_each_sort
def test_the_gradient_is_the_weight(make, draw):
    balancer = warm(make(), draw)
    losses = draw(7)
    weights = balancer.weights(losses)
    gradients = nnx.grad(lambda losses, balancer: balancer(losses))(losses, balancer)
    assert balancer.pending[...][-2] == 1
    balancer.eval()
    for each in (gradients, jax.grad(balancer)(losses), jax.jit(jax.grad(balancer))(losses)):
        for name, weight in weights.items():
            assert_same_bits(each[name], weight)


@of_each_sort
def test_weights_are_constants_in_every_derivative(make, draw):
    balancer = warm(make(), draw)
    balancer.eval()
    for row in jax.hessian(balancer)(draw(7)).values():
        for entry in row.values():
            assert_same_bits(entry, jnp.float32(0.0))
    weights = balancer.weights(draw(7))

    # A second derivative at fixed losses: that of the weighted sum, since a weight has none.
    def model(x):
        return balancer({name: y * x**3 for name, y in draw(7).items()})

    expected = sum(float(weights[name]) * float(y) for name, y in draw(7).items()) * 6
    np.testing.assert_allclose(jax.grad(jax.grad(model))(jnp.float32(1.0)), expected, rtol=1e-5)


@of_each_sort
def test_jvp(make, draw):
    balancer = warm(make(), draw)
    balancer.eval()
    aggregate, tangent = jax.jvp(balancer, (draw(4),), (draw(5),))
    assert_same_bits(aggregate, balancer(draw(4)))
    weights = balancer.weights(draw(4))
    np.testing.assert_allclose(tangent, sum(weights[name] * x for name, x in draw(5).items()), rtol=1e-6)


@of_each_sort
def test_vmap(make, draw):
    balancer = warm(make(), draw)
    balancer.eval()
    stacked = draw(3, shape=(5,))
    drawn = [{name: x[i] for name, x in stacked.items()} for i in range(5)]
    assert_same_bits(jax.vmap(balancer)(stacked), jnp.stack([balancer(losses) for losses in drawn]))
    gradients = jax.vmap(jax.grad(balancer))(stacked)
    for i, losses in enumerate(drawn):
        for name, weight in balancer.weights(losses).items():
            assert_same_bits(gradients[name][i], weight)


class Student(nnx.Module):
    """A model with its balancer inside, and three losses on top of its own."""

    def __init__(self, balancer):
        self.scale = nnx.Param(jnp.float32(1.5))
        self.balancer = balancer

    def __call__(self, losses):
        return self.balancer({name: self.scale[...] * x for name, x in losses.items()})


@of_each_sort
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_value_and_grad_of_a_model_with_its_balancer_inside(make, draw, graph, compiled, assert_same_state):
    model, plain = Student(make()), make()

    def step(model, losses):
        def loss_fn(parameters, rest, losses):
            merged = merged_copy(graphdef, parameters, rest)  # Variables of this trace
            aggregate = merged(losses)
            return aggregate, nnx.state(merged, nnx.Not(nnx.Param))

        if graph:
            grad = nnx.value_and_grad(lambda model, losses: (model(losses), model.scale[...]), has_aux=True)
            (aggregate, _), gradients = grad(model, losses)
        else:
            graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
            (aggregate, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(parameters, rest, losses)
            nnx.update(model, rest)
        model.balancer.step()
        return aggregate, gradients["scale"][...]

    run = nnx.jit(step, **in_mode(graph)) if compiled else step
    for i in range(4):
        losses = {name: jnp.float32(1.5) * x for name, x in draw(i).items()}
        aggregate, gradient = run(model, draw(i))
        weights = plain.weights(losses)
        assert_same_bits(aggregate, train_step(plain, losses))
        np.testing.assert_allclose(gradient, sum(weights[name] * x for name, x in draw(i).items()), rtol=1e-5)
        assert_same_state(model.balancer, plain)


def test_a_model_in_eval_mode_and_back(make, draw, values, assert_same_state):
    model, plain = Student(make()), make()
    model(draw())
    before = values(model.balancer)
    model.eval()
    model(draw(1))
    assert_same_state(model.balancer, before)
    model.train()
    model(draw(1))
    for i in (0, 1):
        plain({name: jnp.float32(1.5) * x for name, x in draw(i).items()})
    assert_same_state(model.balancer, plain)


# --- recomputation --------------------------------------------------------------------------------------------------


def scaled(balancer, scale, losses):
    return balancer({name: x * scale for name, x in losses.items()})


@pytest.mark.in_turn(8)
@of_each_sort
@pytest.mark.parametrize("auto_step", [None, 1], ids=["step", "auto-step"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_recomputed_call_observes_once(make, draw, compiled, auto_step, assert_same_state):
    recomputed, plain = make(auto_step=auto_step), make(auto_step=auto_step)
    for balancer, model in ((recomputed, nnx.remat(scaled)), (plain, scaled)):
        grad = nnx.value_and_grad(model, argnums=1)
        run = nnx.jit(grad) if compiled else grad
        for i in range(4):
            run(balancer, jnp.float32(1.25), draw(i))
    assert plain.pending[...][-2] == (1 if auto_step else 4)
    assert_same_state(recomputed, plain)


@of_each_sort
@pytest.mark.parametrize("remat", [jax.checkpoint, jax.remat], ids=["checkpoint", "remat"])
def test_split_state_through_jax_checkpoint(make, draw, remat, assert_same_state):
    balancer, plain = make(), make()
    graphdef, state = nnx.split(balancer)

    def model(scale, state, losses):
        merged = nnx.merge(graphdef, state)
        return scaled(merged, scale, losses), nnx.state(merged)

    for i in range(3):
        (_, state), _ = jax.jit(jax.value_and_grad(remat(model), has_aux=True))(jnp.float32(1.25), state, draw(i))
        scaled(plain, jnp.float32(1.25), draw(i))
    nnx.update(balancer, state)
    assert_same_state(balancer, plain)


# --- scan -----------------------------------------------------------------------------------------------------------


def eager_run(balancer, stacked):
    return jnp.stack([train_step(balancer, {name: x[i] for name, x in stacked.items()}) for i in range(9)])


@of_each_sort
def test_lax_scan_with_the_state_carried(make, draw, assert_same_state):
    balancer, eager = make(), make()
    graphdef, state = nnx.split(balancer)

    def body(state, losses):
        merged = nnx.merge(graphdef, state)
        aggregate = train_step(merged, losses)
        return nnx.state(merged), aggregate

    stacked = draw(2, shape=(9,))
    state, aggregates = jax.jit(lambda state, stacked: jax.lax.scan(body, state, stacked))(state, stacked)
    assert_same_bits(aggregates, eager_run(eager, stacked))
    nnx.update(balancer, state)
    assert_same_state(balancer, eager)


@of_each_sort
def test_nnx_scan(make, draw, graph, assert_same_state):
    balancer, eager = make(), make()

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), **in_mode(graph))
    def run(balancer, losses):
        return balancer, train_step(balancer, losses)

    stacked = draw(2, shape=(9,))
    after, aggregates = run(balancer, stacked)
    assert_same_bits(aggregates, eager_run(eager, stacked))
    assert_same_state(after, eager)


# --- transforms that the balancer is no argument of -----------------------------------------------------------------

TRANSFORMED = {
    "grad": lambda f, draw: jax.grad(f)(draw()),
    "jit": lambda f, draw: jax.jit(f)(draw()),
    "vmap": lambda f, draw: jax.vmap(f)(draw(shape=(3,))),
    "checkpoint": lambda f, draw: jax.checkpoint(f)(draw()),
    "jvp": lambda f, draw: jax.jvp(f, (draw(),), (draw(1),)),
}


@of_each_sort
@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
@pytest.mark.parametrize("auto_step", [None, 1], ids=["step", "auto-step"])
def test_a_training_call_whose_state_could_not_get_out_is_refused(make, draw, transform, auto_step, values, assert_same_state):
    balancer = make(auto_step=auto_step)
    balancer(draw())
    before = values(balancer)
    with pytest.raises(RuntimeError, match=r"or call `eval\(\)` on it, and `observe\(loss\)` and `step\(\)` outside"):
        transform(balancer, draw)
    assert_same_state(balancer, before)


@of_each_sort
def test_a_loop_under_a_transform(make, draw, assert_same_state):
    """The same run, by `jax.grad` of an eval call with `observe` beside it, as by a training call."""
    functional, plain = make(), make()
    functional.eval()
    for i in range(6):
        aggregate, gradients = jax.value_and_grad(functional)(draw(i))
        functional.observe(draw(i))
        functional.step()
        for name, weight in plain.weights(draw(i)).items():
            assert_same_bits(gradients[name], weight)
        assert_same_bits(aggregate, train_step(plain, draw(i)))
    assert_same_state(functional, plain)


# --- micro-batches --------------------------------------------------------------------------------------------------


def split_run(make, parts, drawn):
    """Five optimizer steps, 64 examples each, in so many micro-batches; the weights of the last."""
    balancer = make()
    for losses in drawn:
        for i in range(parts):
            balancer({name: x.reshape(parts, -1)[i].mean() for name, x in losses.items()})
        balancer.step()
    last = {name: jnp.float32(1.0) for name in drawn[0]}
    return {name: np.asarray(x) for name, x in balancer.weights(last).items()}


@pytest.mark.parametrize("parts", [4, 64])
@pytest.mark.parametrize("make", ["scheduled", "weighted-sum", "ema-lagged"], indirect=True)
def test_however_the_batch_is_split_the_weights_are_the_same(make, parts, draw):
    exact = [{name: jnp.round(x * 64) / 64 for name, x in draw(i, shape=(64,)).items()} for i in range(5)]
    whole, split = split_run(make, 1, exact), split_run(make, parts, exact)
    for name, weight in whole.items():
        assert_same_bits(split[name], weight)
    drawn = [draw(i, shape=(64,)) for i in range(5)]
    whole, split = split_run(make, 1, drawn), split_run(make, parts, drawn)
    for name, weight in whole.items():
        assert abs(int(split[name].view(np.int32)) - int(weight.view(np.int32))) <= 4
