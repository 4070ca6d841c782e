"""Distils a classifier of digits with Flax NNX, Optax and Orbax: micro-batches, a checkpoint, validation."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loss_balancers.jax import EMANormalizedLossBalancer  # balancer

EVERY = 4  # micro-batches per optimizer step

images, labels = load_digits(return_X_y=True)
teacher = LogisticRegression(max_iter=200).fit(images / 16, labels).predict_log_proba(images / 16)
data = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels), jnp.asarray(teacher, jnp.float32)


class Student(nnx.Module):
    """A small classifier."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.out = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)
        self.balancer = EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0"), lagged=True, auto_step=EVERY)  # balancer

    def __call__(self, x):
        """The logarithms of the classes' probabilities."""
        return jax.nn.log_softmax(self.out(nnx.relu(self.hidden(x))))


def objective(student, batch):
    """What is trained on."""
    x, y, taught = batch
    log_p = student(x)
    kd = optax.losses.kl_divergence_with_log_targets(log_p, taught).mean()
    return student.balancer({"student_loss": -jnp.take_along_axis(log_p, y[:, None], 1).mean(), "KLDivLoss_0": kd})  # balancer


@nnx.jit
def train_step(student, optimizer, batch):
    """A micro-batch; Optax applies the mean of the gradients of every fourth."""
    loss, gradients = nnx.value_and_grad(objective)(student, batch)
    optimizer.update(student, gradients)
    return loss


@nnx.jit
def validate(student, batch):
    """The share of images that are told right."""
    return (student(batch[0]).argmax(1) == batch[1]).mean()


student = Student(nnx.Rngs(0))
optimizer = nnx.Optimizer(student, optax.MultiSteps(optax.adam(3e-3), EVERY), wrt=nnx.Param)
for i in range(400):
    rows = jax.random.randint(jax.random.key(i), (64,), 0, 1500)
    loss = train_step(student, optimizer, jax.tree.map(lambda x, rows=rows: x[rows], data))

with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path(folder) / "400", nnx.state((student, optimizer)))

held_out = jax.tree.map(lambda x: x[1500:], data)
print(f"loss {loss:.3f}, validation accuracy {validate(student, held_out):.3f}, {student.balancer.steps[...]} commits")
