"""`div` and `rmul`: what a quotient is made of, errors, what PyTorch does to a function. Their bits: `test_div.py`."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch._dynamo
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from loss_balancers.parity.bits import array_bits, assert_same_bits
from loss_balancers.torch.portable import division
from loss_balancers.torch.portable.division import div, quotient, rmul

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
INDUCTOR = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler"),
)
X, Y = torch.tensor(3.0), torch.tensor(-7.0)
DTYPES = [torch.float32, torch.float64]
each_function = pytest.mark.parametrize("function", [div, rmul])
pytestmark = [
    # PyTorch 2.13's own, for every autograd.Function that Dynamo traces, and at the first compilation or forward mode of a process.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves():
    return X.clone().requires_grad_(), Y.clone().requires_grad_()


def off_by(ulp):
    """A division that is wrong by as many units in the last place."""

    def estimate(a, b):
        return ((a / b).view(torch.int32 if a.dtype == torch.float32 else torch.int64) + ulp).view(a.dtype)

    return estimate


def significands(dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 200_000, generator=generator, dtype=dtype) + 1


@pytest.mark.parametrize("ulp", [-30, -4, -3, -2, -1, 1, 2, 3, 4, 30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_division_is_repaired(dtype, ulp):
    a, b = significands(dtype)
    assert_same_bits(quotient(a, b, off_by(ulp)), a / b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_division_by_a_rounded_reciprocal_is_repaired(dtype):
    a, b = significands(dtype)
    estimate = lambda a, b: a * (1 / b)  # noqa: E731
    assert (array_bits(estimate(a, b)) != array_bits(a / b)).any()
    assert_same_bits(quotient(a, b, estimate), a / b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_useless_division_is_not_repaired(dtype):
    """So the estimate that a test hands in is the one that is used."""
    a, b = significands(dtype)
    assert (array_bits(quotient(a, b, off_by(2000))) != array_bits(a / b)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quotient_is_repaired_within_vmap(monkeypatch, dtype):
    """In eager code and in compiled, as on devices whose division is not correctly rounded."""
    monkeypatch.setattr(division, "_divides", lambda a: False)
    a, b = significands(dtype)[:, :30].reshape(2, 3, 10)
    mapped = torch.func.vmap(div, in_dims=1)
    for function in (mapped, torch.compile(mapped, fullgraph=True, backend="aot_eager")):
        assert_same_bits(function(a, b), (a / b).T)


@pytest.mark.parametrize(
    ("device", "compiling", "repaired"),
    [("cpu", False, False), ("cpu", True, False), ("cuda", False, False), ("cuda", True, True), ("meta", False, True)],
)
def test_where_the_quotient_is_repaired(monkeypatch, device, compiling, repaired):
    """Wherever division is not known to be correctly rounded; a device that is not here is stood in for."""

    class Operand:
        device = torch.device("cpu")

        def __truediv__(self, other):
            return "native"

    operand = Operand()
    operand.device = torch.device(device)
    monkeypatch.setattr(division, "keep", lambda x: x)
    monkeypatch.setattr(division, "quotient", lambda a, b: "repaired")
    monkeypatch.setattr(division, "compiling", lambda: compiling)
    assert division.div_of_kept(operand, operand) == ("repaired" if repaired else "native")  # type: ignore[arg-type]


@each_function
@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        pytest.param(3.0, Y, TypeError, "Received float and float32", id="a-number"),
        pytest.param(X, [1.0], TypeError, "Received float32 and list", id="a-list"),
        pytest.param(torch.tensor(3), torch.tensor(7), TypeError, "two of float64. Received int64 and int64", id="ints"),
        pytest.param(X.bfloat16(), Y.bfloat16(), TypeError, "Received bfloat16 and bfloat16", id="narrow"),
        pytest.param(X, Y.double(), TypeError, "Received float32 and float64. Convert", id="two-dtypes"),
        pytest.param(X, torch.ones(2), ValueError, r"one shape. Received \(\) and \(2,\). Broadcast", id="two-shapes"),
        pytest.param(X, Y.to("meta"), ValueError, "one device. Received cpu and meta. Move", id="two-devices"),
    ],
)
def test_errors(function, a, b, error, words):
    with pytest.raises(error, match=words):
        function(a, b)


@each_function
def test_vmap(function):
    x = torch.linspace(-3, 5, 12)
    matrix = x.reshape(3, 4)
    vmap = torch.func.vmap
    assert_same_bits(vmap(function)(x, x.flip(0)), function(x, x.flip(0)))
    assert_same_bits(vmap(function, (0, None))(x, Y), function(x, Y.expand(12)))
    assert_same_bits(vmap(function, (None, 0))(Y, x), function(Y.expand(12), x))
    assert_same_bits(vmap(function, (1, 0))(matrix, matrix.T), function(matrix.T, matrix.T))
    assert_same_bits(vmap(vmap(function, (None, 0)), (0, None))(x, x), function(*torch.meshgrid(x, x, indexing="ij")))


@each_function
def test_vmap_of_grad_and_grad_of_vmap(function):
    x = torch.linspace(1, 5, 12)
    expected = torch.func.vjp(function, x, Y.expand(12))[1](torch.ones(12))
    gradients = torch.func.vmap(torch.func.grad(function, (0, 1)), (0, None))(x, Y)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_same_bits(gradient, wanted)
    to_x, to_y = torch.func.grad(lambda x, y: torch.func.vmap(function, (0, None))(x, y).sum(), (0, 1))(x, Y)
    assert_same_bits(to_x, expected[0])
    torch.testing.assert_close(to_y, expected[1].sum())


@each_function
def test_every_way_to_a_gradient_gives_the_same(function):
    operands = leaves()
    expected = torch.autograd.grad(function(*operands), operands)
    assert_same_bits(torch.stack(torch.func.grad(function, (0, 1))(X, Y)), torch.stack(expected))
    recomputed = checkpoint(function, *operands, use_reentrant=False)
    assert_same_bits(torch.stack(torch.autograd.grad(recomputed, operands)), torch.stack(expected))
    for i, operand in enumerate(operands):  # of one operand alone
        one = [x.detach() for x in operands]
        one[i] = operand
        assert_same_bits(torch.autograd.grad(function(*one), operand)[0], expected[i])


@each_function
def test_every_way_to_a_tangent_gives_the_same(function):
    """To the divisor it is rounded otherwise than the gradient: first the product, then the quotient."""
    one = torch.tensor(1.0)
    expected = (div(one, Y), div(-div(X, Y), Y)) if function is div else (Y, X)
    assert_same_bits(torch.stack(torch.func.jacfwd(function, (0, 1))(X, Y)), torch.stack(expected))
    for i in range(2):
        operands = [X, Y]
        with forward_ad.dual_level():
            operands[i] = forward_ad.make_dual(operands[i], one)
            assert_same_bits(forward_ad.unpack_dual(function(*operands)).tangent, expected[i])
        basis = [torch.zeros(()), torch.zeros(())]
        basis[i] = one
        assert_same_bits(torch.func.jvp(function, (X, Y), tuple(basis))[1], expected[i])


@pytest.mark.parametrize("mode", [torch.func.jacfwd, torch.func.jacrev])
def test_second_order(mode):
    a, b = 3.0, -7.0
    hessian = mode(torch.func.grad(div, (0, 1)), (0, 1))(X, Y)
    np.testing.assert_allclose(np.array(hessian), [[0, -1 / b**2], [-1 / b**2, 2 * a / b**3]], rtol=1e-6)
    hessian = mode(torch.func.grad(rmul, (0, 1)), (0, 1))(X, Y)
    assert_same_bits(np.array(hessian, np.float32), np.array([[0, 1], [1, 0]], np.float32))


def test_double_backward():
    a, b = leaves()
    (first,) = torch.autograd.grad(div(a, b), b, create_graph=True)
    second = torch.autograd.grad(first, (a, b))
    torch.testing.assert_close(torch.stack(second), torch.tensor([-1 / 49, 6 / -343]))


def test_one_tensor_as_both_operands():
    x, _ = leaves()
    assert_same_bits(torch.autograd.grad(div(x, x), x)[0], torch.tensor(0.0))
    assert_same_bits(torch.autograd.grad(rmul(x, x), x)[0], torch.tensor(6.0))
    assert_same_bits(torch.compile(lambda x: rmul(x, x), fullgraph=True, backend="aot_eager")(x), torch.tensor(9.0))


@pytest.mark.in_turn(8)
@each_function
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_compiled_in_a_larger_graph(function, backend, needs):
    def model(a, b):
        return function(a + 1, function(b, a)) * 2

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    operands = [x.clone().requires_grad_(need) for x, need in zip((X, Y), needs, strict=True)]
    value, expected = compiled(*operands), model(*operands)
    assert_same_bits(value, expected)
    wanted = [x for x in operands if x.requires_grad]
    if wanted:
        for theirs, ours in zip(torch.autograd.grad(value, wanted), torch.autograd.grad(expected, wanted), strict=True):
            assert_same_bits(theirs, ours)


@each_function
def test_without_gradients(function):
    assert not function(X, Y).requires_grad
    with torch.no_grad():
        assert not function(*leaves()).requires_grad
    with torch.inference_mode():
        assert_same_bits(function(X, Y).clone(), function(X, Y))
    assert function(*leaves()).requires_grad


@each_function
def test_export(function):
    class Model(torch.nn.Module):
        def forward(self, a, b):
            return function(a, b)

    assert_same_bits(torch.export.export(Model(), (X, Y)).module()(X, Y), function(X, Y))


@each_function
def test_autocast_changes_nothing(function):
    expected = function(X, Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(function(X, Y), expected)


def test_flush_denormal_changes_nothing():
    a = torch.tensor([2.0**-125, 2.0**-126, 2.0**-127, 2.0**-120, -(2.0**-125), 3e-38])
    b = torch.tensor([2.0, 0.5, 0.5, 2.0**10, 1.9999999, 2.0**-127])
    expected = div(a, b), quotient(a, b), rmul(a, b)
    torch.set_flush_denormal(True)
    try:
        actual = div(a, b), quotient(a, b), rmul(a, b)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(expected[0], expected[1])
    for got, wanted in zip(actual, expected, strict=True):
        assert_same_bits(got, wanted)
