"""One transform of `torch.func` within another, around every balancer: what the spec says of the products, bit for bit."""

from itertools import cycle

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from with_state import FIRST

import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.torch import functional
from loss_balancers.torch.portable import div, exp, log, rmul, sqrt

pytestmark = [
    # PyTorch 2.13's own, for every autograd.Function that Dynamo traces, and at the first compilation or forward mode of a process.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`.*` of this balancer did not change in a training step:UserWarning"),  # none is trained
]


@pytest.fixture
def balancer(example, draw):
    """One of every kind, with weights that are its own: some steps in."""
    balancer = registry.make(registry.examples()[example], loss_balancers.torch)
    for i in range(3):
        balancer(draw(i))
        balancer.step()
    return balancer.eval()


@pytest.fixture
def wrap(mode):
    """A function as it is, or compiled."""
    if mode == "eager":
        yield lambda f: f
    else:
        torch._dynamo.reset()
        yield lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")
        torch._dynamo.reset()


MODES = ("eager", "compiled")
each_mode = pytest.mark.parametrize("mode", MODES)
#: Every example eager; compiled, which takes seconds, the first of each balancer.
ALL = [(mode, name) for mode in MODES for name in (registry.examples() if mode == "eager" else FIRST)]
#: Those whose aggregate is not linear in the losses. With a parameter it is.
CURVED = {name for name, each in registry.examples().items() if each.weights_are == "derivatives" and not each.learned}
each_example = pytest.mark.parametrize(("mode", "example"), ALL)
each_curved = pytest.mark.parametrize(("mode", "example"), [pair for pair in ALL if pair[1] in CURVED])


def in_turn(place):
    """Every linear example eager; compiled every second of the first ones, from this place on: two tests share them."""
    linear = [name for name in registry.examples() if name not in CURVED]
    compiled = [name for name in linear if name in FIRST][place::2]
    rows = [*(("eager", name) for name in linear), *(("compiled", name) for name in compiled)]
    return pytest.mark.parametrize(("mode", "example"), rows)


def of_a_vector(balancer, names):
    """The balancer, of its losses in one tensor."""
    return lambda x: balancer(dict(zip(names, x.unbind(), strict=True)))


def derivatives_of_a_square(f, x):
    """Row i is the gradient of ``f`` for the cotangent 2 w_i, where w_i is the derivative by loss i; by plain autograd."""
    leaf = x.clone().requires_grad_()
    (weights,) = torch.autograd.grad(f(leaf), leaf)
    return torch.stack([torch.autograd.grad(f(leaf), leaf, 2 * w)[0] for w in weights])


@pytest.mark.in_turn(8)
@in_turn(0)
def test_second_derivatives(balancer, wrap, draw):
    losses = draw(7)
    x = torch.stack(list(losses.values()))
    f = of_a_vector(balancer, list(losses))
    expected = derivatives_of_a_square(f, x)

    def derivatives(x):
        squared = lambda x: f(x) ** 2  # noqa: E731
        return hessian(squared)(x), jacrev(jacrev(squared))(x), jacfwd(jacfwd(f))(x)

    forward_of_reverse, reverse_of_reverse, forward_of_forward = wrap(derivatives)(x)
    assert_same_bits(forward_of_reverse, expected.T.contiguous())
    assert_same_bits(reverse_of_reverse, expected)
    assert_same_bits(forward_of_forward, torch.zeros(len(x), len(x)))


@pytest.mark.in_turn(8)
@in_turn(1)
def test_forward_mode_twice(balancer, wrap, draw):
    """Of losses that are squares: the second tangent of each is 2, and of all others 0."""
    x = torch.stack(list(draw(7).values()))
    names = list(draw())
    f = of_a_vector(balancer, names)
    weights = balancer.weights(dict(zip(names, x * x, strict=True)))
    expected = 2 * torch.diag(torch.stack([torch.as_tensor(weights[name], dtype=torch.float32) for name in names]))
    assert_same_bits(wrap(jacfwd(jacfwd(lambda x: f(x * x))))(x), expected)


@pytest.mark.in_turn(8)
@each_curved
def test_second_derivatives_of_a_function_of_the_losses(balancer, wrap, draw):
    """Reverse mode twice has the bits of plain autograd. Forward mode adds in an order of its own (spec A12)."""
    losses = draw(7)
    x = torch.stack(list(losses.values()))
    f = of_a_vector(balancer, list(losses))
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    expected = torch.stack([torch.autograd.grad(derivative, leaf, retain_graph=True)[0] for derivative in first])
    assert (expected.diagonal() != 0).all()  # beside it they are 0 where each loss has a term of its own, by constants

    def derivatives(x):
        return jacrev(jacrev(f))(x), hessian(f)(x), jacfwd(jacfwd(f))(x)

    reverse_of_reverse, *others = wrap(derivatives)(x)
    assert_same_bits(reverse_of_reverse, expected)
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.in_turn(8)
@each_example
def test_forward_mode_around_a_batch(balancer, wrap, draw):
    names = list(draw())
    x, t = (torch.stack([torch.stack(list(draw(seed + i).values())) for i in range(3)]) for seed in (7, 17))
    f = of_a_vector(balancer, names)
    aggregates, tangents, *_ = wrap(lambda x, t: jvp(vmap(f), (x,), (t,)))(x, t)
    for i in range(len(x)):
        assert_same_bits(aggregates[i], f(x[i]))
        assert_same_bits(tangents[i], jvp(f, (x[i],), (t[i],))[1])


