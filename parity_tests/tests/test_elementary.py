"""`exp`, `log`, `sqrt`, `softmax`: a million and more drawn numbers on every lane, against the exact results, as bits."""

import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import elementary_jax
import elementary_torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._dynamo
from elementary import NAMES, drawn, exact, exact_gradient, exact_softmax, rows
from jax import lax
from quotients import edges, keep

import loss_balancers.jax.portable.sums as in_jax_sums
import loss_balancers.torch.portable.elementary as in_torch_elementary
import loss_balancers.torch.portable.sums as in_torch_sums
from loss_balancers.jax.portable import integers
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import elementary, hard_inputs
from loss_balancers.spec.arithmetic import EXACT

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
INDUCTOR = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")
TORCH_LANES = [pytest.param(lane, marks=[INDUCTOR] * (lane == "compiled")) for lane in elementary_torch.LANES]
SUMS = ("softmax", "logsumexp")
each_function = pytest.mark.parametrize("name", NAMES)
pytestmark = [
    # PyTorch 2.13's own, at the first compilation of a process and for every autograd.Function that it compiles.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]

Elementary = Callable[[Any], Any]


def in_jax(name: str, lane: str, x: np.ndarray, function: Elementary | None = None) -> np.ndarray:
    return np.asarray(elementary_jax.LANES[lane](function or elementary_jax.function(name))(x))


def in_torch(name: str, lane: str, x: np.ndarray, function: Elementary | None = None) -> torch.Tensor:
    torch._dynamo.reset()
    return elementary_torch.LANES[lane](function or elementary_torch.function(name))(torch.from_numpy(x))


# --- what is drawn, and what is exact ---------------------------------------------------------------------------------


@each_function
def test_at_least_a_million_are_drawn_and_of_every_kind(name: str) -> None:
    x = drawn(name)
    assert x.dtype == np.float32
    assert len(x) >= 1_000_000
    results = exact(name, x)
    for kind in (np.isnan(results), np.isfinite(results), ~np.isfinite(results)):
        assert kind.sum() > 500
    assert {*hard_inputs.EXP, *hard_inputs.LOG} <= set(x.view(np.uint32).tolist())


@each_function
def test_the_spec_says_the_same_in_decimals(name: str) -> None:
    hard = len(hard_inputs.EXP) + len(hard_inputs.LOG) + len(edges("f32")) + 12
    x = drawn(name)
    x = x[[*range(hard), *np.random.default_rng(6).integers(hard, len(x), 20_000)]]
    assert_same_bits(np.array([getattr(elementary, name)(v) for v in x.tolist()], np.float32), exact(name, x), nan="class")


def test_the_spec_says_the_same_of_softmax() -> None:
    x = rows()[::40]
    x = np.concatenate([rows()[100:600], x])
    for name, wanted in zip(SUMS, exact_softmax(x), strict=True):
        spec = np.array([getattr(EXACT, name)(row) for row in x.tolist()], np.float32)
        assert_same_bits(spec, wanted, nan="class")


@each_function
def test_the_spec_says_the_same_of_gradients(name: str) -> None:
    x = drawn(name)[::500]
    g = drawn("log")[: len(x)]
    spec = [getattr(EXACT, f"{name}_gradient")(*pair) for pair in zip(g.tolist(), x.tolist(), strict=True)]
    assert_same_bits(np.array(spec, np.float32), exact_gradient(name, x, g), nan="class")


# --- every lane -------------------------------------------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("lane", elementary_jax.LANES)
def test_jax_differs_in_none(lane: str, name: str) -> None:
    assert_same_bits(in_jax(name, lane, drawn(name)), exact(name, drawn(name)), nan="class")


@each_function
@pytest.mark.parametrize("lane", TORCH_LANES)
def test_torch_differs_in_none(lane: str, name: str) -> None:
    assert_same_bits(in_torch(name, lane, drawn(name)), exact(name, drawn(name)), nan="class")


@pytest.mark.parametrize("lane", elementary_jax.LANES)
def test_sums_in_jax_differ_in_none(lane: str) -> None:
    for name, wanted in zip(SUMS, exact_softmax(rows()), strict=True):
        assert_same_bits(in_jax(name, lane, rows()), wanted, nan="class")


@pytest.mark.parametrize("lane", TORCH_LANES)
def test_sums_in_torch_differ_in_none(lane: str) -> None:
    for name, wanted in zip(SUMS, exact_softmax(rows()), strict=True):
        assert_same_bits(in_torch(name, lane, rows()), wanted, nan="class")


@each_function
def test_scalars_differ_in_none(name: str) -> None:
    """Scalars are compiled otherwise than arrays. The hardest, the edges, and some others."""
    x = np.concatenate([drawn(name)[:160], drawn(name)[-600_000::6000]])
    assert_same_bits(np.array([jax.jit(elementary_jax.function(name))(v) for v in x]), exact(name, x), nan="class")
    ours = [elementary_torch.function(name)(v) for v in torch.from_numpy(x)]
    assert_same_bits(torch.stack(ours), exact(name, x), nan="class")


@INDUCTOR
@each_function
def test_compiled_scalars_differ_in_none(name: str) -> None:
    x = np.concatenate([drawn(name)[:160], drawn(name)[-600_000::6000]])
    torch._dynamo.reset()
    compiled = torch.compile(elementary_torch.function(name), fullgraph=True)
    assert_same_bits(torch.stack([compiled(v) for v in torch.from_numpy(x)]), exact(name, x), nan="class")


@pytest.mark.parametrize("ulp", [-30, -2, -1, 1, 2, 30])
def test_a_root_is_right_however_bad_the_estimate(ulp: int) -> None:
    """On CPU the estimate is right, and nothing is left to repair; so here it is off."""
    x = drawn("sqrt")[:300_000]
    moved = lambda y: lax.bitcast_convert_type(lax.bitcast_convert_type(y, np.int32) + np.int32(ulp), np.float32)  # noqa: E731
    with enable_x64(True):
        roots = jax.jit(lambda x: integers.sqrt(x, lambda x: moved(lax.sqrt(x))))(x)
    assert_same_bits(roots, exact("sqrt", x), nan="class")


@pytest.mark.parametrize("lane", [pytest.param(lane, marks=[INDUCTOR] * (lane == "compiled")) for lane in ("eager", "compiled")])
def test_a_long_sum_is_rounded_once(lane: str) -> None:
    """Of 2^54 + 2^30 + 1 units, just above the middle of two float32 numbers; float64 would round that to the middle first."""
    powers = np.concatenate([np.ones(2**14), [2.0**-10, 2.0**-40]]).astype(np.float32)
    wanted = np.array([2.0**14 + 2.0**-9], np.float32)
    assert_same_bits(in_torch("", lane, powers, in_torch_sums._total), wanted)
    assert_same_bits(jax.jit(in_jax_sums.total_p.bind)(powers), wanted)


def test_long_rows_are_the_same_in_both() -> None:
    x = np.random.default_rng(13).normal(0, 5, (2, 200_000)).astype(np.float32)
    for name in SUMS:
        assert_same_bits(in_torch(name, "eager", x), in_jax(name, "jit", x))


# --- comparisons that can fail ----------------------------------------------------------------------------------------


def the_framework_s_own(module: Any) -> dict[str, Elementary]:
    """What a function would be without the care that is taken: the planted faults."""
    tiny = float(np.finfo(np.float32).tiny)
    return {
        "exp": module.exp,
        "log": lambda x: module.log(module.where(abs(x) <= tiny, 0.0, x)),
    }


@pytest.mark.parametrize("name", ["exp", "log"])
def test_a_function_of_the_framework_is_found_wrong(name: str) -> None:
    x, wanted = drawn(name), exact(name, drawn(name))
    for got in (
        in_jax(name, "jit", x, the_framework_s_own(jnp)[name]),
        in_torch(name, "eager", x, the_framework_s_own(torch)[name]),
    ):
        with pytest.raises(AssertionError, match="elements differ"):
            assert_same_bits(got, wanted, nan="class")


def test_a_softmax_of_the_framework_is_found_wrong() -> None:
    wanted, _ = exact_softmax(rows())
    for got in (in_jax("", "jit", rows(), jax.nn.softmax), in_torch("", "eager", rows(), lambda x: torch.softmax(x, -1))):
        with pytest.raises(AssertionError, match="elements differ"):
            assert_same_bits(got, wanted, nan="class")


def test_a_logarithm_without_its_list_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardest inputs tell a float64 logarithm that is not repaired from one that is; random ones do not."""
    x = drawn("log")
    unlisted = keep(np.log(keep(x[19:89]).astype(np.float64)).astype(np.float32))
    assert 1 <= (unlisted != exact("log", x[19:89])).sum() <= len(hard_inputs.NEAREST_LOG)
    monkeypatch.setattr(in_torch_elementary, "_LOGARITHMS", torch.zeros(14))
    with pytest.raises(AssertionError, match="elements differ"):
        assert_same_bits(in_torch("log", "eager", x), exact("log", x), nan="class")


def test_the_list_of_logarithms_is_that_of_the_spec() -> None:
    listed = hard_inputs.NEAREST_LOG
    assert list(listed) == list(hard_inputs.LOG[:14])
    assert [elementary.log(hard_inputs.number(x)) for x in listed] == [hard_inputs.number(y) for y in listed.values()]


@pytest.mark.parametrize(("name", "function", "listed"), [("exp", "exp", hard_inputs.EXP), ("log", "ln", hard_inputs.LOG)])
def test_the_hardest_inputs_are_as_near_as_they_say(name: str, function: str, listed: tuple[int, ...]) -> None:
    """Within 8 ulp of float64 of the middle of two float32 numbers, and in the order of that."""
    distances = []
    for x in map(hard_inputs.number, listed):
        value = abs(Fraction(getattr(elementary.DIGITS, function)(Decimal(x))))
        rounded = np.abs(np.float32(getattr(elementary, name)(x)))
        neighbours = [np.nextafter(rounded, np.float32(end)) for end in (0, np.inf)]
        middles = [(Fraction(float(rounded)) + Fraction(float(neighbour))) / 2 for neighbour in neighbours]
        distances.append(min(abs(value - middle) for middle in middles) / Fraction(float(np.spacing(float(value)))))
    assert len(set(listed)) == len(listed)
    assert distances == sorted(distances)
    assert distances[-1] < 8
