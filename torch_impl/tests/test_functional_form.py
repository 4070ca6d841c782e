"""The functional form in what PyTorch does to a function: `torch.compile`, `torch.func`, checkpointing, devices."""

import os
import shutil
from functools import partial

import pytest
import torch
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[reportMissingImports]
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from with_state import FIRST, KEYWORDS, NAMES, calls

import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.torch import EMANormalizedLossBalancer, StaticLossBalancer, WeightedSumLossBalancer, functional_form

EXAMPLES = registry.examples()
HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
CHANGING = [name for name, settings in EXAMPLES.items() if settings.state and settings.can_change]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=CHANGING)
def form(request):
    """A functional form with state: of every kind in turn."""
    return functional_form(registry.make(EXAMPLES[request.param], loss_balancers.torch))


def assert_same(actual, expected):
    """Compares dicts of tensors by names, order and bits."""
    assert list(actual) == list(expected)
    tree_map(assert_same_bits, actual, expected)


def parts(form, state, losses, keywords):
    """All that a form computes, in one function."""
    aggregate, after = form.apply(state, losses, **keywords)
    return {
        "aggregate": aggregate,
        "apply": after,
        "commit": form.commit(after),
        "discard": form.discard(after),
        "weights": form.weights(state, losses, **keywords),
        "breakdown": form.breakdown(state, losses, **keywords),
    }


def assert_compiled_as_eager(backend, name, auto_step, keywords, draw):
    form = functional_form(registry.make(EXAMPLES[name], loss_balancers.torch, auto_step=auto_step))
    compiled, state = torch.compile(partial(parts, form), fullgraph=True, backend=backend), form.init()
    for i in range(4):
        losses = draw(i, requires_grad=True)
        if i == 1:
            losses[NAMES[0]] = torch.tensor(float("inf"), requires_grad=True)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = compiled(state, losses, keywords)
        expected = parts(form, state, losses, keywords)
        gradients = [torch.autograd.grad(x.pop("aggregate"), list(losses.values())) for x in (found, expected)]
        tree_map(assert_same_bits, *gradients)
        assert_same(found, expected)
        state = tree_map(torch.Tensor.detach, found["commit"] if i % 2 else found["apply"])


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("name", "auto_step", "keyword"), calls(CHANGING))
def test_one_graph_has_the_bits_of_eager(name, auto_step, keyword, draw):
    assert_compiled_as_eager("aot_eager", name, auto_step, KEYWORDS[keyword], draw)


@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")
@pytest.mark.parametrize("name", CHANGING[:1] + [name for name in CHANGING if "EMA" in name][:1])
def test_machine_code_has_the_bits_of_eager(name, draw):
    assert_compiled_as_eager("inductor", name, 2, {}, draw)


def test_gradients_by_a_transform_with_the_state_beside_them(form, draw):
    """As `grad` of a function that returns the state too, where a module would have to be in eval mode."""

    def objective(losses, state):
        return form.apply(state, losses)

    state = expected_state = form.init()
    for i in range(4):
        gradients, (aggregate, state) = grad_and_value(objective, has_aux=True)(draw(i), state)
        losses = draw(i, requires_grad=True)
        expected, expected_state = form.apply(expected_state, losses)
        assert_same_bits(aggregate, expected.detach())
        assert_same(gradients, dict(zip(losses, torch.autograd.grad(expected, list(losses.values())), strict=True)))
        state, expected_state = form.commit(state), form.commit(expected_state)
        assert_same(state, expected_state)
        assert not any(is_functorch_wrapped_tensor(x) for x in state.values())


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(
    ("form", "compiled"),
    [*((name, False) for name in CHANGING), *((name, True) for name in CHANGING if name in FIRST)],
    indirect=["form"],
)
def test_an_ensemble_by_vmap(form, draw, compiled):
    rows = [draw(i) for i in range(3)]
    stacked = tree_map(lambda *x: torch.stack(x), *rows)
    states = tree_map(lambda x: torch.stack([x] * 3), form.init())

    def step(state, losses):
        aggregate, state = form.apply(state, losses)
        return aggregate, form.commit(state)

    function = vmap(step)
    function = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    for _ in range(2):
        before, (aggregates, states) = states, function(states, stacked)
        for i, losses in enumerate(rows):
            aggregate, state = step({name: x[i] for name, x in before.items()}, losses)
            assert_same_bits(aggregates[i], aggregate)
            assert_same({name: x[i] for name, x in states.items()}, state)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_a_recomputed_call_is_the_same_call(use_reentrant, draw):
    form = functional_form(EMANormalizedLossBalancer(NAMES, auto_step=1))
    state, gradients = form.init(), []
    for _ in range(3):
        scale = torch.tensor(1.25, requires_grad=True)
        for call in (partial(checkpoint, use_reentrant=use_reentrant), lambda f, x: f(x)):
            aggregate, after = call(lambda s, given=state: form.apply(given, {name: x * s for name, x in draw().items()}), scale)
            scale.grad = None
            aggregate.backward()
            gradients.append(scale.grad)
        state = after
        assert_same_bits(*gradients[-2:])
    assert state["steps"] == 2


def test_export_and_load_are_refused_under_a_transform(form, draw):
    for what in ("export", "load"):
        with pytest.raises(RuntimeError, match=f"`{what}_state\\(\\)` must be called outside of a transform"):
            vmap(lambda x, what=what: getattr(form, f"{what}_state")(form.init()))(torch.ones(2))


def test_the_state_is_on_the_device_of_the_balancer(form, draw):
    state = form.init()
    form._balancer.to("meta")
    assert {x.device.type for x in form.init().values()} == {"meta"}
    for call in (form.apply, form.evaluate, form.observe, form.weights, form.breakdown):
        with pytest.raises(ValueError, match=r"on the device of the balancer, meta. Received 'steps' on cpu.*`\.to\(device\)`"):
            call(state, draw())
    with pytest.raises(ValueError, match="must be on the device of the balancer's state, meta"):
        form.apply(form.init(), draw())
    functional_form(StaticLossBalancer().to("meta")).apply({}, draw())


def test_constant_weights_in_one_graph(draw):
    form = functional_form(WeightedSumLossBalancer(dict.fromkeys(NAMES[:-1], 2.0), 0.5))
    compiled = torch.compile(lambda losses: form.apply({}, losses)[0], fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(draw()), form.evaluate({}, draw()))
