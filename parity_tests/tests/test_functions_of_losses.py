"""Balancers whose aggregate is a function of the losses: second derivatives in both twins, and one graph for all losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES
EXAMPLES = {name: settings for name, settings in registry.examples().items() if settings.weights_are == "derivatives"}
ROWS = [
    *np.random.default_rng(0).lognormal(0, 1, (6, len(NAMES))).astype(np.float32),
    np.array([0.0, 1.0, 2.0], np.float32),
    np.array([2.0**-126, 1e30, 1e-30], np.float32),
]


def twins(example):
    """Both, in eval mode if they have state: a transform refuses to observe."""
    made = [registry.make(EXAMPLES[example], part) for part in (loss_balancers.torch, loss_balancers.jax)]
    if EXAMPLES[example].state:
        for balancer in made:
            balancer.eval()
    return made


def torch_second(balancer, row, tangent):
    """The gradient of the gradient's product with a tangent."""
    losses = {name: torch.tensor(x, requires_grad=True) for name, x in zip(NAMES, row.tolist(), strict=True)}
    firsts = torch.autograd.grad(balancer(losses), list(losses.values()), create_graph=True)
    products = [first * t for first, t in zip(firsts, tangent.tolist(), strict=True)]
    return torch.autograd.grad(products[1], list(losses.values()), materialize_grads=True)  # zero where it is linear


def jax_second(balancer, row, tangent):
    losses = dict(zip(NAMES, map(jnp.float32, row), strict=True))
    return jax.grad(lambda losses: jax.grad(balancer)(losses)[NAMES[1]] * tangent[1])(losses)


@pytest.mark.parametrize("example", EXAMPLES)
def test_twins_agree_on_second_derivatives(example):
    of_torch, of_jax = twins(example)
    tangent = np.array([0.5, 2.0, -1.25], np.float32)
    for row in ROWS:
        found = jax_second(of_jax, row, tangent)
        for name, wanted in zip(NAMES, torch_second(of_torch, row, tangent), strict=True):
            assert_same_bits(wanted, found[name])


def test_a_second_derivative_is_the_formula_s():
    of_torch, of_jax = twins("geometric")
    for row in ROWS[:6]:
        mean, losses = np.prod(row.astype(np.float64)) ** (1 / 3), row.astype(np.float64)
        wanted = mean / 9 / losses[1] / losses * (1 - 3 * (np.arange(3) == 1))
        for found in (torch_second(of_torch, row, np.ones(3)), jax_second(of_jax, row, np.ones(3, np.float32)).values()):
            np.testing.assert_allclose([float(x) for x in found], wanted, rtol=2e-5)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("example", EXAMPLES)
def test_one_graph_serves_all_losses(example):
    of_torch, of_jax = twins(example)
    graphs, traces = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def traced(losses):
        traces.append(losses)
        return of_jax(losses)

    compiled, jitted = torch.compile(of_torch, fullgraph=True, backend=backend), jax.jit(traced)
    for row in ROWS:
        given = {name: torch.tensor(x) for name, x in zip(NAMES, row.tolist(), strict=True)}
        wanted = of_torch(given)
        assert_same_bits(compiled(given), wanted)
        assert_same_bits(jitted(dict(zip(NAMES, map(jnp.float32, row), strict=True))), wanted)
    assert (len(graphs), len(traces)) == (1, 1)


def test_two_balancers_of_other_settings_have_their_own_constants_in_one_process():
    """Dynamo must not make a symbol of a number that differs between two balancers: host code calculates with it."""
    torch._dynamo.reset()
    for weight in (0.5, 3.0, 7.25):
        balancer = loss_balancers.torch.GeometricLossBalancer(NAMES, {NAMES[0]: weight}, "K")
        given = {name: torch.tensor(x) for name, x in zip(NAMES, (2.0, 3.0, 5.0), strict=True)}
        assert_same_bits(torch.compile(balancer, fullgraph=True, backend="eager")(given), balancer(given))
        counts = {name: torch.tensor(x) for name, x in zip(NAMES, (1.0, 0.0, 2.0), strict=True)}
        compiled = torch.compile(balancer, fullgraph=True, backend="eager")
        assert_same_bits(compiled(given, count=counts), balancer(given, count=counts))
