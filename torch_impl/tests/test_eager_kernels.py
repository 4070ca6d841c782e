"""What the fast kernels of an eager step on the CPU must not change: the order of the sum, and what a caller does with it."""

import importlib
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.hard_inputs import NEAREST_LOG, number
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.torch import (
    DWALossBalancer,
    EMANormalizedLossBalancer,
    GeometricLossBalancer,
    StaticLossBalancer,
    functional,
    known,
)
from loss_balancers.torch.functional import sum_of_vector, sum_terms
from loss_balancers.torch.portable import flushed, log, logsumexp, rmul, softmax
from loss_balancers.torch.portable.random_bits import BLOCK, integers, normal, normals
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


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["to-bf16", "to-f16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast_stacks_any_format_for_a_balancer_with_state(dtype, autocast):
    names = ("M_0", "M_1", "M_2", "M_3", "student_loss")
    losses = {name: torch.tensor(0.3 + i, dtype=dtype) for i, name in enumerate(names)}
    aggregates = []
    for enabled in (True, False):
        balancer = EMANormalizedLossBalancer(names)
        for _ in range(2):
            with torch.autocast("cpu", autocast, enabled=enabled):
                aggregates.append(balancer(losses))
                balancer.step()
    assert_same_bits(torch.stack(aggregates[:2]), torch.stack(aggregates[2:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", registry.examples())
def test_losses_of_a_narrow_format_on_a_device_that_autocast_does_not_know(name, dtype):
    balancer = registry.make(registry.examples()[name], loss_balancers.torch).to("meta")
    losses = {each: torch.ones((), dtype=dtype, device="meta", requires_grad=True) for each in EXAMPLE_NAMES}
    aggregate = balancer(losses)
    aggregate.backward()
    assert (aggregate.dtype, aggregate.device.type) == (dtype, "meta")
    assert balancer.breakdown(losses)["total"].dtype == dtype


@pytest.mark.parametrize("kd_loss_weight", [0.5, [0.05] * 16], ids=["one-weight", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_losses_of_a_narrow_format_are_converted_as_one_vector(dtype, kd_loss_weight):
    balancer = StaticLossBalancer(kd_loss_weight)
    losses = {f"M_{i}": torch.tensor(1.0 + i, dtype=dtype, requires_grad=True) for i in range(16)}
    losses["student_loss"] = torch.tensor(3.0, dtype=dtype, requires_grad=True)
    balancer(losses)
    with torch.profiler.profile() as profile:
        balancer(losses).backward()
    (conversions,) = (event.count for event in profile.key_averages() if event.key == "aten::_to_copy")
    assert conversions <= (7 if kd_loss_weight == 0.5 else 4)  # of 17 losses: with one weight, those of the student beside them


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("make", [GeometricLossBalancer, EMANormalizedLossBalancer], ids=["function-of-losses", "state"])
def test_losses_of_a_narrow_format_enter_a_balancer_of_tensors_as_one_vector(make, dtype):
    losses = {f"M_{i}": torch.tensor(1.0 + i, dtype=dtype, requires_grad=True) for i in range(16)}
    balancer = make(list(losses))
    with torch.profiler.profile() as profile:
        balancer(losses).backward()
    (conversions,) = (event.count for event in profile.key_averages() if event.key == "aten::_to_copy")
    assert conversions < 16


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_softmax_of_a_number_that_is_not_finite(value):
    """In eager code it rests on the maximum, which must not lose a NaN, wherever it stands."""
    for length in range(1, 80):
        for place in range(length):
            x = torch.full((length,), -1.0)
            x[place] = value
            assert softmax(x).isnan().all()
            x[-place] = math.inf
            assert softmax(x).isnan().all()
    assert softmax(torch.full((3,), -math.inf)).isnan().all()


def test_numbers_that_are_not_flushed_before_a_softmax():
    """At and below the smallest normal number they count as zero, beside numbers of any size."""
    for size in (0, *range(-149, 0, 3)):
        for small in (2.0**-126, 2.0**-127, 2.0**-149):
            row = torch.tensor([2.0**size if size else 0.0, small, -small, -(2.0**size) if size else 0.0])
            kept = torch.where(row.abs() <= 2.0**-126, 0.0, row)
            assert_same_bits(softmax(row), softmax(kept))
            assert_same_bits(logsumexp(row), logsumexp(kept))


WEIGHTS = [
    pytest.param(lambda count: None, id="none"),
    pytest.param(lambda count: tuple(1.0 / (i + 1) for i in range(count)), id="at-most-1"),
    pytest.param(lambda count: tuple(i - 1.5 for i in range(count)), id="large"),
    pytest.param(lambda count: torch.linspace(-0.5, 3.0, count), id="tensor"),
]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_a_vector_is_added_as_its_elements_are(count, weights):
    """Value, gradient, and the gradient of the gradient."""
    weights = weights(count)
    numbers = [*draw(count, torch.float32, count), *[torch.tensor(x) for x in (2.0**-127, math.nan, math.inf)]]
    for vector in (torch.stack(numbers[:count]), torch.stack(numbers[-count:])):
        for g in (1.0, 0.3, -(2.0**-126), 2.0**-130, math.inf):
            given = []
            for summed in (sum_of_vector, one_by_one):
                x, cotangent = vector.clone().requires_grad_(), torch.tensor(g, requires_grad=True)
                total = summed(x, weights)
                (first,) = torch.autograd.grad(total, x, cotangent, retain_graph=True)
                (again,) = torch.autograd.grad(total, x, cotangent, create_graph=True)
                (second,) = torch.autograd.grad(again, cotangent, torch.full_like(again, 0.7))
                given.append((total.detach(), first, again.detach(), second))
            for one, other in zip(*given, strict=True):
                assert_same_bits(one, other)


def one_by_one(vector, weights):
    count = len(vector)
    return sum_terms(list(vector.unbind(0)), (torch.float32,) * count, (1.0,) * count if weights is None else weights)


def test_flushed_is_a_product_with_one():
    x = torch.tensor([1.5, 2.0**-126, -(2.0**-140), -0.0, math.nan, math.inf], requires_grad=True)
    g = torch.tensor([2.0**-126, 1.0, 0.3, 0.3, 1.0, -(2.0**-130)], requires_grad=True)
    given = []
    for function in (flushed, lambda x: rmul(x, torch.ones_like(x))):
        y = function(x)
        (first,) = torch.autograd.grad(y, x, g, retain_graph=True)
        (again,) = torch.autograd.grad(y, x, g, create_graph=True)
        (second,) = torch.autograd.grad(again, g, torch.ones_like(g))
        given.append((y.detach(), first, again.detach(), second))
    for one, other in zip(*given, strict=True):
        assert_same_bits(one, other)


def test_a_logarithm_that_is_listed_is_found_alone_and_among_others():
    for bits, logarithm in NEAREST_LOG.items():
        x, y = torch.tensor(number(bits)), torch.tensor(number(logarithm))
        assert_same_bits(log(x), y)
        assert_same_bits(log(torch.stack([torch.tensor(2.0), x]))[1], y)
        assert_same_bits(torch.func.vmap(log)(torch.stack([x, x]))[1], y)  # the host cannot look there


def test_draws_at_the_ends_of_blocks_and_of_the_counter():
    """What is made for many steps at once is what one step makes by itself, which a row of steps is."""
    for step in (0, 1, BLOCK - 1, BLOCK, 7 * BLOCK + 3, 2**31 - BLOCK, 2**31 - 1):
        steps = torch.tensor(step, dtype=torch.int32)
        assert_same_bits(normals("5", steps, 0, 3), normal(integers("5", steps, 0, 3)))


def test_no_factors_are_made_within_an_epoch(monkeypatch):
    """They follow from the averages of epochs alone."""
    balancer, made = DWALossBalancer(("a", "student_loss"), epoch_steps=3), []
    monkeypatch.setattr(known, "KnownFactors", lambda vector: made.append(vector) or functional.KnownFactors(vector))
    for i in range(9):
        balancer({"a": torch.tensor(1.0 + i), "student_loss": torch.tensor(2.0)})
        balancer.step()
    assert len(made) == 4  # in the first forward, and at the end of each epoch


#: At most so many kernels in forward, backward and commit, of four losses on the CPU.
KERNELS = {
    "DWA": (14, 3, 32),
    "SoftAdapt": (50, 4, 33),
    "ReLoBRaLo": (58, 4, 71),
    "random": (7, 3, 29),
    "geometric": (13, 10, 0),
    "STCH": (22, 15, 0),
    "uncertainty": (16, 16, 0),
    "IMTL": (15, 15, 0),
    "FAMO": (43, 9, 107),
}


def test_no_more_kernels_than_were_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    kernels = importlib.import_module("kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no optimizer trains the parameters
        counted = kernels.counted()
    for name, most in KERNELS.items():
        found = tuple(counted[name][part].total() for part in kernels.PARTS)
        assert all(of <= bound for of, bound in zip(found, most, strict=True)), (name, found, counted[name])
