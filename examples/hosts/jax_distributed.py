"""Distils a classifier of digits on several hosts by `jax.distributed`. Started again, it goes on from its checkpoint."""

import argparse
import hashlib
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loss_balancers.jax import EMANormalizedLossBalancer, functional_form  # balancer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.npz"))
parser.add_argument("--coordinator", help="host:port; on a pod slice JAX finds it by itself")
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--process", type=int, default=0)
options = parser.parse_args()
if options.processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(options.coordinator, options.processes, options.process)

mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def placed(array, *axes):
    """A global array: whole on each device, or parted over the axis."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


images, labels = load_digits(return_X_y=True)
teacher = LogisticRegression(max_iter=200).fit(images / 16, labels).predict_log_proba(images / 16)
data = np.float32(images / 16), np.eye(10, dtype=np.float32)[labels], np.float32(teacher)
optimizer = optax.adam(3e-3)
form = functional_form(EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0"), lagged=True))  # balancer


@jax.jit
def train_step(carry, batch):
    """A step over all devices: means over the global batch need no collective of ours."""
    params, moments, kept = carry

    def objective(params):
        x, y, taught = batch
        log_p = jax.nn.log_softmax(jax.nn.relu(x @ params["hidden"]) @ params["out"])
        kd = optax.losses.kl_divergence_with_log_targets(log_p, taught).mean()
        return form.apply(kept, {"student_loss": -(log_p * y).sum(1).mean(), "KLDivLoss_0": kd})  # balancer

    (loss, kept), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    updates, moments = optimizer.update(gradients, moments)
    return (optax.apply_updates(params, updates), moments, form.commit(kept)), loss  # balancer


rng = np.random.default_rng(0)
params = {"hidden": np.float32(rng.normal(0, 1 / 8, (64, 32))), "out": np.float32(rng.normal(0, 1 / 6, (32, 10)))}
leaves, tree = jax.tree.flatten((params, optimizer.init(params), form.init()))  # balancer
start = 0
if options.checkpoint.exists():
    *leaves, start = np.load(options.checkpoint).values()
carry = jax.tree.unflatten(tree, [placed(x) for x in leaves])
for step in range(int(start), options.steps):
    rows = np.random.default_rng(step).integers(0, len(labels), 64)
    carry, loss = train_step(carry, [placed(x[rows], "data") for x in data])
    if (step + 1) % 20 == 0 and jax.process_index() == 0:
        partial = options.checkpoint.with_suffix(".partial.npz")
        np.savez(partial, *map(np.asarray, jax.tree.leaves(carry)), step + 1)
        partial.replace(options.checkpoint)

held = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(carry))
place = f"process {jax.process_index()} of {jax.process_count()}"
print(f"{place}, step {options.steps} from {start}: parameters and state {hashlib.sha256(held).hexdigest()[:16]}", flush=True)
