"""`torch.compile(fullgraph=True)` gives what eager gives, alone and within a larger graph, and is compiled once."""

import os
import shutil
import warnings

import pytest
import torch
import torch._dynamo.config
import torch._dynamo.exc

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import DistillationLossBalancer, StaticLossBalancer, functional

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
INDUCTOR = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler"),
)
NAMES = ("M_10", "M_2", "student_loss", "M_1")
# PyTorch 2.13's own, for every autograd.Function that Dynamo traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    # And at the first compilation of a process.
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]

FORMS = {"number": 0.3, "sequence": [0.1, 0.2, 0.3]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draws(count, dtypes=(torch.float32,) * 4, shape=()):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield {
            name: torch.randn(shape, generator=generator).to(dtype).requires_grad_()
            for name, dtype in zip(NAMES, dtypes, strict=True)
        }


def step(balancer, losses):
    aggregate = balancer(losses)
    return aggregate, torch.autograd.grad(aggregate, list(losses.values()), torch.ones_like(aggregate))


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_gives_what_eager_gives(backend):
    for given in FORMS.values():
        balancer = StaticLossBalancer(given)
        compiled = torch.compile(balancer, fullgraph=True, backend=backend)
        for losses in draws(50):
            aggregate, gradients = step(compiled, losses)
            expected, expected_gradients = step(balancer, losses)
            assert_same_bits(aggregate, expected)
            for gradient, wanted in zip(gradients, expected_gradients, strict=True):
                assert_same_bits(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_losses_and_their_gradient_by_torch_func_in_one_graph(backend, dtype):
    """The losses are rounded to ``dtype`` in the graph, where Inductor would go on in float32."""
    balancer = StaticLossBalancer(0.3)

    def objective(parameters):
        losses = {name: (p * 1.5).to(dtype) for name, p in parameters.items()}
        aggregate = balancer(losses)
        return aggregate.float(), (aggregate, losses)

    whole = torch.compile(torch.func.grad(objective, has_aux=True), fullgraph=True, backend=backend)
    for drawn in draws(20):
        parameters = {name: p.detach() for name, p in drawn.items()}
        gradients, (aggregate, _) = whole(parameters)
        wanted, (expected, _) = torch.func.grad(objective, has_aux=True)(parameters)
        assert_same_bits(aggregate, expected)
        for name, gradient in gradients.items():
            assert_same_bits(gradient, wanted[name])


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")  # PyTorch's own, of any kernel that reads both
@pytest.mark.parametrize("backend", [INDUCTOR])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_losses_computed_inside_the_graph(backend, grad):
    """The aggregate is that of the losses as they are stored, though the compiler holds bfloat16 and float16 in float32."""
    balancer = StaticLossBalancer([0.1, 0.2, 0.3])
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16)

    def model(a, b):
        raw = dict(zip(NAMES, ((a * b), (a - b) * 0.1, a * a, b * 1.5), strict=True))
        losses = {name: (x * 1.1).to(dtype) for (name, x), dtype in zip(raw.items(), dtypes, strict=True)}
        return balancer(losses), losses

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    with torch.set_grad_enabled(grad):
        a, b = (torch.randn(4000, generator=generator, requires_grad=grad) for _ in "ab")
        aggregate, losses = compiled(a, b)
        assert_same_bits(aggregate, balancer(losses))
        if grad:
            gradients = torch.autograd.grad(aggregate.sum(), [a, b])
            expected = torch.autograd.grad(model(a, b)[0].sum(), [a, b])
            for gradient, wanted in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient, wanted)  # what the model does with it is the compiler's business


@pytest.mark.parametrize("backend", [INDUCTOR])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_an_aggregate_that_goes_on_inside_the_graph(backend, dtype):
    """It is rounded to its format before it is used."""
    balancer = StaticLossBalancer(0.3)

    def model(x, y):
        aggregate = balancer({"M_0": x, "student_loss": y})
        return aggregate, aggregate.float() * 3.0

    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(1000, generator=generator).to(dtype) for _ in "xy")
    aggregate, after = torch.compile(model, fullgraph=True, backend=backend)(x, y)
    assert_same_bits(aggregate, balancer({"M_0": x, "student_loss": y}))
    assert_same_bits(after, aggregate.float() * 3.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["grad", "no-grad"])
def test_any_number_of_terms(requires_grad, count):
    """Dynamo takes another way where nothing requires grad, one that minds how many arguments there are."""
    terms = [torch.tensor(i + 0.3, requires_grad=requires_grad) for i in range(count)]
    weights = [0.1] * count
    compiled = torch.compile(functional.weighted_sum, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(terms, weights), functional.weighted_sum(terms, weights))


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_compiled_once(given):
    compiled = torch.compile(StaticLossBalancer(given), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for losses in draws(5):
            step(compiled, losses)


def test_the_probe_for_a_second_compilation_can_fail():
    compiled = torch.compile(lambda x, n: x * n, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(torch.ones(2), 2)
        with pytest.raises(torch._dynamo.exc.RecompileError):
            compiled(torch.ones(3), 3)


def test_one_tensor_twice():
    balancer = StaticLossBalancer([0.25, 0.5])
    x = torch.tensor(3.0, requires_grad=True)
    losses = {"M_0": x, "M_1": x, "student_loss": x}
    aggregate = torch.compile(balancer, fullgraph=True, backend="aot_eager")(losses)
    assert_same_bits(aggregate, balancer(losses))
    assert_same_bits(torch.autograd.grad(aggregate, x)[0], torch.tensor(1.0))


def test_weighted_sum_and_a_balancer_of_ones_own():
    class Mine(DistillationLossBalancer):
        def forward(self, loss):
            losses = self.canonical(loss)
            return functional.weighted_sum(list(losses.values()), [3.0, *[0.5] * (len(losses) - 1)])

    balancer = Mine()
    balancer.set_student_loss_reduction_fn(torch.exp)
    compiled = torch.compile(balancer, fullgraph=True, backend="aot_eager")
    for losses in draws(5):
        aggregate, gradients = step(compiled, losses)
        expected, expected_gradients = step(balancer, losses)
        assert_same_bits(aggregate, expected)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            assert_same_bits(gradient, wanted)


def test_a_dropped_student_weight_warns_while_compiling_only():
    compiled = torch.compile(StaticLossBalancer(0.3), fullgraph=True, backend="aot_eager")
    losses = {"M_0": torch.tensor(1.0)}
    with pytest.warns(UserWarning, match=r"weight 0\.7"):
        compiled(losses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(compiled(losses), torch.tensor(0.3))


def test_errors_keep_their_class_and_words():
    compiled = torch.compile(StaticLossBalancer([0.5, 0.25]), backend="aot_eager")
    with pytest.raises(ValueError, match="one weight per KD loss"):
        compiled({"M_0": torch.tensor(1.0)})
