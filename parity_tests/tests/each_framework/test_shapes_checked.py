"""The annotations hold: with jaxtyping and beartype switched on, right calls pass and a wrong shape is caught."""

import os
import subprocess
import sys
from pathlib import Path

#: By framework: a training step, and a dtype of results besides bfloat16.
OWN = {
    "torch": ("balancer(losses).sum().backward()", "float64"),
    "jax": ("jax.jit(jax.grad(lambda losses: balancer(losses).sum()))(losses)", "float16"),
}
CODE = """
from jaxtyping import install_import_hook

with install_import_hook(["loss_balancers.FRAMEWORK"], "beartype.beartype"):
    import framework_FRAMEWORK as f

import FRAMEWORK

weighted_sum = f.balancers.functional.weighted_sum
for shape in ((), (3,), (2, 3)):
    losses = {"M_1": f.xp.ones(shape), "M_0": f.xp.ones(shape), "student_loss": f.loss(f.xp.ones(shape).tolist())}
    for given in (0.3, [0.25, 0.5], (0.25, 0.5), {"M_0": 0.25, "M_1": 0.5}):
        balancer = f.balancers.StaticLossBalancer(given)
        balancer.set_student_loss_reduction_fn(f.xp.sum)
        if not shape:
            balancer({"student_loss": f.xp.ones(5), **{name: losses[name] for name in ("M_0", "M_1")}})
        balancer.set_student_loss_reduction_fn(f.xp.square)
        STEP
        balancer(losses)
        balancer.weights(losses)
    for dtype in (None, f.xp.bfloat16, f.xp.DTYPE):
        weighted_sum(list(losses.values()), [0.5, 2.0, 3.0], dtype=dtype)
print("right calls pass")


class TwoFaced(list):  # the checker looks at an item, the function goes through them
    def __getitem__(self, index):
        return f.xp.ones(3)


for terms in (TwoFaced([f.xp.ones(2)]), [f.array([1, 1, 1], "int32")]):
    try:
        weighted_sum(terms, [0.5])
    except Exception as error:
        print(type(error).__name__)
"""


def test_annotations_hold(framework):
    name = framework.__name__.removeprefix("framework_")
    step, dtype = OWN[name]
    code = CODE.replace("FRAMEWORK", name).replace("STEP", step).replace("DTYPE", dtype)
    path = filter(None, [str(Path(framework.__file__).parent), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout.splitlines() == ["right calls pass", "TypeCheckError", "TypeCheckError"], result.stderr
