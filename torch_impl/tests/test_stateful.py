"""State in PyTorch: buffers that stay where they are, no graph behind them, one device, and ranks.

What holds in both frameworks stands in `parity_tests/tests/each_framework`.
"""

import pytest
import torch


def test_nothing_is_allocated_at_a_call(make, draw):
    balancer = make()
    before = {name: (x.data_ptr(), x.shape, x.dtype) for name, x in balancer.state_dict().items()}
    attributes = set(vars(balancer))
    for _ in range(3):
        balancer(draw())
        balancer.step()
    assert {name: (x.data_ptr(), x.shape, x.dtype) for name, x in balancer.state_dict().items()} == before
    assert set(vars(balancer)) == attributes
    assert all(not x.requires_grad for x in balancer.state_dict().values())


@pytest.mark.parametrize("call", ["__call__", "observe", "weights", "breakdown"])
def test_a_loss_on_another_device_changes_nothing(make, draw, values, assert_same_state, call):
    balancer = make(auto_step=1)
    balancer(draw())
    before = values(balancer)
    with pytest.raises(ValueError, match="one device"):
        getattr(balancer, call)({**draw(), "MSE_1": torch.ones((), device="meta")})
    assert_same_state(balancer, before)


@pytest.mark.parametrize("given", [True, 0.5, "gloo"])
def test_a_process_group_is_one(make, given):
    with pytest.raises(TypeError, match="`process_group` must be None, False or a process group"):
        make(process_group=given)


def test_observe_makes_no_graph(make, draw):
    balancer = make()
    assert balancer.observe(draw(requires_grad=True)) is None
    assert not balancer.pending.requires_grad
