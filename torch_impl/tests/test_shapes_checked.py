"""The annotations hold: with jaxtyping and beartype switched on, right calls pass and a wrong shape is caught."""

import subprocess
import sys

CODE = """
from jaxtyping import install_import_hook

with install_import_hook(["loss_balancers.torch"], "beartype.beartype"):
    from loss_balancers.torch import StaticLossBalancer
    from loss_balancers.torch.functional import weighted_sum

import torch

for shape in ((), (3,), (2, 3)):
    losses = {"M_1": torch.ones(shape), "M_0": torch.ones(shape), "student_loss": torch.ones(shape, requires_grad=True)}
    for given in (0.3, [0.25, 0.5], (0.25, 0.5), {"M_0": 0.25, "M_1": 0.5}):
        balancer = StaticLossBalancer(given)
        balancer.set_student_loss_reduction_fn(torch.sum)
        if not shape:
            balancer({"student_loss": torch.ones(5), **{name: losses[name] for name in ("M_0", "M_1")}})
        balancer.set_student_loss_reduction_fn(torch.square)
        balancer(losses).sum().backward()
        balancer.weights(losses)
    for dtype in (None, torch.bfloat16, torch.float64):
        weighted_sum(list(losses.values()), [0.5, 2.0, 3.0], dtype=dtype)
print("right calls pass")


class TwoFaced(list):  # the checker looks at an item, the function goes through them
    def __getitem__(self, index):
        return torch.ones(3)


for terms in (TwoFaced([torch.ones(2)]), [torch.ones(3, dtype=torch.int32)]):
    try:
        weighted_sum(terms, [0.5])
    except Exception as error:
        print(type(error).__name__)
"""


def test_annotations_hold():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout.splitlines() == ["right calls pass", "TypeCheckError", "TypeCheckError"], result.stderr