#: Ways to a second derivative of a function of one number.
TWICE = {
    "jvp of jvp": lambda f: along(along(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "vmap of jvp, twice": lambda f: along_mapped(along_mapped(f)),
    "jvp of grad": lambda f: along(grad(f)),
    "grad of jvp": lambda f: grad(along(f)),
}
#: Functions of one number, and their second derivatives.
PORTABLE = {
    "rmul": (lambda x: rmul(x, x), lambda x: 2.0),
    "rmul, third power": (lambda x: rmul(rmul(x, x), x), lambda x: 6 * x),
    "div of a square": (lambda x: div(x * x, torch.tensor(3.0)), lambda x: 2 / 3),
    "div by it": (lambda x: div(torch.tensor(1.0), x), lambda x: 2 / x**3),
}


def along(f):
    """The derivative, by forward mode."""
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


def along_mapped(f):
    """The same, in a batch."""
    return lambda x: vmap(lambda t: jvp(f, (x,), (t,))[1])(torch.ones(2))[0]


@pytest.mark.parametrize(
    ("mode", "function", "twice"),
    [
        *(("eager", function, twice) for function in PORTABLE for twice in TWICE),
        # Each way once, with the next function.
        *zip(["compiled"] * len(TWICE), cycle(PORTABLE), TWICE, strict=False),
    ],
)
def test_portable_functions(function, twice, wrap):
    """Nothing is lost in a `jvp` within a `jvp`, where PyTorch turns forward mode off."""
    f, second = PORTABLE[function]
    torch.testing.assert_close(wrap(TWICE[twice](f))(torch.tensor(3.0)), torch.tensor(second(3.0)))


@pytest.mark.parametrize("transform", [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f))])
@each_mode
def test_weights_that_are_a_vector(transform, wrap):
    weights, x = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, 2.0, 4.0])
    derivative = wrap(transform(lambda x: functional.weighted_sum(list(x.unbind()), weights) ** 2))(x)
    torch.testing.assert_close(derivative, 2 * weights[:, None] * weights)


@each_mode
def test_a_map_that_keeps_its_tensors(wrap):
    """A call like the last one, outside of any transform, has tensors in its map."""
    balancer = loss_balancers.torch.StaticLossBalancer([0.1, 0.2, 0.3, 0.2])
    names = ("A_0", "A_1", "A_2", "A_3", "student_loss")
    f, x = of_a_vector(balancer, names), torch.arange(1.0, 6.0)
    expected = derivatives_of_a_square(f, x)
    assert_same_bits(wrap(hessian(lambda x: f(x) ** 2))(x), expected.T.contiguous())


SQUARES = {
    "rmul": lambda x: rmul(x, x),
    "div": lambda x: div(x, x * x + 1),
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "geometric": of_a_vector(loss_balancers.torch.GeometricLossBalancer(("A_0", "A_1")), ("A_0", "A_1")),
    "stch": of_a_vector(loss_balancers.torch.STCHLossBalancer(("A_0", "A_1"), form="log"), ("A_0", "A_1")),
    "imtl": of_a_vector(loss_balancers.torch.IMTLLossBalancer(("A_0", "A_1")), ("A_0", "A_1")),
}


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("x", [(2.5149147, 3.0111676), (2.0**-126, 1.5)])
def test_the_tangent_of_a_gradient_is_the_same_with_a_graph_and_without(name, x):
    """Forward over reverse: a backward without ``create_graph`` is differentiated too."""
    tangents = []
    with forward_ad.dual_level():
        for create_graph in (False, True):
            dual = forward_ad.make_dual(torch.tensor(x, requires_grad=True), torch.tensor([-1.4171834, 0.90609437]))
            (gradient,) = torch.autograd.grad(SQUARES[name](dual).sum(), dual, create_graph=create_graph)
            tangents.append(forward_ad.unpack_dual(gradient).tangent)
    without, with_graph = tangents
    assert (without is None) == (with_graph is None)  # of a linear one there is none
    if with_graph is not None:
        assert_same_bits(without.detach(), with_graph.detach())


LINEAR = {
    "static": of_a_vector(loss_balancers.torch.StaticLossBalancer([0.3, 0.7]), ("A_0", "A_1")),
    "weights-above-1": of_a_vector(loss_balancers.torch.WeightedSumLossBalancer({"A_0": 3.0, "A_1": 0.3}), ("A_0", "A_1")),
    "float64": lambda x: LINEAR["static"](x.double()),
    "ema": of_a_vector(loss_balancers.torch.EMANormalizedLossBalancer(("A_0", "A_1")).eval(), ("A_0", "A_1")),
}


@pytest.mark.parametrize("cotangent", [0.0, 1.0])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", [*SQUARES, *LINEAR])
def test_a_backward_within_a_dual_level_of_a_graph_from_before_it(name, create_graph, cotangent):
    """The gradient is linear in the cotangent: its tangent is the gradient with that of the cotangent in its place, at 0 too."""
    f, x = (SQUARES | LINEAR)[name], torch.tensor([2.5149147, 3.0111676], requires_grad=True)
    y = f(x).sum()
    (expected,) = torch.autograd.grad(y, x, torch.full_like(y, 0.3), retain_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.full_like(y, cotangent), torch.full_like(y, 0.3))
        (gradient,) = torch.autograd.grad(y, x, dual, create_graph=create_graph)
        tangent = forward_ad.unpack_dual(gradient).tangent
    assert tangent is not None
    assert_same_bits(tangent.detach(), expected)
