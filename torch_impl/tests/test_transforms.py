"""What PyTorch does to a function: the aggregate and its derivatives come out the same."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import StaticLossBalancer

FORMS = {"number": 0.3, "sequence": [0.1, 0.2, 0.3]}
NAMES = ("M_10", "M_2", "student_loss", "M_1")

pytestmark = [
    pytest.mark.parametrize("balancer", [StaticLossBalancer(given) for given in FORMS.values()], ids=FORMS),
    # PyTorch 2.13's own, at the first forward-mode derivative of a process.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def draw(shape=(), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name in NAMES}


def eager(balancer, losses):
    leaves = {name: x.clone().requires_grad_() for name, x in losses.items()}
    aggregate = balancer(leaves)
    gradients = torch.autograd.grad(aggregate, list(leaves.values()), torch.ones_like(aggregate))
    return aggregate.detach(), dict(zip(leaves, gradients, strict=True))


def assert_same_dict(actual, expected):
    assert list(actual) == list(expected)
    for name in expected:
        assert_same_bits(actual[name], expected[name])


def test_grad(balancer):
    losses = draw()
    gradients, aggregate = torch.func.grad_and_value(balancer)(losses)
    expected, expected_gradients = eager(balancer, losses)
    assert_same_bits(aggregate, expected)
    assert_same_dict(gradients, expected_gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_vmap(balancer, dtype):
    losses = draw((7,), dtype)
    assert_same_bits(torch.func.vmap(balancer)(losses), eager(balancer, losses)[0])


def test_vmap_of_grad(balancer):
    losses = draw((7,))
    assert_same_dict(torch.func.vmap(torch.func.grad(balancer))(losses), eager(balancer, losses)[1])


def test_vmap_over_one_loss(balancer):
    losses = draw()
    batch = torch.linspace(-1, 1, 5)
    aggregates = torch.func.vmap(lambda x: balancer({**losses, "M_2": x}))(batch)
    assert_same_bits(aggregates, torch.stack([balancer({**losses, "M_2": x}) for x in batch]))


def test_jvp(balancer):
    losses, tangents = draw(), draw(seed=1)
    aggregate, tangent, *_ = torch.func.jvp(balancer, (losses,), (tangents,))
    assert_same_bits(aggregate, balancer(losses))
    assert_same_bits(tangent, balancer(tangents))  # linear


def test_forward_ad(balancer):
    losses, tangents = draw(), draw(seed=1)
    with forward_ad.dual_level():
        dual = balancer({name: forward_ad.make_dual(x, tangents[name]) for name, x in losses.items()})
        aggregate, tangent = forward_ad.unpack_dual(dual)
    assert_same_bits(aggregate, balancer(losses))
    assert_same_bits(tangent, balancer(tangents))


def test_forward_ad_of_one_loss(balancer):
    losses = draw()
    with forward_ad.dual_level():
        dual = balancer({**losses, "M_2": forward_ad.make_dual(losses["M_2"], torch.tensor(1.0))})
        tangent = forward_ad.unpack_dual(dual).tangent
    assert_same_bits(tangent, eager(balancer, losses)[1]["M_2"])


def test_hessian_is_zero(balancer):
    hessian = torch.func.hessian(balancer)(draw())
    for row in hessian.values():
        for entry in row.values():
            assert_same_bits(entry, torch.tensor(0.0))


def test_hessian_through_the_losses(balancer):
    weights = balancer.weights(draw())
    hessian = torch.func.hessian(lambda x: balancer(dict.fromkeys(NAMES, x * x)))(torch.tensor(3.0))
    torch.testing.assert_close(hessian, torch.tensor(2.0 * sum(weights.values())))


def test_functional_call(balancer):
    losses = draw()
    assert_same_bits(torch.func.functional_call(balancer, {}, (losses,)), balancer(losses))


def test_double_backward(balancer):
    x = torch.tensor(3.0, requires_grad=True)
    aggregate = balancer(dict.fromkeys(NAMES, x**3))
    (first,) = torch.autograd.grad(aggregate, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x, create_graph=True)
    (third,) = torch.autograd.grad(second, x)
    weight = sum(balancer.weights(dict.fromkeys(NAMES)).values())
    torch.testing.assert_close(torch.stack([first, second, third]).detach(), weight * torch.tensor([27.0, 18.0, 6.0]))


def test_double_backward_to_the_cotangent(balancer):
    losses = {name: x.requires_grad_() for name, x in draw().items()}
    cotangent = torch.tensor(0.7, requires_grad=True)
    gradients = torch.autograd.grad(balancer(losses), list(losses.values()), cotangent, create_graph=True)
    seconds = draw(seed=1)
    (second,) = torch.autograd.grad(gradients, cotangent, list(seconds.values()))
    torch.testing.assert_close(second, balancer(seconds))  # the gradient of w * g to g is the same weighted sum


def test_export(balancer):
    losses = draw()
    program = torch.export.export(balancer, (losses,))
    assert_same_bits(program.module()(losses), balancer(losses))
    assert not program.state_dict


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_checkpoint(balancer, use_reentrant):
    leaf = torch.tensor([0.3, 1.7, -0.9, 2.2], requires_grad=True)

    def model(x):
        return balancer(dict(zip(NAMES, (x * x).unbind(), strict=True)))

    (expected,) = torch.autograd.grad(model(leaf), leaf)
    aggregate = checkpoint(model, leaf, use_reentrant=use_reentrant)
    aggregate.backward()
    assert_same_bits(aggregate, model(leaf))
    assert_same_bits(leaf.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast(balancer, dtype):
    losses = draw()
    expected, gradients = eager(balancer, losses)
    with torch.autocast("cpu", dtype):
        aggregate, under_autocast = eager(balancer, losses)
    assert_same_bits(aggregate, expected)
    assert_same_dict(under_autocast, gradients)


def test_inference_mode_first_then_training(balancer):
    kd_loss_weight = 0.31 if isinstance(balancer.kd_loss_weight, float) else [0.11, 0.22, 0.33]  # weights not used before
    fresh = StaticLossBalancer(kd_loss_weight)
    losses = draw()
    with torch.inference_mode():
        inferred = fresh(losses)
    aggregate, gradients = eager(fresh, losses)
    assert_same_bits(inferred.clone(), aggregate)
    assert not any(gradient.is_inference() for gradient in gradients.values())


def test_no_grad(balancer):
    losses = {name: x.requires_grad_() for name, x in draw().items()}
    with torch.no_grad():
        aggregate = balancer(losses)
    assert not aggregate.requires_grad
    assert_same_bits(aggregate, balancer(losses))


def test_parameters_as_losses(balancer):
    losses = draw()
    assert_same_bits(balancer({name: torch.nn.Parameter(x) for name, x in losses.items()}), balancer(losses))


def test_flush_denormal_changes_nothing(balancer):
    tiny = 2.0**-126
    values = [tiny / 2, tiny * 1.5, 1.0, -tiny * 3]
    losses = dict(zip(NAMES, torch.tensor(values).unbind(), strict=True))
    subnormal = torch.tensor(tiny / 2)
    expected = eager(balancer, losses)
    torch.set_flush_denormal(True)
    try:
        flushing = (subnormal * torch.tensor(1.0)).view(torch.int32).item() == 0  # else this machine cannot
        actual = eager(balancer, losses)
    finally:
        torch.set_flush_denormal(False)
    if not flushing:
        pytest.skip("this processor does not flush subnormals")
    assert_same_bits(actual[0], expected[0])
    assert_same_dict(actual[1], expected[1])
