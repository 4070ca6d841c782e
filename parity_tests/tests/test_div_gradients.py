"""The gradients, tangents and second derivatives of `div` and `rmul`: twin against twin against the spec, as bits."""

import inspect
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch._dynamo
from quotients import DTYPES, drawn, exact, exact_product, x64

import loss_balancers.jax.portable.division as in_jax
import loss_balancers.torch.portable.division as in_torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import arithmetic
from loss_balancers.spec.formats import FormatName

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)

each_format = pytest.mark.parametrize("fmt", DTYPES)
INDUCTOR = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")
pytestmark = [
    # PyTorch 2.13's own, at the first compilation of a process and for every autograd.Function that it compiles.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]


Function = Callable[[Any, Any], Any]
FUNCTIONS = ["div", "rmul"]
LENGTH = 100_000


def with_gradients(function: Function) -> Callable[..., Any]:
    """Value and gradients in JAX."""

    def step(a: Any, b: Any, g: Any) -> Any:
        value, pullback = jax.vjp(function, a, b)
        return value, *pullback(g)

    return step


def with_gradients_in_torch(function: Function) -> Callable[..., Any]:
    def step(a: np.ndarray, b: np.ndarray, g: np.ndarray) -> Any:
        operands = [torch.from_numpy(x).requires_grad_() for x in (a, b)]
        value = function(*operands)
        return value, *torch.autograd.grad(value, operands, torch.from_numpy(g))

    return step


def cases(fmt: FormatName) -> list[np.ndarray]:
    """Operands and cotangent: a half of any bits, a half ordinary."""
    a, b = drawn(fmt)
    rng = np.random.default_rng(8)
    sign = rng.choice(np.array([-1, 1], DTYPES[fmt]), (3, LENGTH // 2))
    normal = rng.lognormal(0, 2, (3, LENGTH // 2)).astype(DTYPES[fmt]) * sign
    wild = [a[-LENGTH // 2 :], b[-LENGTH // 2 :], a[: LENGTH // 2]]
    return [np.concatenate(pair) for pair in zip(wild, normal, strict=True)]


def expected_gradients(name: str, a: np.ndarray, b: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """The rule of spec A12, in NumPy."""
    if name == "rmul":
        return [exact_product(a, b), exact_product(g, b), exact_product(g, a)]
    q, scaled = exact(a, b), exact(g, b)
    return [q, scaled, exact_product(scaled, -q)]


@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_differ_in_none(name: str, fmt: FormatName) -> None:
    a, b, g = cases(fmt)
    expected = expected_gradients(name, a, b, g)
    with x64(fmt):
        for step in (with_gradients(getattr(in_jax, name)), jax.jit(with_gradients(getattr(in_jax, name)))):
            for got, wanted in zip(step(a, b, g), expected, strict=True):
                assert_same_bits(got, wanted, nan="class")
    for got, wanted in zip(with_gradients_in_torch(getattr(in_torch, name))(a, b, g), expected, strict=True):
        assert_same_bits(got, wanted, nan="class")


@INDUCTOR
@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_gradients_differ_in_none(name: str, fmt: FormatName) -> None:
    torch._dynamo.reset()
    step = with_gradients_in_torch(torch.compile(getattr(in_torch, name), fullgraph=True))
    for got, wanted in zip(step(*cases(fmt)), expected_gradients(name, *cases(fmt)), strict=True):
        assert_same_bits(got, wanted, nan="class")


@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_spec_has_the_same_gradients(name: str, fmt: FormatName) -> None:
    picked = [x[:: LENGTH // 4000] for x in cases(fmt)]
    rule = getattr(arithmetic, f"{name}_gradient")
    spec = [rule(g, a, b, fmt) for a, b, g in zip(*(x.tolist() for x in picked), strict=True)]
    for got, wanted in zip(np.array(spec, DTYPES[fmt]).T, expected_gradients(name, *picked)[1:], strict=True):
        assert_same_bits(got, wanted, nan="class")


@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_twins_have_the_same_higher_derivatives(name: str, fmt: FormatName) -> None:
    """The gradient of the gradient to the dividend, in which each operand has one path and no sum is the framework's."""
    a, b, g = (x[LENGTH // 2 :][:5000] for x in cases(fmt))
    with x64(fmt):
        second = jax.jit(with_gradients(lambda b, g: with_gradients(getattr(in_jax, name))(a, b, g)[1]))(b, g, a)
    x, y, cotangent = (torch.from_numpy(v).requires_grad_() for v in (a, b, g))
    (first,) = torch.autograd.grad(getattr(in_torch, name)(x, y), x, cotangent, create_graph=True)
    for theirs, ours in zip(second, (first, *torch.autograd.grad(first, (y, cotangent), x)), strict=True):
        assert_same_bits(theirs, ours)


@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_twins_have_the_same_tangents(name: str, fmt: FormatName) -> None:
    a, b, g = (x[LENGTH // 2 :] for x in cases(fmt))
    for tangents in ((g, 0 * g), (0 * g, g)):
        with x64(fmt):
            value, tangent = jax.jit(lambda t: jax.jvp(getattr(in_jax, name), (a, b), t))(tangents)
        operands = tuple(map(torch.from_numpy, (a, b)))
        ours = torch.func.jvp(getattr(in_torch, name), operands, tuple(map(torch.from_numpy, tangents)))
        for x, y in zip((value, tangent), ours, strict=True):
            assert_same_bits(x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_signatures_and_documentation(name: str) -> None:
    ours, theirs = getattr(in_torch, name), getattr(in_jax, name)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    texts = []
    for function in (ours, theirs):
        before, _, after = (inspect.getdoc(function) or "").partition("Example:")
        texts.append((before + after.partition("Reference:")[2]).replace("shapes or the devices", "shapes"))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 400
