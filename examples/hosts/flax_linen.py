"""Distils a classifier of digits with Flax Linen: a TrainState that carries the balancer's state, and an Optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loss_balancers.jax import EMANormalizedLossBalancer, functional_form  # balancer

images, labels = load_digits(return_X_y=True)
teacher = LogisticRegression(max_iter=200).fit(images / 16, labels).predict_log_proba(images / 16)
data = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels), jnp.asarray(teacher, jnp.float32)
form = functional_form(EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0")))  # balancer


class Student(nn.Module):
    """A small classifier."""

    @nn.compact
    def __call__(self, x):
        """The logarithms of the classes' probabilities."""
        return nn.log_softmax(nn.Dense(10)(nn.relu(nn.Dense(32)(x))))


class DistillState(TrainState):
    """Parameters, the optimizer's state, and that of the balancer."""

    kept: Any  # balancer


@jax.jit
def train_step(state, batch):
    """A step."""

    def objective(params):
        x, y, taught = batch
        log_p = state.apply_fn({"params": params}, x)
        kd = optax.losses.kl_divergence_with_log_targets(log_p, taught).mean()
        losses = {"student_loss": -jnp.take_along_axis(log_p, y[:, None], 1).mean(), "KLDivLoss_0": kd}
        return form.apply(state.kept, losses)  # balancer

    (loss, kept), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, kept=form.commit(kept)), loss  # balancer


student = Student()
params = student.init(jax.random.key(0), data[0][:1])["params"]
state = DistillState.create(apply_fn=student.apply, params=params, tx=optax.adam(3e-3), kept=form.init())  # balancer
for i in range(400):
    rows = jax.random.randint(jax.random.key(i), (64,), 0, 1500)
    state, loss = train_step(state, jax.tree.map(lambda x, rows=rows: x[rows], data))
right = student.apply({"params": state.params}, data[0][1500:]).argmax(1) == data[1][1500:]
print(f"loss {loss:.3f}, validation accuracy {right.mean():.3f}, {state.kept['steps']} commits")
