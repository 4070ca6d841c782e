"""Distils a classifier of digits in plain JAX: parameters and the balancer's state are pytrees that the loop carries."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loss_balancers.jax import EMANormalizedLossBalancer, functional_form  # balancer

images, labels = load_digits(return_X_y=True)
teacher = LogisticRegression(max_iter=200).fit(images / 16, labels).predict_log_proba(images / 16)
data = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels), jnp.asarray(teacher, jnp.float32)
optimizer = optax.adam(3e-3)
form = functional_form(EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0")))  # balancer


def log_probabilities(params, x):
    """What the student says of images."""
    return jax.nn.log_softmax(jax.nn.relu(x @ params["hidden"]) @ params["out"])


def objective(params, kept, batch):
    """What is trained on, and the state that has observed the losses."""
    x, y, taught = batch
    log_p = log_probabilities(params, x)
    kd = optax.losses.kl_divergence_with_log_targets(log_p, taught).mean()
    losses = {"student_loss": -jnp.take_along_axis(log_p, y[:, None], 1).mean(), "KLDivLoss_0": kd}
    return form.apply(kept, losses)  # balancer


@jax.jit
def train_step(carry, key):
    """A step, for `jax.lax.scan`."""
    params, moments, kept = carry
    rows = jax.random.randint(key, (64,), 0, 1500)
    batch = jax.tree.map(lambda x: x[rows], data)
    (loss, kept), gradients = jax.value_and_grad(objective, has_aux=True)(params, kept, batch)
    updates, moments = optimizer.update(gradients, moments)
    return (optax.apply_updates(params, updates), moments, form.commit(kept)), loss  # balancer


keys = jax.random.split(jax.random.key(0), 3)
params = {"hidden": jax.random.normal(keys[0], (64, 32)) / 8, "out": jax.random.normal(keys[1], (32, 10)) / 6}
carry = params, optimizer.init(params), form.init()  # balancer
(params, _, kept), losses = jax.lax.scan(train_step, carry, jax.random.split(keys[2], 400))
right = log_probabilities(params, data[0][1500:]).argmax(1) == data[1][1500:]
print(f"loss {losses[-1]:.3f}, validation accuracy {right.mean():.3f}, {kept['steps']} commits")
