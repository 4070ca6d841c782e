"""`div` and `rmul`: more than a million drawn quotients of each format on every lane, against the exact ones, as bits."""

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
from jax import lax
from quotients import DTYPES, HARDEST, drawn, edges, exact, exact_product, hardest, x64
from quotients_jax import LANES as JAX_LANES
from quotients_torch import LANES as TORCH_LANES

import loss_balancers.jax.portable.division as in_jax
import loss_balancers.torch.portable.division as in_torch
from loss_balancers.parity.bits import array_bits, assert_same_bits
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


@each_format
def test_at_least_a_million_are_drawn_and_of_every_kind(fmt: FormatName) -> None:
    a, b = drawn(fmt)
    assert a.dtype == b.dtype == DTYPES[fmt]
    assert len(a) == len(b) >= 1_000_000
    quotients = exact(a, b)
    for kind in (np.isnan(quotients), np.isinf(quotients), quotients == 0):
        assert 500 < kind.sum() < 500_000
    tiny = np.finfo(DTYPES[fmt]).tiny
    assert (np.abs(quotients[quotients != 0]) < 4 * tiny).sum() > 1000
    assert (np.abs(quotients[np.isfinite(quotients)]) > 0.125 / tiny).sum() > 1000


@each_format
def test_the_spec_says_the_same_in_fractions(fmt: FormatName) -> None:
    a, b = drawn(fmt)
    hard = len(edges(fmt)) ** 2 + HARDEST
    some = [*range(hard), *np.random.default_rng(6).integers(hard, len(a), 20_000)]
    a, b = a[some], b[some]
    spec = [arithmetic.div(x, y, fmt) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert_same_bits(np.array(spec, DTYPES[fmt]), exact(a, b), nan="class")
    spec = [arithmetic.rmul(x, y, fmt) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert_same_bits(np.array(spec, DTYPES[fmt]), exact_product(a, b), nan="class")


# --- every lane -------------------------------------------------------------------------------------------------------

Quotient = Callable[[Any, Any], Any]


@pytest.mark.in_turn(8)
@each_format
@pytest.mark.parametrize("lane", JAX_LANES)
def test_jax_differs_in_none(lane: str, fmt: FormatName) -> None:
    a, b = drawn(fmt)
    with x64(fmt):
        assert_same_bits(JAX_LANES[lane](a, b), exact(a, b), nan="class")


@each_format
@pytest.mark.parametrize("lane", [pytest.param(lane, marks=[INDUCTOR] * ("compiled" in lane)) for lane in TORCH_LANES])
def test_torch_differs_in_none(lane: str, fmt: FormatName) -> None:
    a, b = drawn(fmt)
    torch._dynamo.reset()
    assert_same_bits(TORCH_LANES[lane]()(torch.from_numpy(a), torch.from_numpy(b)), exact(a, b), nan="class")


@each_format
def test_products_differ_in_none(fmt: FormatName) -> None:
    a, b = drawn(fmt)
    with x64(fmt):
        assert_same_bits(jax.jit(in_jax.rmul)(a, b), exact_product(a, b), nan="class")
    assert_same_bits(in_torch.rmul(torch.from_numpy(a), torch.from_numpy(b)), exact_product(a, b), nan="class")


@INDUCTOR
@each_format
def test_compiled_products_differ_in_none(fmt: FormatName) -> None:
    a, b = drawn(fmt)
    torch._dynamo.reset()
    compiled = torch.compile(in_torch.rmul, fullgraph=True)
    assert_same_bits(compiled(torch.from_numpy(a), torch.from_numpy(b)), exact_product(a, b), nan="class")


@each_format
def test_scalars_differ_in_none(fmt: FormatName) -> None:
    """Scalars are compiled otherwise than arrays: 2,000 of those with ordinary quotients."""
    a, b = (x[-900_000:-898_000] for x in drawn(fmt))
    with x64(fmt):
        step = jax.jit(in_jax.div)
        assert_same_bits(np.array([step(x, y) for x, y in zip(a, b, strict=True)]), exact(a, b))
    ours = [in_torch.div(x, y) for x, y in zip(torch.from_numpy(a), torch.from_numpy(b), strict=True)]
    assert_same_bits(torch.stack(ours), exact(a, b))


@INDUCTOR
@each_format
@pytest.mark.parametrize("name", ["div", "quotient"])
def test_compiled_scalars_differ_in_none(name: str, fmt: FormatName) -> None:
    a, b = (x[-900_000:-898_000] for x in drawn(fmt))
    torch._dynamo.reset()
    compiled = torch.compile(getattr(in_torch, name), fullgraph=True)
    ours = [compiled(x, y) for x, y in zip(torch.from_numpy(a), torch.from_numpy(b), strict=True)]
    assert_same_bits(torch.stack(ours), exact(a, b))


@each_format
@pytest.mark.parametrize("ulp", [-30, -2, -1, 1, 2, 30])
def test_the_hardest_differ_in_none_however_bad_the_estimate(ulp: int, fmt: FormatName) -> None:
    """On CPU the estimate is right, and nothing is left to repair; so here it is off."""
    a, b = hardest(fmt)
    word = np.dtype(f"i{a.itemsize}")
    with x64(fmt):
        shifted = lambda a, b: lax.bitcast_convert_type(lax.bitcast_convert_type(a / b, word) + ulp, a.dtype)  # noqa: E731
        assert_same_bits(jax.jit(lambda a, b: in_jax.quotient(a, b, shifted))(a, b), exact(a, b))
    integer = in_torch.LAYOUTS[torch.from_numpy(a).dtype].integer
    bad = lambda a, b: ((a / b).view(integer) + ulp).view(a.dtype)  # noqa: E731
    assert_same_bits(in_torch.quotient(torch.from_numpy(a), torch.from_numpy(b), bad), exact(a, b))


# --- what compilers do to a division ----------------------------------------------------------------------------------


def hazards(div: Quotient, like: Callable[[Any, Any], Any]) -> Callable[..., list[Any]]:
    """Quotients that compilers rewrite; ``like(x, s)`` is ``s``, a float or a scalar array, in x's shape."""
    return lambda x, y, z: [div(x, like(x, 3.0)), div(x, like(x, y[0])), div(div(x, y), z), div(x, div(y, z))]


def ordinary(fmt: FormatName) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.lognormal(0, 3, 200_000).astype(DTYPES[fmt]) for _ in "xyz"]


@each_format
def test_xla_rewrites_divisions_but_not_ours(fmt: FormatName) -> None:
    draws = ordinary(fmt)
    expected = hazards(np.divide, np.full_like)(*draws)
    with x64(fmt):
        native = jax.jit(hazards(jnp.divide, jnp.full_like))(*draws)
        for theirs, wanted in zip(native, expected, strict=True):
            assert (array_bits(theirs) != array_bits(wanted)).mean() > 0.1  # else there is nothing to show
        ours = jax.jit(hazards(in_jax.div, jnp.full_like))(*draws)
        for quotient, wanted in zip(ours, expected, strict=True):
            assert_same_bits(quotient, wanted)


@INDUCTOR
@pytest.mark.parametrize(("name", "fmt", "count"), [("div", "f32", 4), ("div", "f64", 4), ("quotient", "f32", 2)])
def test_inductor_rewrites_no_division_of_ours(name: str, fmt: FormatName, count: int) -> None:
    draws = ordinary(fmt)
    torch._dynamo.reset()
    like = lambda x, s: torch.full_like(x, s) if isinstance(s, float) else s.expand(x.shape)  # noqa: E731
    function = hazards(getattr(in_torch, name), like)
    ours = torch.compile(lambda *draws: function(*draws)[:count], fullgraph=True)(*map(torch.from_numpy, draws))
    for quotient, wanted in zip(ours, hazards(np.divide, np.full_like)(*draws)[:count], strict=True):
        assert_same_bits(quotient, wanted)
