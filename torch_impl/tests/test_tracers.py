"""Tracers that are not `torch.compile` with its defaults: symbols for numbers, fake tensors, saved programs, compiled autograd."""

import io
import subprocess
import sys

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
def any_balancer(request):
    """A new balancer of every registered example, with state or without."""
    return registry.make(EXAMPLES[request.param], loss_balancers.torch)


@pytest.mark.in_turn(3)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_numbers_that_are_symbols(any_balancer):
    """`dynamic=True` makes symbols of Python's numbers too, with which an autograd function cannot be traced."""
    scales = torch.ones(3, requires_grad=True)

    def of(rows):
        return any_balancer(dict(zip(NAMES, (scales * rows.mean(0)).square().unbind(), strict=True)))

    compiled = torch.compile(of, dynamic=True, fullgraph=True, backend="aot_eager")
    any_balancer.eval()  # so that each call is of the same state
    for count in (4, 5):
        rows = torch.rand(count, 3) + 0.5
        assert_same_bits(*(torch.autograd.grad(function(rows), scales)[0] for function in (compiled, of)))


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
def test_an_exported_program_is_saved_and_read(any_balancer, training, draw):
    exported = torch.export.export(any_balancer.train(training), (draw(),))
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
