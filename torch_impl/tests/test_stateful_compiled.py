"""A balancer with state compiles once, forward and step and all that is around them, and gives what eager gives."""

import os
import shutil
from functools import partial
from itertools import cycle

import pytest
import torch
import torch._dynamo.config
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.utils.checkpoint import checkpoint
from with_state import EXAMPLES, FIRST

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import schedules
from loss_balancers.spec.versions import release
from loss_balancers.torch import (
    EMANormalizedLossBalancer,
    LogitsAndIntermediatesLossBalancer,
    ScheduledLossBalancer,
    WeightedSumLossBalancer,
)

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler")
#: Whether `torch.autograd.grad` can be compiled: newer than PyTorch 2.9.
needs_autograd_in_a_graph = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="Dynamo of this version does not trace `torch.autograd.grad`"
)
STANCES = ("eager_then_compile", "force_eager", "eager_on_recompile")
KINDS = ["scheduled", "weighted-sum", "ema", "ema-lagged", "logits"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Student(nn.Module):
    """A model with its balancer inside, and two losses on top of its own."""

    def __init__(self, balancer):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.balancer = balancer

    def forward(self, x):
        y = self.linear(x)
        kd, feature = (y - 1.0).square().mean(), (y * 0.1).square().mean()
        return self.balancer({"student_loss": y.abs().mean(), "LogitsKL_0": kd, "MSE_1": feature})


def batches(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def graphs_of(function, *args):
    """The graphs that a compiler such as Inductor gets, forward and backward."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*args)
    return graphs


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("make", "auto_step"), list(zip(EXAMPLES, cycle([None, 2]), strict=False)), indirect=["make"])
def test_no_compiled_graph_has_a_fused_write(make, draw, auto_step):
    """Inductor makes a fused write one kernel, whose blocks read what another overwrites: steps were lost on an H100."""
    balancer = make(auto_step=auto_step)
    graphs = [*graphs_of(balancer, draw(requires_grad=True)), *([] if auto_step else graphs_of(balancer.step))]
    targets = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert len(targets) > 5
    assert not [target for target in targets if "_foreach" in target]


@pytest.mark.parametrize(
    ("make", "auto_step", "steps"),
    [*((kind, None, 100) for kind in KINDS), ("ema-lagged", None, 1000), ("ema", 2, 1000)],
    ids=[*KINDS, "ema-lagged-long", "ema-auto-step-long"],
    indirect=["make"],
)
def test_compiled_once_in_many_steps(make, draw, auto_step, steps, assert_same_state):
    compiled, eager = make(auto_step=auto_step), make(auto_step=auto_step)
    forward = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    step = torch.compile(compiled.step, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(steps):
            losses = draw(i % 10, requires_grad=True)
            aggregate = forward(losses)
            torch.autograd.grad(aggregate, list(losses.values()))
            if auto_step is None:
                step()
            if i < 20 or i > steps - 10:
                expected = eager(losses)
                assert_same_bits(aggregate, expected)
                if auto_step is None:
                    eager.step()
                assert_same_state(compiled, eager)
            elif i == steps - 10:
                eager.load_state(compiled.export_state())
    assert compiled.steps == (steps if auto_step is None else steps // 2 - 1)
    assert counters["stats"]["unique_graphs"] == (2 if auto_step is None else 1)
    assert not counters["graph_break"]


@pytest.mark.in_turn(2)
@needs_autograd_in_a_graph
@pytest.mark.parametrize(
    ("make", "backend"),
    [*((kind, "aot_eager") for kind in KINDS), pytest.param("ema", "inductor", marks=needs_compiler)],
    ids=[*KINDS, "ema-inductor"],
    indirect=["make"],
)
def test_a_training_step(make, backend, assert_same_state):
    """The graph holds model, losses, balancer, its gradients and its step; the optimizer has a graph of its own."""
    compiled, eager = Student(make()), Student(make())

    def train_step(model, x):
        aggregate = model(x)
        gradients = torch.autograd.grad(aggregate, list(model.linear.parameters()))
        model.balancer.step()
        return aggregate.detach(), gradients

    whole = torch.compile(train_step, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True, trace_autograd_ops=True):
        for x in batches(12):
            aggregate, gradients = whole(compiled, x)
            expected, expected_gradients = train_step(eager, x)
            torch.testing.assert_close(
                aggregate, expected
            )  # the losses are the compiler's business; the balancer's own bits are not
            torch.testing.assert_close(gradients, expected_gradients)
            with torch.no_grad():
                for each in (compiled, eager):
                    for p, g in zip(each.linear.parameters(), expected_gradients, strict=True):
                        p.sub_(0.1 * g)
    assert compiled.balancer.steps == eager.balancer.steps == 12
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


# Dynamo begins in the middle of an eager call there, and asks losses that are results for their `.grad`.
@pytest.mark.in_turn(8)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize(("make", "stance"), list(zip(EXAMPLES, cycle(STANCES), strict=False)), indirect=["make"], ids=lambda x: x)
def test_a_stance_that_mixes_eager_and_compiled_steps(make, draw, stance, assert_same_state):
    """Some calls run as compiled code and others as Python, on the same state; float64 losses would compile anew.

    The stances take turns: they are PyTorch's, and what they mix is one balancer's code, compiled and not.
    """
    if stance == "eager_then_compile" and release(torch.__version__) < (2, 9):
        pytest.skip("PyTorch 2.8 crashes in this stance after a reset of Dynamo, whatever the module")
    mixed, eager = make(), make()
    forward = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    step = torch.compile(mixed.step, fullgraph=True, backend="aot_eager")
    if stance == "eager_on_recompile":
        forward(draw())
        mixed.discard()
    with torch.compiler.set_stance(stance):
        for i in range(8):
            wide = i % 4 == 3 and mixed._settings.takes_float64
            losses = draw(i, dtype=torch.float64 if wide else torch.float32, requires_grad=True)
            aggregate, expected = forward(losses), eager(losses)
            assert_same_bits(aggregate, expected)
            gradients, wanted = (torch.autograd.grad(x, list(losses.values())) for x in (aggregate, expected))
            for gradient, want in zip(gradients, wanted, strict=True):
                assert_same_bits(gradient, want)
            step()
            eager.step()
            assert_same_state(mixed, eager)
    assert bool(counters["stats"]["unique_graphs"]) == (stance != "force_eager")


# Of the other examples Inductor compiles the forward in golden vectors and drawn runs.
@pytest.mark.in_turn(8)
@needs_compiler
@pytest.mark.parametrize("make", [name for name in EXAMPLES if name in FIRST], indirect=True)
def test_compiled_gives_what_eager_gives(make, draw, assert_same_state):
    compiled, eager = make(), make()
    forward = torch.compile(compiled, fullgraph=True)
    step = torch.compile(compiled.step, fullgraph=True)
    for i in range(12):
        for j in range(2):
            losses = draw(10 * i + j, requires_grad=True)
            if i == 5:
                losses["MSE_1"] = torch.tensor(float("nan"), requires_grad=True)
            aggregate, expected = forward(losses), eager(losses)
            assert_same_bits(aggregate, expected)
            gradients, wanted = (torch.autograd.grad(x, list(losses.values())) for x in (aggregate, expected))
            for gradient, want in zip(gradients, wanted, strict=True):
                assert_same_bits(gradient, want)
        step()
        eager.step()
        assert_same_state(compiled, eager)


#: Tables so short that a compiler would rather keep them for the backward than the weights.
SHORT = schedules.linear(0.0, 0.8, 1)
SHORTLY = {
    "scheduled": lambda names, **options: ScheduledLossBalancer(SHORT, names=names, **options),
    "weighted-sum": lambda names, **options: WeightedSumLossBalancer({"LogitsKL_0": SHORT, "MSE_1": 3.0}, 0.5, **options),
    "ema": lambda names, **options: EMANormalizedLossBalancer(names, {"MSE_1": SHORT}, beta=0.5, **options),
    "ema-lagged": lambda names, **options: EMANormalizedLossBalancer(names, {"MSE_1": SHORT}, beta=0.5, lagged=True, **options),
    "logits": lambda names, **options: LogitsAndIntermediatesLossBalancer(SHORT, **options),
}


def forward_alone(balancer, losses, _):
    return balancer(losses)


def forward_and_step(balancer, losses, _):
    aggregate = balancer(losses)
    balancer.step()
    return aggregate


def two_forwards(balancer, losses, others):
    return forward_alone(balancer, losses, others) + balancer(others)


@pytest.mark.in_turn(8)
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "run", "auto_step"),
    [
        # Two forwards, with a commit between them, have all that the others have; those take turns.
        *(pytest.param(kind, two_forwards, 1, id=f"{kind}-two-forwards-in-the-graph") for kind in SHORTLY),
        *(pytest.param(kind, forward_alone, 2, id=f"{kind}-auto-step") for kind in list(SHORTLY)[::2]),
        *(pytest.param(kind, forward_and_step, None, id=f"{kind}-step-in-the-graph") for kind in list(SHORTLY)[1::2]),
    ],
)
def test_a_compiled_backward_takes_the_weights_of_its_forward(kind, run, auto_step, draw, assert_same_state):
    """Not those of the state that the forward has left: a compiler may compute them again in the backward."""
    compiled, eager = (SHORTLY[kind](tuple(draw()), auto_step=auto_step) for _ in range(2))
    whole = torch.compile(run, fullgraph=True)
    for i in range(4):
        losses, others = draw(i, requires_grad=True), draw(100 + i, requires_grad=True)
        given = [*losses.values(), *(others.values() if run is two_forwards else ())]
        gradients, wanted = (
            torch.autograd.grad(function(balancer, losses, others), given)
            for function, balancer in ((whole, compiled), (run, eager))
        )
        for gradient, want in zip(gradients, wanted, strict=True):
            assert_same_bits(gradient, want)
    assert_same_state(compiled, eager)


@pytest.mark.in_turn(2)
@needs_compiler
@pytest.mark.parametrize("kind", SHORTLY)
def test_a_compiled_backward_may_come_after_the_next_commit(kind, draw):
    """As an eager one may."""
    compiled, eager = (SHORTLY[kind](tuple(draw()), auto_step=1) for _ in range(2))
    forward = torch.compile(compiled, fullgraph=True)
    for i in range(2):
        losses, others = draw(i, requires_grad=True), draw(100 + i, requires_grad=True)
        given = [*losses.values(), *others.values()]
        gradients, wanted = (torch.autograd.grad(f(losses) + f(others), given) for f in (forward, eager))
        for gradient, want in zip(gradients, wanted, strict=True):
            assert_same_bits(gradient, want)


@pytest.mark.in_turn(2)
@needs_compiler
@pytest.mark.parametrize("make", KINDS, indirect=True)
def test_a_whole_step_under_torch_func_in_one_graph(make, draw, assert_same_state):
    compiled, eager = make().eval(), make()

    def step(losses):
        gradients, aggregate = torch.func.grad_and_value(compiled)(losses)
        compiled.observe(losses)
        compiled.step()
        return aggregate, gradients

    whole = torch.compile(step, fullgraph=True)
    for i in range(4):
        aggregate, gradients = whole(draw(i))
        losses = draw(i, requires_grad=True)
        expected = eager(losses)
        wanted = torch.autograd.grad(expected, list(losses.values()))
        eager.step()
        assert_same_bits(aggregate, expected)
        for name, want in zip(losses, wanted, strict=True):
            assert_same_bits(gradients[name], want)
        assert_same_state(compiled, eager)


@pytest.mark.parametrize("make", ["ema", "logits"], indirect=True)
@pytest.mark.parametrize("method", ["observe", "weights", "breakdown"])
def test_the_other_methods_compile(make, draw, method, assert_same_state):
    balancer, eager = make(), make()
    compiled = torch.compile(getattr(balancer, method), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(3):
            result, expected = compiled(draw(i)), getattr(eager, method)(draw(i))
            assert type(result) is type(expected)
            for name in expected or ():
                assert_same_bits(result[name], expected[name])
    assert_same_state(balancer, eager)


# Dynamo looks at `grad` of what it is given; a reentrant checkpoint gives it no leaves.
@pytest.mark.in_turn(2)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("auto_step", [None, 1], ids=["step", "auto-step"])
@pytest.mark.parametrize("where", ["reentrant", "not-reentrant", "inside"])
@pytest.mark.parametrize("make", ["ema"], indirect=True)
def test_a_compiled_forward_that_is_recomputed_observes_once(make, draw, where, auto_step, assert_same_state):
    balancer, eager = make(auto_step=auto_step), make(auto_step=auto_step)

    def model(scale, losses):
        return balancer({name: x * scale for name, x in losses.items()})

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if where == "inside":
        inside = partial(checkpoint, model, use_reentrant=False)
        train = torch.compile(lambda scale, losses: inside(scale, losses) * 1.0, fullgraph=True, backend="aot_eager")
    else:
        train = partial(checkpoint, compiled, use_reentrant=where == "reentrant")
    for i in range(3):
        scale = torch.tensor(1.25, requires_grad=True)
        train(scale, draw(i)).backward()
        eager({name: x * 1.25 for name, x in draw(i).items()})
    assert_same_state(balancer, eager)


@pytest.mark.parametrize("make", ["ema"], indirect=True)
def test_eval_and_training_are_two_graphs(make, draw):
    balancer = make()
    forward = torch.compile(balancer, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        balancer.train()
        forward(draw())
        balancer.eval()
        forward(draw())
    assert balancer.pending[-2] == 3
    assert counters["stats"]["unique_graphs"] == 2


def test_balancers_of_other_numbers_in_one_process(draw):
    """Dynamo makes a symbol of a float attribute that has changed: here it must stay the constant that it is."""
    names = tuple(draw())
    makes = {
        "beta": lambda x: EMANormalizedLossBalancer(names, beta=0.9 - x / 7),
        "eps": lambda x: EMANormalizedLossBalancer(names, eps=0.1 + x / 3, lagged=x > 1),
        "scale": lambda x: LogitsAndIntermediatesLossBalancer(0.3 + x / 7),
    }
    for make in makes.values():
        torch.compiler.reset()  # Dynamo counts compilations by the code of a function, and gives up after a few
        for x in range(2):
            eager, compiled = make(x), make(x)
            forward = torch.compile(compiled, fullgraph=True)
            step = torch.compile(compiled.step, fullgraph=True)
            for i in range(2):
                assert_same_bits(forward(draw(i)), eager(draw(i)))
                eager.step()
                step()
            assert {name: x.tolist() for name, x in compiled.state_dict().items()} == {
                name: x.tolist() for name, x in eager.state_dict().items()
            }
