"""`StaticLossBalancer` in PyTorch: nothing in the state dict, and nothing to convert.

What holds in both frameworks stands in `parity_tests/tests/each_framework`.
"""

import copy

import pytest
import torch

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import StaticLossBalancer


def example():
    values = {"M_1": 0.7, "student_loss": 1.3, "M_0": 2.9, "M_2": 0.11}
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_no_state():
    balancer = StaticLossBalancer([0.5, 0.25])
    balancer({"M_0": torch.tensor(1.0), "M_1": torch.tensor(1.0), "student_loss": torch.tensor(1.0)})
    parent = torch.nn.Sequential(torch.nn.Linear(1, 1), balancer)
    assert not list(balancer.parameters())
    assert not list(balancer.buffers())
    assert not balancer.state_dict()
    assert list(parent.state_dict()) == ["0.weight", "0.bias"]
    balancer.load_state_dict({})


@pytest.mark.parametrize("convert", ["half", "double", "bfloat16", "eval", "cpu"])
def test_what_changes_a_model_does_not_change_a_balancer(convert):
    balancer = StaticLossBalancer(0.3)
    assert_same_bits(getattr(copy.deepcopy(balancer), convert)()(example()), balancer(example()))
