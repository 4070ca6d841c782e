"""Tracers that are not `torch.compile` with its defaults: symbols for numbers, fake tensors, saved programs, compiled autograd."""

import io
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from with_state import NAMES

import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.versions import release

EXAMPLES = registry.examples()


@pytest.fixture(params=EXAMPLES)
def make_any(request):
    """Makes a balancer: of every registered example in turn, with state or without."""
    return partial(registry.make, EXAMPLES[request.param], loss_balancers.torch)


@pytest.mark.in_turn(3)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_numbers_that_are_symbols(make_any):
    """`dynamic=True` makes symbols of Python's numbers too, with which an autograd function cannot be traced."""
    scales, balancers = torch.ones(3, requires_grad=True), (make_any(), make_any())  # each observes in training mode

    def of(balancer, rows):
        return balancer(dict(zip(NAMES, (scales * rows.mean(0)).square().unbind(), strict=True)))

    compiled = torch.compile(of, dynamic=True, fullgraph=True, backend="aot_eager")
    for count in (4, 5):
        rows = torch.rand(count, 3) + 0.5
        aggregates = [function(balancer, rows) for function, balancer in zip((compiled, of), balancers, strict=True)]
        assert_same_bits(*(aggregate.detach() for aggregate in aggregates))
        assert_same_bits(*(torch.autograd.grad(aggregate, scales)[0] for aggregate in aggregates))
        states = [balancer.state_dict() for balancer in balancers]
        for name, value in states[0].items():
            assert_same_bits(value, states[1][name])


@pytest.mark.parametrize("registered", EXAMPLES)
def test_fake_tensors(registered):
    """A mode in which no tensor has values: how much memory a model takes is found out so."""
    with FakeTensorMode():
        balancer = registry.make(EXAMPLES[registered], loss_balancers.torch)
        for _ in range(2):
            losses = dict(zip(NAMES, torch.rand(3, requires_grad=True).unbind(), strict=True))
            aggregate = balancer(losses)
            aggregate.backward()
            assert aggregate.shape == ()
            if hasattr(balancer, "step"):
                balancer.step()


@pytest.mark.skipif(release(torch.__version__) < (2, 9), reason="PyTorch 2.8 cannot save a program with an infinity in it")
@pytest.mark.in_turn(3)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # PyTorch's own, of what it reads (2.9)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_exported_program_is_saved_and_read(make_any, training, draw):
    exported = torch.export.export(make_any().train(training), (draw(),))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert_same_bits(torch.export.load(file).module()(draw(1)), exported.module()(draw(1)))


#: A program of others, which compiles what makes modules: with the library imported it must work as without.
COMPILED_AUTOGRAD = """
import torch, torch._dynamo
import loss_balancers.torch
torch._dynamo.config.compiled_autograd = True
model = torch.nn.Linear(3, 1)

@torch.compile(backend="aot_eager")
def train(x):
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach()

for _ in range(2):
    train(torch.rand(4, 3))
print(model.weight.grad.shape)
"""


def test_compiled_autograd_of_a_program_without_a_balancer():
    result = subprocess.run([sys.executable, "-c", COMPILED_AUTOGRAD], capture_output=True, text=True, check=False, timeout=300)
    assert result.stdout == "torch.Size([1, 3])\n", result.stderr


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_forward_that_is_recomputed_is_one_forward(use_reentrant, recwarn):
    """`FAMOLossBalancer` warns after 100 without an `update()`."""
    balancer, x = loss_balancers.torch.FAMOLossBalancer(NAMES), torch.ones(3, requires_grad=True)

    def of(x):
        return balancer(dict(zip(NAMES, x.square().unbind(), strict=True)))

    for _ in range(60):
        checkpoint(of, x, use_reentrant=use_reentrant).backward()
    balancer.step()
    assert not [each for each in recwarn if "update()" in str(each.message)]
