"""Random numbers: the same bits on every lane as in the exact reference, and the distribution that they are said to have."""

import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._dynamo

from loss_balancers.jax.portable import random_bits as in_jax
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import random_bits
from loss_balancers.spec.random_bits import LOOK_BACK, MOST_SEED, WEIGHTS, WORD
from loss_balancers.torch.portable import random_bits as in_torch

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
INDUCTOR = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")
pytestmark = [
    # PyTorch 2.13's own, at the first compilation of a process and for every autograd.Function that it compiles.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]
SEEDS = (0, 1, WORD, WORD + 1, 20261201 << 31, MOST_SEED)
STEPS = (0, 1, 2, 1000, 2**31 - 1)
COUNT = 200_000


def _compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def _in_torch(wrap: Callable[[Any], Any], seed: int, step: int) -> list[np.ndarray]:
    def draw(steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return in_torch.normals(str(seed), steps, WEIGHTS, 5), in_torch.happens(str(seed), steps, LOOK_BACK, 0.5)

    return [x.numpy() for x in wrap(draw)(torch.tensor(step, dtype=torch.int32))]


def _in_jax(wrap: Callable[[Any], Any], seed: int, step: int) -> list[np.ndarray]:
    def draw(steps: jax.Array) -> tuple[jax.Array, jax.Array]:
        return in_jax.normals(seed, steps, WEIGHTS, 5), in_jax.happens(seed, steps, LOOK_BACK, 0.5)

    return [np.asarray(x) for x in wrap(draw)(jnp.int32(step))]


def _with_x64(function: Any) -> Any:
    def run(steps: jax.Array) -> Any:
        with enable_x64(True):
            return jax.jit(function)(steps)

    return run


LANES: dict[str, Callable[[int, int], list[np.ndarray]]] = {
    "torch-eager": partial(_in_torch, lambda draw: draw),
    "torch-vmap": partial(_in_torch, lambda draw: lambda steps: [x[1] for x in torch.vmap(draw)(torch.stack([steps * 0, steps]))]),
    "jax-eager": partial(_in_jax, lambda draw: draw),
    "jax-jit": partial(_in_jax, jax.jit),
    "jax-jit-x64": partial(_in_jax, _with_x64),
    "jax-vmap": partial(_in_jax, lambda draw: lambda steps: [x[1] for x in jax.vmap(draw)(jnp.stack([steps * 0, steps]))]),
}


def _exact(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    normals = random_bits.normals(seed, step, WEIGHTS, 5)
    return np.array(normals, np.float32), np.array(random_bits.happens(seed, step, LOOK_BACK, 0.5))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_draw_has_the_bits_of_the_reference(lane: str, seed: int) -> None:
    for step in STEPS:
        (normals, happens), (exact, certain) = LANES[lane](seed, step), _exact(seed, step)
        assert_same_bits(normals, exact)
        assert happens == certain


@INDUCTOR
def test_compiled_code_has_the_bits_of_the_reference() -> None:
    """Two seeds of one function, in turn: none has the draws of the other."""
    compiled = _compiled(
        lambda seed, steps: (in_torch.normals(seed, steps, WEIGHTS, 5), in_torch.happens(seed, steps, LOOK_BACK, 0.5))
    )
    for seed in (0, MOST_SEED, 0):
        for step in STEPS:
            normals, happens = compiled(str(seed), torch.tensor(step, dtype=torch.int32))
            exact, certain = _exact(seed, step)
            assert_same_bits(normals, exact)
            assert bool(happens) == certain


@pytest.mark.parametrize("key", [(0, 0), (WORD, WORD), (0x13198A2E, 0x03707344)])
def test_the_words_of_both_twins_are_the_reference_s(key: tuple[int, int]) -> None:
    """Of any words, also of those that no counter has."""
    words = np.random.default_rng(0).integers(0, 2**32, (2, 1000), np.uint32)
    words[:, :4] = [0, WORD, WORD, 1], [0, WORD, 0, 2**31]
    added = random_bits.schedule(key)
    exact = [random_bits.threefry(key, (int(x), int(y))) for x, y in words.T]
    of_torch = in_torch.threefry(added, *torch.from_numpy(words.astype(np.int64)))
    of_jax = in_jax.threefry(added, *map(jnp.asarray, words))
    for of_one in (of_torch, of_jax):
        assert [tuple(map(int, pair)) for pair in zip(*map(np.asarray, of_one), strict=True)] == exact


def _integers() -> np.ndarray:
    """The integers at both ends and where the two regions meet, and a million between."""
    meet = round((0.5 - random_bits.MIDDLE) * 2**25)
    edges = [range(64), range(meet - 64, meet + 64), range(2**24 - 64, 2**24)]
    return np.concatenate([*map(np.array, edges), np.random.default_rng(0).integers(0, 2**24, 1_000_000)])


@INDUCTOR
def test_normal_numbers_of_a_million_integers_are_the_same_on_all_lanes() -> None:
    m = _integers()
    first = in_torch.normal(torch.from_numpy(m)).numpy()
    assert_same_bits(np.asarray(jax.jit(in_jax.normal)(jnp.asarray(m, jnp.int32))), first)
    assert_same_bits(_compiled(in_torch.normal)(torch.from_numpy(m)), first)
    some = np.concatenate([m[:256], m[-500:]])
    assert_same_bits(in_torch.normal(torch.from_numpy(some)), np.array([random_bits.normal(int(x)) for x in some], np.float32))


def test_normal_numbers_are_quantiles() -> None:
    m = _integers()[:20_000]
    exact = np.array([-NormalDist().inv_cdf(int(x | 1) / 2**25) * (1 if x & 1 else -1) for x in m])
    np.testing.assert_allclose(in_torch.normal(torch.from_numpy(m)).numpy(), exact, rtol=1e-6, atol=0)


def _by_step(seed: int = 5) -> np.ndarray:
    steps = torch.arange(COUNT // 4, dtype=torch.int32)[:, None]
    return in_torch.normals(str(seed), steps, WEIGHTS, 4).numpy().astype(np.float64)


def _kolmogorov(x: np.ndarray) -> float:
    """The statistic of Kolmogorov and Smirnov times the root of the number of draws: above 1.63 once in a hundred times."""
    exact = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.sort(x.ravel())])
    n = len(exact)
    return math.sqrt(n) * float(max(np.max(np.arange(1, n + 1) / n - exact), np.max(exact - np.arange(n) / n)))


def test_the_distribution_is_normal() -> None:
    """200,000 draws: of 50,000 steps, four losses each."""
    x = _by_step()
    n = x.size
    assert _kolmogorov(x) < 1.63
    # The first four moments: the variances of their means are 1, 2, 15 and 96 over n.
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs((x**power).mean() - mean) < 4 * math.sqrt(variance / n)
    for sigma in (2, 3, 4):
        expected = n * math.erfc(sigma / math.sqrt(2))
        assert abs((abs(x) > sigma).sum() - expected) < 4 * math.sqrt(expected) + 1


def test_another_distribution_is_found() -> None:
    uniform = np.random.default_rng(0).random((COUNT, 4))
    assert _kolmogorov((uniform.sum(1) - 2) * math.sqrt(3)) > 1.63
    assert _kolmogorov(_by_step() * 1.03) > 1.63
    assert _kolmogorov(_by_step() + 0.01) > 1.63


def test_steps_losses_and_seeds_are_uncorrelated() -> None:
    x, other = _by_step(), _by_step(6)
    pairs = {"steps": (x[1:], x[:-1]), "losses": (x[:, 1:], x[:, :-1]), "seeds": (x, other), "signs": (abs(x), abs(other))}
    for name, (a, b) in pairs.items():
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size), name


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
def test_something_happens_as_often_as_it_should(probability: float) -> None:
    chance = float(np.float32(probability))
    found = int(in_torch.happens("7", torch.arange(COUNT, dtype=torch.int32)[:, None], LOOK_BACK, chance).sum())
    assert abs(found - COUNT * chance) < 4 * math.sqrt(COUNT * chance * (1 - chance))
