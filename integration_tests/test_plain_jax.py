"""Plain JAX: the functional form in loops that carry state themselves, with Optax, Orbax and Equinox."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hosts import NAMES
from jax_runs import EVERY, KINDS, STEPS, STOP, as_bytes, losses_of, rows

from loss_balancers.jax import EMANormalizedLossBalancer, functional_form

OPTIMIZER = optax.MultiSteps(optax.adam(1e-2), EVERY)


def made(kind):
    form = functional_form(KINDS[kind]())
    w = jnp.linspace(-1, 1, 4)
    return form, (w, OPTIMIZER.init(w), form.init())


def stepper(form):
    @jax.jit
    def train_step(carry, x):
        w, moments, kept = carry
        (loss, kept), gradient = jax.value_and_grad(lambda w: form.apply(kept, losses_of(x @ w)), has_aux=True)(w)
        updates, moments = OPTIMIZER.update(gradient, moments, w)
        kept = jax.lax.cond(moments.mini_step == 0, form.commit, lambda kept: kept, kept)
        return (optax.apply_updates(w, updates), moments, kept), loss

    return train_step


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_resumes_from_orbax_has_the_bits_of_a_whole_one(kind, tmp_path):
    form, whole = made(kind)
    step = stepper(form)
    wanted = []
    for i in range(STEPS):
        if i == STOP:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", jax.tree.map(jnp.copy, whole))
        whole, loss = step(whole, rows(i))
        wanted.append(loss)
    form, fresh = made(kind)
    with ocp.StandardCheckpointer() as checkpointer:
        fresh = checkpointer.restore(tmp_path / "state", fresh)
    losses = []
    for i in range(STOP, STEPS):
        fresh, loss = step(fresh, rows(i))
        losses.append(loss)
    assert as_bytes(losses) == as_bytes(wanted[STOP:])
    assert as_bytes(fresh) == as_bytes(whole)
    assert (whole[2] == {}) == (kind == "static")


@pytest.mark.parametrize("given", ["means", "shares"])
def test_however_a_step_is_split_the_weights_are_the_same(given, exact_losses):
    form = functional_form(EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True))
    commit, ends = jax.jit(form.commit), []
    for parts in (1, 4, 16):
        observe = jax.jit(lambda kept, losses, amounts: form.apply(kept, losses, **amounts)[1])
        kept = form.init()
        for step in range(3):
            for part in range(parts):
                chunk = {name: x.reshape(parts, -1)[part] for name, x in exact_losses(16, step).items()}
                if given == "means":
                    kept = observe(kept, {name: x.mean() for name, x in chunk.items()}, {})
                else:
                    shared = {name: x.sum() / np.float32(16) for name, x in chunk.items()}
                    kept = observe(kept, shared, {"share": np.float32(1 / parts)})
            kept = commit(kept)
        ends.append(as_bytes(kept))
    assert ends[0] == ends[1] == ends[2]


class Student(eqx.Module):
    """As Equinox users have it: the balancer's state is a field, which no gradient reaches."""

    layer: eqx.nn.Linear
    kept: dict[str, jax.Array]


@pytest.mark.parametrize("kind", KINDS)
def test_equinox(kind):
    form, balancer = made(kind)[0], KINDS[kind]()
    student = Student(eqx.nn.Linear(4, 1, key=jax.random.key(0)), form.init())

    @eqx.filter_jit
    def train_step(student, x):
        def objective(layer):
            losses = losses_of(jax.vmap(layer)(x))
            aggregate, kept = form.apply(student.kept, losses)
            return aggregate, (losses, kept)

        (loss, (losses, kept)), gradient = eqx.filter_value_and_grad(objective, has_aux=True)(student.layer)
        layer = eqx.apply_updates(student.layer, jax.tree.map(lambda g: -0.01 * g, gradient))
        return Student(layer, form.commit(kept)), loss, losses

    for i in range(4):
        student, loss, losses = train_step(student, rows(i))
        assert as_bytes(loss) == as_bytes(balancer(losses))
        balancer.step()
    assert all(as_bytes(value) == as_bytes(getattr(balancer, name)[...]) for name, value in student.kept.items())


@pytest.mark.parametrize("kind", KINDS)
def test_haiku(kind):
    form, balancer = made(kind)[0], KINDS[kind]()
    model = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(1)(x), is_training=True))

    @jax.jit
    def train_step(params, state, kept, x):
        def objective(params):
            y, after = model.apply(params, state, None, x)
            losses = losses_of(y)
            aggregate, seen = form.apply(kept, losses)
            return aggregate, (losses, after, seen)

        (loss, (losses, after, seen)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), after, form.commit(seen), loss, losses

    (params, state), kept = model.init(jax.random.key(0), rows(0)), form.init()
    for i in range(4):
        params, state, kept, loss, losses = train_step(params, state, kept, rows(i))
        assert as_bytes(loss) == as_bytes(balancer(losses))
        balancer.step()
    assert all(as_bytes(value) == as_bytes(getattr(balancer, name)[...]) for name, value in kept.items())


def test_the_example_and_the_page_run(run_example, run_page):
    assert "400 commits" in run_example("plain_jax")
    run_page("plain_jax")
