"""A call like the last one takes a shorter way. It must not be taken for a call that differs, and gives the same bits."""

import copy
import pickle

import pytest
import torch
from torch import nn

from loss_balancers.torch import StaticLossBalancer
from loss_balancers.torch.again import Again

NAMES = ("MSE_0", "KL_1", "L1_2", "Cos_3", "student_loss")
WEIGHTS = [0.1, 0.3, 0.05, 0.25]


def losses_of(names=NAMES, dtype=torch.float32, **options):
    values = {name: 0.1 + 0.7 * i for i, name in enumerate(NAMES)}
    return {name: torch.tensor(values[name], dtype=dtype, **options) for name in names}


def used():
    balancer = StaticLossBalancer(WEIGHTS)
    balancer(losses_of())
    assert isinstance(balancer._again, Again)
    return balancer


def bits(balancer, losses):
    leaves = [x.detach().requires_grad_() for x in losses.values()]
    aggregate = balancer(dict(zip(losses, leaves, strict=True)))
    gradients = torch.autograd.grad(aggregate, leaves, torch.tensor(1 / 3, dtype=aggregate.dtype))
    return [float(x.item()).hex() for x in (aggregate, *gradients)]


@pytest.fixture
def long_ways(monkeypatch):
    """How many calls go the long way."""
    calls = []
    ordered = StaticLossBalancer._ordered
    monkeypatch.setattr(StaticLossBalancer, "_ordered", lambda self, loss: calls.append(1) or ordered(self, loss))
    return calls


def test_a_call_like_the_last_one_takes_the_short_way(long_ways):
    balancer = StaticLossBalancer(WEIGHTS)
    for _ in range(3):
        balancer(losses_of())
    assert len(long_ways) == 1


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["in-order", "reversed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=["f32", "f64", "bf16", "f16"])
def test_both_ways_give_the_same_bits(names, dtype, long_ways):
    balancer = StaticLossBalancer(WEIGHTS)
    first, second = (bits(balancer, losses_of(names, dtype)) for _ in range(2))
    assert len(long_ways) == 1
    assert first == second


@pytest.mark.parametrize(
    "losses",
    [
        losses_of(NAMES[::-1]),
        losses_of(dtype=torch.float64),
        losses_of(dtype=torch.bfloat16),
        losses_of() | {"KL_1": torch.tensor(0.8, dtype=torch.bfloat16)},
        {name: x.reshape(1) for name, x in losses_of().items()},
        {name: nn.Parameter(x) for name, x in losses_of().items()},
        losses_of(device="meta"),
        losses_of(NAMES[:-1]),
    ],
    ids=["other-order", "f64", "bf16", "mixed", "vectors", "parameters", "meta", "without-student"],
)
@pytest.mark.filterwarnings("ignore:.*student_loss.*")
def test_another_call_takes_the_long_way(losses, long_ways):
    balancer = used()
    aggregate = balancer(losses)
    assert len(long_ways) == 2
    assert aggregate.dtype == StaticLossBalancer(WEIGHTS)(losses).dtype


@pytest.mark.parametrize(
    "change",
    [
        {"KL_1": 0.5},
        {"KL_1": torch.ones(3)},
        {"KL_1": torch.tensor(1)},
        {"KL_1": torch.ones((), device="meta")},
        {"KL_9": torch.ones(())},
    ],
    ids=["number", "shape", "integer", "device", "name"],
)
def test_errors_are_those_of_a_first_call(change):
    with pytest.raises((TypeError, ValueError)) as first:
        StaticLossBalancer(WEIGHTS)(losses_of() | change)
    balancer = used()
    with pytest.raises(type(first.value)) as later:
        balancer(losses_of() | change)
    assert str(later.value) == str(first.value)


def test_a_reduction_that_is_set_later_is_applied():
    balancer = used()
    before = balancer(losses_of())
    balancer.set_student_loss_reduction_fn(lambda x: x * 2)
    assert balancer(losses_of()) > before
    balancer.set_student_loss_reduction_fn(None)
    assert torch.equal(balancer(losses_of()), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"])
def test_a_copy_gives_the_same_bits(copied):
    balancer = used()
    assert bits(copied(balancer), losses_of()) == bits(balancer, losses_of())


def second_derivative(balancer):
    x = torch.tensor(0.8, requires_grad=True)
    (first,) = torch.autograd.grad(balancer(losses_of() | {"KL_1": x**3}), x, create_graph=True)
    return torch.autograd.grad(first, x)[0].item()


def test_transforms_after_an_eager_call():
    balancer, losses = used(), losses_of()
    gradients = torch.func.grad(balancer)(losses)
    assert gradients == {name: torch.tensor(weight) for name, weight in balancer.weights(losses).items()}
    rows = torch.func.vmap(balancer)({name: torch.stack([x, x]) for name, x in losses.items()})
    assert torch.equal(rows, balancer(losses).expand(2))
    assert second_derivative(balancer) == second_derivative(StaticLossBalancer(WEIGHTS))


def test_an_eager_call_asks_for_no_second_compilation():
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter, balancer = CompileCounter(), StaticLossBalancer(WEIGHTS)
    compiled = torch.compile(balancer, backend=counter, fullgraph=True)
    for call in (compiled, balancer, compiled, balancer, compiled):
        call(losses_of())
    assert counter.frame_count == 1


@pytest.mark.parametrize("weights", [0.3, WEIGHTS], ids=["number", "sequence"])
@pytest.mark.parametrize("kd", [1, 4], ids=["one-kd-loss-before", "the-same-before"])
def test_torch_export_after_a_call_in_eager_code(weights, kd):
    """What a call has kept is not what `torch.export` finds after its own: before PyTorch 2.11 it compared tuples."""
    balancer, losses = StaticLossBalancer(weights if kd == 4 else 0.3), losses_of()
    balancer(losses_of((*NAMES[:kd], "student_loss")))
    program = torch.export.export(balancer, (losses,))
    assert torch.equal(program.module()(losses), balancer(losses))
