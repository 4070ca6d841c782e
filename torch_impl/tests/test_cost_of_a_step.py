"""After the first step nothing is copied to the device, nothing read from it, and nothing worked out again."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loss_balancers.torch import StaticLossBalancer

FORMS = {"number": 0.3, "sequence-2": [0.1, 0.2], "sequence-12": [0.05] * 12}
#: What makes a tensor out of host data, moves one, or reads one back.
COSTLY = ("lift", "_to_copy", "copy_", "scalar_tensor", "full", "empty", "local_scalar_dense", "nonzero", "equal")


class Recorder(TorchDispatchMode):
    """The names of the operations that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def costly(self):
        return [name for name in self.names if any(word in name for word in COSTLY)]


def step(balancer, count, dtype=torch.float32, device="cpu"):
    names = [f"M_{i}" for i in range(count)] + ["student_loss"]
    losses = {name: torch.ones((), dtype=dtype, device=device, requires_grad=True) for name in names}
    with Recorder() as recorder:
        aggregate = balancer(losses)
    gradient = torch.ones_like(aggregate)
    with recorder:
        torch.autograd.grad(aggregate, list(losses.values()), gradient)
    return recorder


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_no_copy_and_no_read(given, dtype, device):
    balancer = StaticLossBalancer(given)
    count = len(given) if isinstance(given, list) else 3
    step(balancer, count, dtype, device)
    second = step(balancer, count, dtype, device)
    assert second.names
    assert not second.costly


@pytest.mark.parametrize(
    ("costly", "name"),
    [
        (lambda: torch.tensor(0.5), "lift_fresh"),
        (lambda: torch.ones(()).item(), "_local_scalar_dense"),
        (lambda: torch.ones(()).to("meta"), "_to_copy"),
    ],
    ids=["tensor", "item", "to"],
)
def test_the_recorder_can_see(costly, name):
    with Recorder() as recorder:
        costly()
    assert any(name in seen for seen in recorder.costly)


def test_a_loss_elsewhere_gets_its_own_copy_of_the_weights():
    balancer = StaticLossBalancer([0.125, 0.5])
    losses = {"M_0": torch.tensor(1.0), "M_1": torch.tensor(1.0), "student_loss": torch.tensor(1.0)}
    assert balancer(losses).device.type == "cpu"
    assert balancer({name: x.to("meta") for name, x in losses.items()}).device.type == "meta"
    assert balancer(losses).device.type == "cpu"
