"""What PyTorch does to a function, done to balancers with state: gradients, checkpointing, `torch.func`, export."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, grad_and_value, jacrev, jvp, linearize, vmap
from torch.utils.checkpoint import checkpoint

from loss_balancers.parity.bits import assert_same_bits


def warm(balancer, draw):
    """A balancer some steps into training."""
    for i in range(3):
        balancer(draw(i))
        balancer.step()
    return balancer


def test_the_gradient_is_the_weight(make, draw):
    balancer = warm(make(), draw)
    losses = draw(7, requires_grad=True)
    gradients = torch.autograd.grad(balancer(losses), list(losses.values()))
    for gradient, weight in zip(gradients, balancer.weights(losses).values(), strict=True):
        assert_same_bits(gradient, weight)


def test_weights_are_constants_in_a_second_derivative(make, draw):
    balancer = warm(make(), draw)
    if balancer._settings.weights_are == "derivatives":
        return  # a function of the losses: test_nested_transforms.py
    x = torch.tensor(1.5, requires_grad=True)
    losses = {name: y * x**3 for name, y in draw(7).items()}
    weights = balancer.weights(losses)
    (first,) = torch.autograd.grad(balancer(losses), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    expected = sum(float(weights[name]) * float(y) for name, y in draw(7).items()) * 6 * 1.5
    torch.testing.assert_close(second, torch.tensor(expected))


def test_a_gradient_after_the_step_is_that_of_the_weights_before_it(make, draw):
    balancer = warm(make(), draw)
    losses = draw(7, requires_grad=True)
    weights = balancer.weights(losses)
    aggregate = balancer(losses)
    balancer.step()
    gradients = torch.autograd.grad(aggregate, list(losses.values()))
    for gradient, weight in zip(gradients, weights.values(), strict=True):
        assert_same_bits(gradient, weight)


# --- recomputation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_a_recomputed_forward_observes_once(make, draw, use_reentrant, assert_same_state):
    recomputed, plain = make(), make()
    passes = []

    def model(balancer, scale):
        passes.append(torch.is_grad_enabled())
        return balancer({name: x * scale for name, x in draw().items()})

    gradients = []
    for balancer in (recomputed, plain):
        for _ in range(3):
            for _ in range(2):
                scale = torch.tensor(1.25, requires_grad=True)
                if balancer is recomputed:
                    aggregate = checkpoint(model, balancer, scale, use_reentrant=use_reentrant)
                else:
                    aggregate = model(balancer, scale)
                aggregate.backward()
                gradients.append(scale.grad)
            balancer.step()
    assert len(passes) == 18  # 6 of each, and 6 again
    assert_same_state(recomputed, plain)
    for gradient, expected in zip(gradients[:6], gradients[6:], strict=True):
        assert_same_bits(gradient, expected)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_a_recomputed_forward_steps_by_itself_once(make, draw, use_reentrant):
    balancer = make(auto_step=1)
    for _ in range(4):
        scale = torch.tensor(1.25, requires_grad=True)
        checkpoint(lambda s: balancer({name: x * s for name, x in draw().items()}), scale, use_reentrant=use_reentrant).backward()
    assert balancer.steps == 3


def test_recomputation_of_a_recomputation_observes_once(make, draw):
    balancer = make()

    def inner(scale):
        return balancer({name: x * scale for name, x in draw().items()})

    scale = torch.tensor(1.25, requires_grad=True)
    checkpoint(lambda s: checkpoint(inner, s, use_reentrant=False) * 2, scale, use_reentrant=False).backward()
    assert balancer.pending[-2] == 1


# --- torch.func -----------------------------------------------------------------------------------------------------

TRANSFORMED = {
    "grad": lambda f, draw: grad(f)(draw()),
    "grad-and-value": lambda f, draw: grad_and_value(f)(draw()),
    "vmap": lambda f, draw: vmap(f)({name: x.expand(3) for name, x in draw().items()}),
    "jvp": lambda f, draw: jvp(f, (draw(),), (draw(1),)),
    "vmap-of-grad": lambda f, draw: vmap(grad(f))({name: x.expand(3) for name, x in draw().items()}),
}


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
@pytest.mark.parametrize("auto_step", [None, 1])
def test_a_training_forward_under_a_transform_is_refused(make, draw, transform, auto_step, values, assert_same_state):
    balancer = make(auto_step=auto_step)
    balancer(draw())
    before = values(balancer)
    with pytest.raises(RuntimeError, match=r"Call `eval\(\)` on it, and `observe\(loss\)` outside of the transform"):
        transform(balancer, draw)
    assert_same_state(balancer, before)
    with pytest.raises(RuntimeError, match=r"under `torch\.func`"):
        transform(lambda losses: (balancer.observe(losses), losses["MSE_1"])[1], draw)
    assert_same_state(balancer, before)


@pytest.mark.in_turn(8)
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # PyTorch's own, in eval mode
@pytest.mark.parametrize("auto_step", [None, 1])
def test_linearize_of_a_training_forward_is_refused(make, draw, auto_step, assert_same_state):
    """It calls the function twice: as it is, which is a forward, and traced, which would write state at each call of the map."""
    balancer, other = make(auto_step=auto_step), make(auto_step=auto_step)
    with pytest.raises(RuntimeError, match=r"Call `eval\(\)` on it, and `observe\(loss\)` outside of the transform"):
        linearize(balancer, draw())
    other(draw())
    assert_same_state(balancer, other)
    balancer.eval()
    value, tangents = linearize(balancer, draw())
    expected = jvp(balancer, (draw(),), (draw(1),))
    assert torch.equal(value, expected[0])
    assert torch.equal(tangents(draw(1)), expected[1])
    assert_same_state(balancer, other)


STATE = {
    "step()": lambda balancer, other: balancer.step(),
    "discard()": lambda balancer, other: balancer.discard(),
    "export_state()": lambda balancer, other: balancer.export_state(),
    "load_state()": lambda balancer, other: balancer.load_state(other.export_state()),
    "load_state_dict()": lambda balancer, other: balancer.load_state_dict(other.state_dict()),
    "load_state_dict(assign)": lambda balancer, other: balancer.load_state_dict(other.state_dict(), assign=True),
}


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(lambda f, x: grad(f)(x), id="grad"),
        pytest.param(lambda f, x: vmap(f)(x.expand(3)), id="vmap"),
        pytest.param(lambda f, x: jvp(f, (x,), (x,)), id="jvp"),
        pytest.param(lambda f, x: jacrev(f)(x), id="jacrev"),
        pytest.param(lambda f, x: functionalize(f)(x), id="functionalize"),
    ],
)
@pytest.mark.parametrize("what", STATE)
def test_state_is_neither_written_nor_read_out_under_a_transform(make, draw, transform, what, values, assert_same_state):
    balancer, other = warm(make(), draw), make()
    balancer(draw(7))
    before, given = values(balancer), other.export_state()
    other.export_state = lambda: given
    words = rf"`{what.partition('(')[0]}\(\)` must be called outside of a transform of `torch.func`"
    with pytest.raises(RuntimeError, match=words):
        transform(lambda x: (STATE[what](balancer, other), x * 1.0)[1], torch.tensor(2.0))
    assert_same_state(balancer, before)
    STATE[what](balancer, other)  # outside it is as ever


@pytest.mark.parametrize("what", ["step()", "discard()"])
def test_linearize_does_not_change_state_in_its_trace(make, draw, what, values, assert_same_state):
    """It calls the function twice: as it is, and traced. The trace changes nothing, and neither does the map ever after."""
    balancer, other = warm(make(), draw), make()
    balancer(draw(7))
    expected = copy.deepcopy(balancer)
    with pytest.raises(RuntimeError, match="must be called outside of a transform"):
        linearize(lambda x: (STATE[what](balancer, other), x * 1.0)[1], torch.tensor(2.0))
    STATE[what](expected, other)
    assert_same_state(balancer, expected)


def test_a_loop_under_a_transform(make, draw, assert_same_state):
    """The same run, by `grad` of an eval forward with `observe` beside it, as by a training forward and its backward."""
    functional, plain = make(), make()
    functional.eval()
    for i in range(6):
        gradients, aggregate = grad_and_value(functional)(draw(i))
        functional.observe(draw(i))
        functional.step()
        losses = draw(i, requires_grad=True)
        expected = plain(losses)
        expected.backward()
        plain.step()
        assert_same_bits(aggregate, expected.detach())
        for name, x in losses.items():
            assert_same_bits(gradients[name], x.grad)
    assert_same_state(functional, plain)


def test_vmap(make, draw):
    balancer = warm(make(), draw).eval()
    drawn = [draw(i) for i in range(5)]
    stacked = {name: torch.stack([losses[name] for losses in drawn]) for name in draw()}
    assert_same_bits(vmap(balancer)(stacked), torch.stack([balancer(losses) for losses in drawn]))
    gradients = vmap(grad(balancer))(stacked)
    for i, losses in enumerate(drawn):
        for name, weight in balancer.weights(losses).items():
            assert_same_bits(gradients[name][i], weight)


def test_jvp(make, draw):
    balancer = warm(make(), draw).eval()
    aggregate, tangent, *_ = jvp(balancer, (draw(4),), (draw(5),))
    assert_same_bits(aggregate, balancer(draw(4)))
    weights = balancer.weights(draw(4))
    torch.testing.assert_close(tangent, sum(weights[name] * x for name, x in draw(5).items()))


def test_forward_mode_observes_the_losses_alone(make, draw):
    balancer, plain = make(), make()
    with forward_ad.dual_level():
        balancer({name: forward_ad.make_dual(x, torch.ones(())) for name, x in draw().items()})
        assert forward_ad.unpack_dual(balancer.pending).tangent is None
    plain(draw())
    assert_same_bits(balancer.pending, plain.pending)


def test_functional_call_changes_the_state_that_it_is_given(make, draw, values, assert_same_state):
    balancer, plain = make(), make()
    before = values(balancer)
    given = {name: x.clone() for name, x in balancer.state_dict().items()}
    for i in range(2):
        assert_same_bits(functional_call(balancer, given, (draw(i),)), plain(draw(i)))
    assert_same_state(balancer, before)
    balancer.load_state_dict(given)
    assert_same_state(balancer, plain)


def test_functional_call_of_a_model_under_grad(make, draw):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.5))
            self.balancer = make()

        def forward(self, losses):
            return self.balancer({name: self.scale * x for name, x in losses.items()})

    model, losses = Model().eval(), draw()
    gradients = grad(lambda parameters: functional_call(model, parameters, (losses,)))({"scale": torch.tensor(1.5)})
    model(losses).backward()
    assert_same_bits(gradients["scale"], model.scale.grad)


def test_export(make, draw):
    balancer = warm(make(), draw).eval()
    program = torch.export.export(balancer, (draw(),))
    assert_same_bits(program.module()(draw(8)), balancer(draw(8)))


def test_inference_mode(make, draw):
    balancer = make()
    with torch.inference_mode():
        balancer(draw())
        balancer.step()
    balancer(draw(requires_grad=True)).backward()
    balancer.step()
    assert balancer.steps == 2


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_a_training_forward_within_a_transform_that_is_compiled_is_refused(make, draw, transform, told_in_a_graph):
    """As it is where nothing is compiled: a transform that is traced would observe once, or nothing."""
    balancer, losses = make(), draw()

    def total(x):
        return balancer({name: x * loss for name, loss in losses.items()})

    calls = {
        "vmap": lambda x: torch.func.vmap(total)(x.expand(3)),
        "grad": torch.func.grad(total),
        "jvp": lambda x: torch.func.jvp(total, (x,), (x,)),
    }
    words = r"cannot be called under `torch.func`"
    with pytest.raises(RuntimeError, match=words):
        calls[transform](torch.tensor(1.0))
    with pytest.raises(RuntimeError, match=told_in_a_graph(RuntimeError, words)):
        torch.compile(calls[transform], fullgraph=True, backend="aot_eager")(torch.tensor(1.0))
    assert not balancer.pending.any()
