"""Derivatives of `exp`, `log` and `sqrt`: twin against twin against the spec, as bits; and what all of `portable` refuses."""

import inspect
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._dynamo
from elementary import NAMES, drawn, exact, exact_gradient
from jax import lax
from quotients import exact as quotient
from quotients import exact_product
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import loss_balancers.jax.portable as in_jax
import loss_balancers.torch.portable as in_torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import errors
from loss_balancers.torch.portable import elementary as torch_elementary

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")),
]
SUMS = ("softmax", "logsumexp")
each_function = pytest.mark.parametrize("name", NAMES)
pytestmark = [
    # PyTorch 2.13's own, at the first compilation of a process and for every autograd.Function that it compiles.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]

Function = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def numbers(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Operands, the hardest and the corners first, and cotangents: a half ordinary, a half of any bits."""
    x = np.concatenate([drawn(name)[:160], drawn(name)[::100]])
    rng = np.random.default_rng(3)
    return x, np.where(rng.random(len(x)) < 0.5, rng.normal(0, 2, len(x)).astype(np.float32), drawn("log")[-len(x) :])


def second(name: str, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of g' (the gradient for the cotangent g) to x and to g, for the cotangent 1 (spec A12, A14)."""
    one, y = np.ones_like(x), exact(name, x)
    if name == "exp":
        return exact_product(exact_product(one, g), y), exact_product(one, y)
    divisor = x if name == "log" else y + y
    to_g = quotient(one, divisor)
    to_divisor = exact_product(to_g, -quotient(g, divisor))
    if name == "log":
        return to_divisor, to_g
    with np.errstate(all="ignore"):
        return quotient(to_divisor + to_divisor, divisor), to_g


@each_function
def test_gradients_differ_in_none(name: str) -> None:
    x, g = numbers(name)
    expected = exact_gradient(name, x, g)
    of_jax = lambda x, g: jax.vjp(getattr(in_jax, name), x)[1](g)[0]  # noqa: E731
    assert_same_bits(of_jax(x, g), expected, nan="class")
    assert_same_bits(jax.jit(of_jax)(x, g), expected, nan="class")
    operand = torch.from_numpy(x).requires_grad_()
    value = getattr(in_torch, name)(operand)
    assert_same_bits(torch.autograd.grad(value, operand, torch.from_numpy(g))[0], expected, nan="class")


@pytest.mark.in_turn(2)
@each_function
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_gradients_differ_in_none(backend: str, name: str) -> None:
    x, g = numbers(name)
    operand = torch.from_numpy(x).requires_grad_()
    value = torch.compile(getattr(in_torch, name), fullgraph=True, backend=backend)(operand)
    assert_same_bits(value, exact(name, x), nan="class")
    assert_same_bits(torch.autograd.grad(value, operand, torch.from_numpy(g))[0], exact_gradient(name, x, g), nan="class")


@each_function
def test_second_derivatives_differ_in_none(name: str) -> None:
    x, g = numbers(name)
    of_jax = lambda x, g: jax.vjp(getattr(in_jax, name), x)[1](g)[0]  # noqa: E731
    in_order = jax.jit(lambda x, g: jax.vjp(of_jax, x, g)[1](jnp.ones_like(x)))(x, g)
    operand, cotangent = (torch.from_numpy(v).requires_grad_() for v in (x, g))
    (first,) = torch.autograd.grad(getattr(in_torch, name)(operand), operand, cotangent, create_graph=True)
    in_eager = torch.autograd.grad(first, (operand, cotangent), torch.ones(len(x)))
    for theirs, ours, wanted in zip(in_order, in_eager, second(name, x, g), strict=True):
        # A cotangent below 2^-126 counts as zero, so the sum of two that are not is compared after `keep`.
        assert_same_bits(theirs, wanted, nan="class")
        assert_same_bits(ours, wanted, nan="class")


@each_function
def test_tangents_differ_in_none(name: str) -> None:
    x, t = numbers(name)
    expected = exact_gradient(name, x, t)
    assert_same_bits(jax.jit(lambda x, t: jax.jvp(getattr(in_jax, name), (x,), (t,))[1])(x, t), expected, nan="class")
    operand, tangent = torch.from_numpy(x), torch.from_numpy(t)
    assert_same_bits(torch.func.jvp(getattr(in_torch, name), (operand,), (tangent,))[1], expected, nan="class")
    with forward_ad.dual_level():
        dual = getattr(in_torch, name)(forward_ad.make_dual(operand, tangent))
        assert_same_bits(forward_ad.unpack_dual(dual).tangent, expected, nan="class")


@each_function
def test_every_way_to_a_gradient_gives_the_same(name: str) -> None:
    x = np.random.default_rng(4).lognormal(0, 1, 64).astype(np.float32)
    once, twice = exact_gradient(name, x, np.ones_like(x)), second(name, x, np.ones_like(x))[0]
    ours, theirs = getattr(in_torch, name), getattr(in_jax, name)
    grad, vmap = torch.func.grad, torch.func.vmap
    operands, leaf = torch.from_numpy(x), torch.from_numpy(x).requires_grad_()
    assert_same_bits(torch.autograd.grad(checkpoint(ours, leaf, use_reentrant=False).sum(), leaf)[0], once)
    for f in (vmap(grad(ours)), grad(lambda x: vmap(ours)(x).sum()), vmap(torch.func.jacfwd(ours))):
        assert_same_bits(f(operands), once)
        assert_same_bits(torch.compile(f, fullgraph=True, backend="aot_eager")(operands), once)
    for f in (
        jax.vmap(jax.grad(jax.checkpoint(theirs))),
        jax.grad(lambda x: jax.vmap(theirs)(x).sum()),
        jax.vmap(jax.jacfwd(theirs)),
    ):
        assert_same_bits(jax.jit(f)(x), once)
        with enable_x64(True):
            assert_same_bits(jax.jit(f)(x), once)
    scanned = lambda x: lax.scan(lambda carry, v: (carry + theirs(v), None), jnp.float32(0), x)[0]  # noqa: E731
    assert_same_bits(jax.jit(jax.grad(scanned))(x), once)
    for f in (grad(grad(ours)), torch.func.jacrev(torch.func.jacrev(ours)), torch.func.jacfwd(torch.func.jacrev(ours))):
        np.testing.assert_array_max_ulp(vmap(f)(operands).numpy(), twice, 2)
    # Forward mode twice: nothing is lost in a `jvp` within a `jvp`, where PyTorch turns forward mode off.
    np.testing.assert_array_max_ulp(vmap(torch.func.jacfwd(torch.func.jacfwd(ours)))(operands).numpy(), twice, 2)
    for f in (jax.grad(jax.grad(theirs)), jax.jacfwd(jax.jacfwd(theirs)), jax.jacfwd(jax.grad(theirs))):
        np.testing.assert_array_max_ulp(np.asarray(jax.vmap(f)(x)), twice, 2)


# --- modes of a framework ---------------------------------------------------------------------------------------------


def test_autocast_and_flush_denormal_change_nothing() -> None:
    for name in NAMES:
        x = torch.from_numpy(drawn(name)[:5000])
        expected = getattr(in_torch, name)(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same_bits(getattr(in_torch, name)(x), expected)
        torch.set_flush_denormal(True)
        try:
            actual = getattr(in_torch, name)(x)
        finally:
            torch.set_flush_denormal(False)
        assert_same_bits(actual, expected)


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return in_torch.softmax(in_torch.log(in_torch.exp(in_torch.sqrt(x))))

    x = torch.rand(7)
    assert_same_bits(torch.export.export(Model(), (x,)).module()(x), Model()(x))


def test_one_trace_and_no_float64_for_the_user() -> None:
    """`jax_enable_x64` is off before and after, and what goes in and comes out is float32."""
    traces = []

    @jax.jit
    def step(x: Any) -> Any:
        traces.append(1)
        return in_jax.softmax(in_jax.log(in_jax.exp(in_jax.sqrt(x))))

    results = [step(np.random.default_rng(seed).random(6, np.float32)) for seed in range(5)]
    assert (len(traces), results[-1].dtype, jax.config.read("jax_enable_x64")) == (1, np.float32, False)
    assert "64" not in str(jax.make_jaxpr(step)(jnp.ones(6)))


def test_a_compiled_function_is_compiled_once() -> None:
    compiled = torch.compile(lambda x: in_torch.softmax(in_torch.log(in_torch.exp(x))), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(5):
            compiled(torch.rand(6))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *SUMS])
def test_other_dtypes_are_the_same_error_in_both(name: str) -> None:
    ours, theirs = getattr(in_torch, name), getattr(in_jax, name)
    with enable_x64(True):
        pairs = [
            (3.0, 3.0, "float"),
            ([1.0], [1.0], "list"),
            (torch.ones(2).bfloat16(), jnp.ones(2, jnp.bfloat16), "bfloat16"),
            (torch.ones(2).half(), jnp.ones(2, jnp.float16), "float16"),
            (torch.ones(2).double(), jnp.ones(2, jnp.float64), "float64"),
            (torch.ones(2).int(), jnp.ones(2, jnp.int32), "int32"),
        ]
        for a, b, received in pairs:
            for function, operand in ((ours, a), (theirs, b)):
                with pytest.raises(TypeError) as caught:
                    function(operand)
                assert str(caught.value) == str(errors.float32_operand(received))


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2**22,)], ids=str)
def test_other_shapes_are_the_same_error_in_both(name: str, shape: tuple[int, ...]) -> None:
    for function, operand in ((getattr(in_torch, name), torch.zeros(shape)), (getattr(in_jax, name), jnp.zeros(shape))):
        with pytest.raises(ValueError, match="last axis of 1 to 4,194,303 numbers") as caught:
            function(operand)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("name", SUMS)
