"""What the fast kernels of an eager step on the CPU must not change: the order of the sum, and what a caller does with it."""

import math

import numpy as np
import pytest
import torch

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import StaticLossBalancer, functional
from loss_balancers.torch.rounding import all_finite

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def added_one_after_another(terms, weights):
    """By NumPy scalars, each operation rounded by itself."""
    number = NUMPY[terms[0].dtype]
    s = number(weights[0]) * number(terms[0].item())
    for w, x in zip(weights[1:], terms[1:], strict=True):
        s = s + number(w) * number(x.item())
    return torch.tensor(s, dtype=terms[0].dtype)


def draw(count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    magnitudes = torch.exp(4 * torch.randn(count, generator=generator, dtype=torch.float64))
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return [x.clone() for x in (magnitudes * signs).to(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("count", [3, 4, 5, 64, 1000])
def test_terms_are_added_in_order(count, dtype):
    """`index_add` adds "in the order given in index" (its docs); any other order differs in some bit here."""
    weights = [1.0 / count] * count
    for seed in range(5):
        terms = draw(count, dtype, seed)
        assert_same_bits(functional.weighted_sum(terms, weights), added_one_after_another(terms, weights))


def test_the_order_shows():
    weights = [1.0 / 1000] * 1000
    draws = [draw(1000, torch.float32, seed) for seed in range(5)]
    assert any(functional.weighted_sum(terms[::-1], weights) != functional.weighted_sum(terms, weights) for terms in draws)


@pytest.mark.parametrize("count", [5, 64])
def test_in_order_under_vmap_too(count):
    weights = [1.0 / count] * count
    samples = [draw(count, torch.float32, seed) for seed in range(3)]
    batch = [torch.stack(column) for column in zip(*samples, strict=True)]
    aggregates = torch.func.vmap(functional.weighted_sum, in_dims=(0, None))(batch, weights)
    for aggregate, terms in zip(aggregates, samples, strict=True):
        assert_same_bits(aggregate, added_one_after_another(terms, weights))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["to-bf16", "to-f16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=["bf16", "f16", "f32", "f64"])
def test_autocast_stacks_any_format(dtype, autocast):
    """`torch.stack` of five float16 losses raises where autocast is set to bfloat16, and the reverse."""
    balancer = StaticLossBalancer([0.1] * 4)
    losses = {name: torch.tensor(0.3 + i, dtype=dtype) for i, name in enumerate(("M_0", "M_1", "M_2", "M_3", "student_loss"))}
    with torch.autocast("cpu", autocast):
        aggregate = balancer(losses)
    assert_same_bits(aggregate, balancer(losses))


@pytest.mark.parametrize("count", [1, 4])
def test_the_aggregate_can_be_added_to_in_place(count):
    losses = {f"M_{i}": torch.tensor(2.0, requires_grad=True) for i in range(count)}
    aggregate = StaticLossBalancer([1.0 / count] * count)(losses)
    aggregate += 1.0
    aggregate.backward()
    for x in losses.values():
        assert x.grad is not None
        x.grad *= 2.0
        assert_same_bits(x.grad, torch.tensor(2.0 / count))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(value):
    """Lengths about those that PyTorch treats as vectors of its own; NaN with an infinity beside it, too."""
    for length in range(1, 80):
        assert all_finite(torch.full((length,), 3.4e38))
        for place in range(length):
            x = torch.full((length,), -1.0)
            x[place] = value
            assert not all_finite(x)
            x[-place] = math.inf
            assert not all_finite(x)
