"""Flax Linen: a TrainState with the state of a functional form."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState
from jax_runs import KINDS, STEPS, STOP, as_bytes, losses_of, rows

from loss_balancers.jax import functional_form


class DistillState(TrainState):
    kept: Any


def made(kind):
    form, model = functional_form(KINDS[kind]()), nn.Dense(1)
    params = model.init(jax.random.key(0), rows(0))["params"]
    return form, DistillState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2), kept=form.init())


def stepper(form):
    @jax.jit
    def train_step(state, x):
        def objective(params):
            return form.apply(state.kept, losses_of(state.apply_fn({"params": params}, x)))

        (loss, kept), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, kept=form.commit(kept)), loss

    return train_step


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_resumes_from_orbax_has_the_bits_of_a_whole_one(kind, tmp_path):
    form, state = made(kind)
    step, wanted = stepper(form), []
    for i in range(STEPS):
        if i == STOP:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", jax.tree.map(jnp.copy, state))
        state, loss = step(state, rows(i))
        wanted.append(loss)
    with ocp.StandardCheckpointer() as checkpointer:
        fresh = checkpointer.restore(tmp_path / "state", made(kind)[1])
    losses = []
    for i in range(STOP, STEPS):
        fresh, loss = step(fresh, rows(i))
        losses.append(loss)
    assert as_bytes(losses) == as_bytes(wanted[STOP:])
    assert as_bytes(fresh) == as_bytes(state)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_observes_nothing(kind):
    form, state = made(kind)
    state, _ = stepper(form)(state, rows(0))
    before = as_bytes(state)
    evaluate = jax.jit(lambda state, x: form.evaluate(state.kept, losses_of(state.apply_fn({"params": state.params}, x))))
    evaluate(state, rows(1))
    assert as_bytes(state) == before


def test_the_example_and_the_page_run(run_example, run_page):
    assert "400 commits" in run_example("flax_linen")
    run_page("flax_linen")
