"""Flax NNX with Optax and Orbax: a model that has the balancer as an attribute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hosts import NAMES
from jax_runs import EVERY, KINDS, STEPS, STOP, as_bytes, losses_of, rows

from loss_balancers.jax import EMANormalizedLossBalancer


class Student(nnx.Module):
    def __init__(self, kind, **more):
        self.layer = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
        self.balancer = KINDS[kind](**more)


@nnx.jit
def train_step(student, optimizer, x):
    loss, gradients = nnx.value_and_grad(lambda student: student.balancer(losses_of(student.layer(x))))(student)
    optimizer.update(student, gradients)
    return loss


def made(kind):
    student = Student(kind, auto_step=EVERY)
    return student, nnx.Optimizer(student, optax.MultiSteps(optax.adam(1e-2), EVERY), wrt=nnx.Param)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_resumes_from_orbax_has_the_bits_of_a_whole_one(kind, tmp_path):
    whole, parts = made(kind), made(kind)
    wanted = [train_step(*whole, rows(i)) for i in range(STEPS)]
    losses = [train_step(*parts, rows(i)) for i in range(STOP)]  # in the middle of an accumulation
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(parts))
        checkpointer.wait_until_finished()
        fresh = made(kind)
        nnx.update(fresh, checkpointer.restore(tmp_path / "state", nnx.state(fresh)))
    losses += [train_step(*fresh, rows(i)) for i in range(STOP, STEPS)]
    assert as_bytes(losses) == as_bytes(wanted)
    assert as_bytes(nnx.state(fresh)) == as_bytes(nnx.state(whole))


@nnx.jit
def accumulated(layer, balancer, optimizer, losses, amounts):
    def objective(layer, balancer):
        given = {name: x + 0 * layer.kernel.sum() for name, x in losses.items()}  # values of data: their sums are exact
        return balancer(given, **amounts)

    optimizer.update(layer, nnx.grad(objective)(layer, balancer))
    nnx.cond(optimizer.opt_state.mini_step[...] == 0, lambda balancer: balancer.step(), lambda balancer: None, balancer)


@pytest.mark.parametrize("given", ["means", "shares"])
def test_however_a_step_is_split_the_weights_are_the_same(given, exact_losses, state_of):
    states = []
    for parts in (1, 4, 16):
        layer, balancer = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True)
        optimizer = nnx.Optimizer(layer, optax.MultiSteps(optax.sgd(1e-2), parts), wrt=nnx.Param)
        for step in range(3):
            items = exact_losses(16, step)
            for part in range(parts):
                chunk = {name: x.reshape(parts, -1)[part] for name, x in items.items()}
                if given == "means":
                    losses, amounts = {name: jnp.asarray(x.mean()) for name, x in chunk.items()}, {}
                else:
                    losses, amounts = (
                        {name: jnp.asarray(x.sum() / np.float32(16)) for name, x in chunk.items()},
                        {"share": 1 / parts},
                    )
                accumulated(layer, balancer, optimizer, losses, amounts)
        assert balancer.steps[...] == 3
        states.append(state_of(balancer))
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("kind", KINDS)
def test_validation_observes_nothing(kind, state_of):
    student, optimizer = made(kind)
    train_step(student, optimizer, rows(0))
    before = state_of(student.balancer)
    student.eval()
    validate = nnx.jit(lambda student, x: student.balancer(losses_of(student.layer(x))))
    for i in range(3):
        validate(student, rows(i))
    assert state_of(student.balancer) == before
    student.train()
    train_step(student, optimizer, rows(1))
    assert (state_of(student.balancer) == before) == (kind == "static")


def test_split_once_and_donated(state_of):
    student, optimizer = made("ema")
    graphdef, state = nnx.split((student, optimizer))

    def step(state, x):
        student, optimizer = nnx.merge(graphdef, state, copy=True)
        train_step(student, optimizer, x)
        return nnx.state((student, optimizer))

    step = jax.jit(step, donate_argnums=0)
    whole = made("ema")
    state = jax.tree.map(jnp.copy, state)
    for i in range(STEPS):
        state = step(state, rows(i))
        train_step(*whole, rows(i))
    assert as_bytes(state) == as_bytes(nnx.state(whole))


def test_the_example_and_the_page_run(run_example, run_page):
    assert "99 commits" in run_example("flax_nnx")
    run_page("flax_nnx")
