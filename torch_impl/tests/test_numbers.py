"""Weights as scalars and vectors of PyTorch: constants alone, on the host alone, and what a graph says of others."""
# pyright: reportArgumentType=false, reportPrivateUsage=false
#   What is given is wider than what is annotated.

from collections.abc import Callable
from functools import partial
from typing import Any

import framework_torch
import number_places
import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError, Unsupported
from torch.autograd import forward_ad

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec.versions import release
from loss_balancers.torch import StaticLossBalancer
from loss_balancers.torch.functional import weighted_sum

ONE = torch.tensor(1.0)
PLACES: dict[str, Callable[[Any], Any]] = {name: partial(place, framework_torch) for name, place in number_places.PLACES.items()}


@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_that_is_detached_is_a_number(place):
    value = torch.tensor(0.25, requires_grad=True).detach()
    assert PLACES[place](value) == PLACES[place](value.item())


@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_that_requires_grad_is_refused(place):
    for learnable in (torch.nn.Parameter(torch.tensor(0.25)), torch.tensor(0.5, requires_grad=True) / 2):
        with pytest.raises(TypeError, match=r"must be constant: no gradient reaches it.*Pass `tensor.detach\(\)`"):
            PLACES[place](learnable)


def in_a_dual_level(call):
    """Forward mode without `torch.func`."""

    def transform(w):
        with forward_ad.dual_level():
            call(forward_ad.make_dual(w, ONE))

    return transform


#: From a function of a number to one in which a derivative by that number is asked for, at the level of the call or at one around.
DIFFERENTIATED: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "jvp": lambda call: lambda w: torch.func.jvp(call, (w,), (ONE,)),
    "grad": torch.func.grad,
    "dual level": in_a_dual_level,
    "jvp around jvp": lambda call: (
        lambda w: torch.func.jvp(lambda w: torch.func.jvp(lambda x: call(w), (w,), (ONE,)), (w,), (ONE,))
    ),
    "jvp around grad": lambda call: lambda w: torch.func.jvp(lambda w: torch.func.grad(lambda x: call(w * 1))(ONE), (w,), (ONE,)),
    "grad around jvp": lambda call: torch.func.grad(lambda w: torch.func.jvp(lambda x: call(w * 1), (ONE,), (ONE,))),
    "jvp around vmap": lambda call: (
        lambda w: torch.func.jvp(lambda w: torch.func.vmap(lambda x: call(w))(torch.ones(2)), (w,), (ONE,))
    ),
}


@pytest.mark.parametrize("transform", DIFFERENTIATED)
@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_that_a_transform_differentiates_is_refused(place, transform):
    with pytest.raises(TypeError, match=r"must be constant: no gradient reaches it.*Pass `tensor.detach\(\)`"):
        DIFFERENTIATED[transform](PLACES[place])(torch.tensor(0.25))


@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_beside_what_a_transform_differentiates_is_a_number(place):
    def call(x):
        for w in (torch.tensor(0.25), x.detach() / 4):  # what `detach()` returns has no tangent
            assert PLACES[place](w) == expected
        return x * 2

    expected = PLACES[place](0.25)
    torch.func.jvp(call, (ONE,), (ONE,))
    in_a_dual_level(call)(ONE)


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("constant", "linear", "tabulate")])
def test_a_scalar_on_a_device_is_refused(place):
    with pytest.raises(TypeError, match=r"must be a number on the host. Received one on meta. Call `.item\(\)` on it"):
        PLACES[place](torch.tensor(0.25, device="meta"))


def test_a_vector_that_requires_grad_is_refused():
    with pytest.raises(TypeError, match=r"`kd_loss_weight\[0\]` must be constant"):
        StaticLossBalancer(torch.tensor([0.25, 0.5]).requires_grad_())


def test_weights_that_require_grad_are_no_weights_of_a_sum():
    x = torch.tensor(3.0, requires_grad=True)
    weights = torch.tensor([0.25, 0.5], requires_grad=True)
    for learnable in (weights, weights * 2, torch.nn.Parameter(weights.detach())):
        with pytest.raises(TypeError, match=r"`weights` must be constant: no gradient reaches it. Received a tensor that requires"):
            weighted_sum([x, x], learnable)
    with torch.no_grad(), pytest.raises(TypeError, match="`weights` must be constant"):
        weighted_sum([x, x], weights)  # the same as in training
    total = weighted_sum([x, x], weights.detach())
    total.backward()
    assert_same_bits(total.detach(), torch.tensor(2.25))
    assert_same_bits(x.grad, torch.tensor(0.75))


@pytest.mark.parametrize("transform", DIFFERENTIATED)
def test_weights_that_a_transform_differentiates_are_refused(transform, told_in_a_graph):
    def call(w):
        return weighted_sum([ONE, ONE], torch.stack([w, w * 2]))

    with pytest.raises(TypeError, match="`weights` must be constant"):
        DIFFERENTIATED[transform](call)(torch.tensor(0.25))
    compiled = torch.compile(DIFFERENTIATED[transform](call), fullgraph=True, backend="eager")
    words = "`weights` must be constant"
    with pytest.raises((TorchRuntimeError, Unsupported), match=f"{words}|{told_in_a_graph(TypeError, words)}"):
        compiled(torch.tensor(0.25))


def test_weights_beside_what_a_transform_differentiates_are_constants():
    weights = torch.tensor([0.25, 0.5])
    for call in (lambda x: weighted_sum([x, x], weights), lambda x: weighted_sum([x, x], weights * x.detach())):

        def differentiated(x, call=call):
            return torch.func.jvp(call, (x,), (ONE,))

        for mode in (differentiated, torch.compile(differentiated, fullgraph=True, backend="eager")):
            for result in mode(ONE):
                assert_same_bits(result, torch.tensor(0.75))


@pytest.mark.parametrize(
    ("weights", "words", "since", "before"),
    [
        (torch.tensor([0.5], requires_grad=True), "`weights` must be constant", (2, 9), "<class 'TypeError'>"),
        ([torch.tensor(0.5)], r"`weights\[0\]` must be a number that is known now", (2, 9), "<class 'TypeError'>"),
        (torch.tensor([1]), r"`weights\[0\]` must be a number that is known now", (2, 11), "finite_weights"),
    ],
    ids=["learnable", "scalar", "integers"],
)
def test_in_a_graph_the_words_are_told_too(weights, words, since, before):
    """But for the oldest versions: their Dynamo says of which class an error is, or in which function, and where."""
    compiled = torch.compile(weighted_sum, fullgraph=True, backend="eager")
    with pytest.raises(Unsupported, match=words if release(torch.__version__) >= since else before):
        compiled([ONE], weights)
