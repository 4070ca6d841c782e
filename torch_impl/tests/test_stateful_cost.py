"""A step waits for no device and copies nothing to or from one."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What reads a value on the host, or makes a tensor out of host data.
COSTLY = ("lift", "local_scalar_dense", "nonzero", "equal.default", "is_pinned")


class Recorder(TorchDispatchMode):
    """The operations that wait for a device: those that read a value, and copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.names, self.costly = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        self.names.append(name)
        devices = {x.device for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        if len(devices) > 1 or any(name.startswith(("_" + word, word)) for word in COSTLY):
            self.costly.append(name)
        return result


def training_step(balancer, losses):
    aggregate = balancer(losses)
    torch.autograd.grad(aggregate, list(losses.values()), torch.ones_like(aggregate))
    balancer.step()


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("auto_step", [None, 2], ids=["step", "auto-step"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_copy_and_no_read(make, draw, device, auto_step):
    balancer = make(auto_step=auto_step).to(device)
    training_step(balancer, draw(requires_grad=True, device=device))
    for i in range(3):
        losses = draw(i, requires_grad=True, device=device)
        with Recorder() as recorder:
            training_step(balancer, losses)
        assert recorder.names
        assert not recorder.costly


@pytest.mark.parametrize("method", ["observe", "weights", "breakdown"])
def test_neither_do_the_other_methods(make, draw, method):
    balancer = make().to("meta")
    losses = draw(device="meta")
    with Recorder() as recorder:
        getattr(balancer, method)(losses)
    assert recorder.names
    assert not recorder.costly


@pytest.mark.parametrize(
    ("costly", "name"),
    [
        (lambda: torch.tensor(0.5), "lift_fresh"),
        (lambda: torch.ones(()).item(), "_local_scalar_dense"),
        (lambda: bool(torch.ones(()) > 0), "_local_scalar_dense"),
        (lambda: torch.ones(3)[torch.ones(3) > 0], "index"),
        (lambda: torch.ones(()).to("meta"), "_to_copy"),
        (lambda: torch.ones((), device="meta").copy_(torch.ones(())), "copy_"),
    ],
    ids=["tensor", "item", "bool", "mask", "to", "copy"],
)
def test_the_recorder_can_see(costly, name):
    with Recorder() as recorder:
        costly()
    seen = recorder.names if name == "index" else recorder.costly
    assert any(name in one for one in seen)


def test_the_profiler_sees_no_read_either(make, draw):
    balancer = make()
    losses = draw(requires_grad=True)
    training_step(balancer, losses)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        training_step(balancer, losses)
    names = {event.key for event in profiled.key_averages()}
    assert "aten::hardshrink" in names
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