def test_a_derivative_of_a_constant_is_an_error_in_both(name: str) -> None:
    ours, theirs = getattr(in_torch, name), getattr(in_jax, name)
    x = torch.ones(3)
    in_each = [
        lambda: ours(torch.ones(3, requires_grad=True)),
        lambda: torch.func.grad(lambda x: ours(x).sum())(x),
        lambda: torch.func.jvp(ours, (x,), (x,)),
        lambda: torch.func.vmap(torch.func.grad(lambda x: ours(x).sum()))(torch.ones(2, 3)),
        lambda: jax.grad(lambda x: theirs(x).sum())(jnp.ones(3)),
        lambda: jax.jit(jax.jacfwd(theirs))(jnp.ones(3)),
        lambda: jax.vmap(jax.grad(lambda x: theirs(x).sum()))(jnp.ones((2, 3))),
    ]
    for take in in_each:
        with pytest.raises(TypeError, match="give constants, which have no derivative"):
            take()
    with torch.no_grad():
        ours(torch.ones(3, requires_grad=True))
    assert not ours(torch.ones(3, requires_grad=True).detach()).requires_grad
    jax.grad(lambda x: (theirs(lax.stop_gradient(x)) * x).sum())(jnp.ones(3))


def test_a_device_without_float64_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not here is stood in for."""
    monkeypatch.setattr(torch_elementary, "WITHOUT_FLOAT64", ("meta",))
    for name in (*NAMES, *SUMS):
        with pytest.raises(TypeError, match=r"on a device that has float64.* Received one on meta\. Move it to the CPU first"):
            getattr(in_torch, name)(torch.ones(2, device="meta"))


def test_a_logarithm_on_another_device_has_no_table_there() -> None:
    """Only selects with numbers, so that nothing is copied to a device."""
    x = torch.ones(2, device="meta")
    assert in_torch.log(x).shape == (2,)  # a table on the CPU beside it would be an error


@pytest.mark.parametrize("name", [*NAMES, *SUMS])
def test_same_signatures_and_documentation(name: str) -> None:
    ours, theirs = getattr(in_torch, name), getattr(in_jax, name)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    texts = []
    for function in (ours, theirs):
        before, _, after = (inspect.getdoc(function) or "").partition("Example:")
        texts.append(before + after.partition("Reference:")[2])
    assert texts[0].replace(", or its device has no float64.", ".") == texts[1]
    assert len(texts[0]) > 400


def test_both_modules_export_the_same() -> None:
    assert in_torch.__all__ == in_jax.__all__ == ["div", "exp", "log", "logsumexp", "rmul", "softmax", "sqrt"]
