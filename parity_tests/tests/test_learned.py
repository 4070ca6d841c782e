"""`UncertaintyLossBalancer` and `IMTLLossBalancer`: the papers' formulas, and a parameter that optimizers train."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from runs import as_bytes, make

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES
EXAMPLES = {name: settings for name, settings in registry.examples().items() if settings.learned}
VALUES = (3.0, 0.5, 7.0)
MODULES: dict[str, Any] = {"torch": loss_balancers.torch, "jax": loss_balancers.jax}
FRAMEWORKS = list(MODULES)

Row = tuple[float, ...]


def losses_of(framework: str, values: Row = VALUES) -> dict[str, Any]:
    array: Any = torch.tensor if framework == "torch" else jnp.float32
    return {name: array(value) for name, value in zip(NAMES, values, strict=True)}


def parameter_of(balancer: Any) -> Any:
    """The parameter as a NumPy array."""
    return balancer.export_state()["state"][balancer._settings.parameter]


def set_parameter(balancer: Any, values: Any) -> None:
    """Writes the parameter as an optimizer does."""
    if isinstance(balancer, torch.nn.Module):
        with torch.no_grad():
            parameter_values: Any = balancer.parameter
            parameter_values.copy_(torch.tensor(values))
    else:
        balancer.parameter[...] = jnp.asarray(values, jnp.float32)


def differentiated(framework: str, balancer: Any, values: Row, **more: Any) -> tuple[Any, Any, Any]:
    """The aggregate, its gradient to each loss, and its gradient to the parameter, as NumPy arrays."""
    if framework == "torch":
        losses = {name: x.requires_grad_() for name, x in losses_of(framework, values).items()}
        aggregate = balancer(losses, **more)
        *to_losses, to_parameter = torch.autograd.grad(aggregate, [*losses.values(), balancer.parameter])
        return aggregate.detach().numpy(), np.array([float(g) for g in to_losses]), to_parameter.numpy()
    graph, parameters = nnx.split(balancer)

    def aggregate_of(losses: Any, parameters: Any) -> Any:
        return nnx.merge(graph, parameters)(losses, **more)

    aggregate, (to_losses, to_parameters) = jax.value_and_grad(aggregate_of, (0, 1))(losses_of(framework, values), parameters)
    (to_parameter,) = jax.tree.leaves(to_parameters)
    return np.asarray(aggregate), np.array([float(to_losses[name]) for name in NAMES]), np.asarray(to_parameter)


def kendall(losses: Any, s: Any) -> tuple[Any, Any, Any]:
    weights = 0.5 * np.exp(-s)
    return (weights * losses + 0.5 * s).sum(), weights, 0.5 - weights * losses


def regularized(losses: Any, s: Any) -> tuple[Any, Any, Any]:
    weights = 0.5 / s**2
    return (weights * losses + np.log(1 + s**2)).sum(), weights, -losses / s**3 + 2 * s / (1 + s**2)


def imtl(losses: Any, s: Any) -> tuple[Any, Any, Any]:
    return (np.exp(s) * losses - s).sum(), np.exp(s), np.exp(s) * losses - 1


#: What makes a balancer of the paper's total, its formula, and the starts of its parameter.
METHODS: dict[str, tuple[Callable[..., Any], Callable[[Any, Any], tuple[Any, Any, Any]], Row]] = {
    "kendall": (lambda m, **more: m.UncertaintyLossBalancer(NAMES, **more), kendall, (0.25, -1.5, 3.0)),
    "regularized": (lambda m, **more: m.UncertaintyLossBalancer(NAMES, "regularized", **more), regularized, (0.25, 1.5, 3.0)),
    "imtl": (lambda m, **more: m.IMTLLossBalancer(NAMES, **more), imtl, (0.25, -1.5, 3.0)),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return METHODS[request.param]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_papers_formulas(framework: str, method: Any) -> None:
    build, formula, start = method
    balancer = build(MODULES[framework], initial=dict(zip(NAMES, start, strict=True)))
    given = differentiated(framework, balancer, VALUES)
    for found, wanted in zip(given, formula(np.array(VALUES), np.array(start)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    weights = balancer.weights(losses_of(framework))
    assert [float(x) for x in weights.values()] == given[1].tolist()


@pytest.mark.parametrize("name", EXAMPLES)
def test_optimizers_of_both_frameworks_train_it_to_the_same_bits(name: str) -> None:
    """Plain gradient descent, by a power of two: the optimizers round once, so that all else is the balancers'."""
    rate, rng = 2.0**-4, np.random.default_rng(7)
    of_torch, of_jax = make("torch", EXAMPLES[name]), make("jax", EXAMPLES[name])
    descent = torch.optim.SGD(of_torch.parameters(), lr=rate)
    optimizer = nnx.Optimizer(of_jax, optax.sgd(rate), wrt=nnx.Param)

    @nnx.jit
    def train_step(balancer: Any, optimizer: Any, losses: Any) -> Any:
        aggregate, gradients = nnx.value_and_grad(lambda balancer: balancer(losses))(balancer)
        optimizer.update(balancer, gradients)
        return aggregate

    for _ in range(50):
        row = tuple(np.float32(x).item() for x in rng.lognormal(0, 1, 3))
        aggregate = of_torch(losses_of("torch", row))
        descent.zero_grad()
        aggregate.backward()
        descent.step()
        of_torch.step()
        assert as_bytes(aggregate) == as_bytes(train_step(of_jax, optimizer, losses_of("jax", row)))
        assert parameter_of(of_torch).tobytes() == parameter_of(of_jax).tobytes()
    assert (parameter_of(of_torch) != EXAMPLES[name].start).all()


def test_descent_brings_every_weighted_loss_to_where_the_paper_says() -> None:
    balancer = loss_balancers.torch.IMTLLossBalancer(NAMES)
    descent = torch.optim.SGD(balancer.parameters(), lr=0.1)
    for _ in range(400):
        descent.zero_grad()
        balancer(losses_of("torch")).backward()
        descent.step()
        balancer.step()
    weights = balancer.weights(losses_of("torch")).values()
    np.testing.assert_allclose([float(w) * x for w, x in zip(weights, VALUES, strict=True)], 1, rtol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("absent", NAMES)
def test_an_absent_loss_has_no_part_and_its_parameter_neither(framework: str, method: Any, absent: str) -> None:
    build, formula, start = method
    balancer = build(MODULES[framework], initial=dict(zip(NAMES, start, strict=True)))
    hard = tuple(math.nan if name == absent else x for name, x in zip(NAMES, VALUES, strict=True))
    aggregate, to_losses, to_parameter = differentiated(framework, balancer, hard, count={n: float(n != absent) for n in NAMES})
    there = np.array([name != absent for name in NAMES])
    wanted, weights, slopes = formula(np.array(VALUES)[there], np.array(start)[there])
    np.testing.assert_allclose(aggregate, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_losses[there], weights, rtol=1e-6)
    np.testing.assert_allclose(to_parameter[there], slopes, rtol=1e-5, atol=1e-7)
    assert to_losses[~there].tolist() == to_parameter[~there].tolist() == [0.0]
    everything = differentiated(framework, balancer, VALUES, count=0)
    assert [x.ravel().tolist() for x in everything] == [[0.0], [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("total_weight", "total"), [("K", 3.0), ("one", 1.0)])
@pytest.mark.parametrize("initial", [None, {NAMES[0]: 0.75}])
def test_the_total_at_the_beginning(framework: str, method: Any, total_weight: str, total: float, initial: Any) -> None:
    build, _, _ = method
    paper, ours = (build(MODULES[framework], initial=initial, total_weight=which) for which in ("paper", total_weight))
    _, weights, slopes = differentiated(framework, paper, VALUES)
    _, to_losses, to_parameter = differentiated(framework, ours, VALUES)
    np.testing.assert_allclose(to_losses.sum(), total, rtol=1e-6)
    np.testing.assert_allclose(to_parameter / slopes, total / weights.sum(), rtol=1e-5)  # the penalty is multiplied too


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_parameter_stays_float32(dtype: torch.dtype) -> None:
    balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES, initial=1 / 3)
    before = balancer.log_variance.detach().clone()
    model = torch.nn.ModuleDict({"student": torch.nn.Linear(2, 2), "balancer": balancer}).to(dtype)
    assert model["student"].weight.dtype is dtype
    assert_same_bits(balancer.log_variance.detach(), before)
    balancer.load_state_dict({"log_variance": before.to(dtype)}, assign=True)
    assert isinstance(balancer.log_variance, torch.nn.Parameter)
    assert balancer.log_variance.dtype is torch.float32
    assert balancer(losses_of("torch")).dtype is torch.float32


def test_a_parameter_without_values_begins_where_it_should() -> None:
    with torch.device("meta"):
        balancer = loss_balancers.torch.IMTLLossBalancer(NAMES, {NAMES[1]: 0.5})
    with pytest.raises(RuntimeError, match='on the device "meta"'):
        balancer.export_state()
    assert parameter_of(balancer.to_empty(device="cpu")).tolist() == [0.0, 0.5, 0.0]
    abstract = nnx.eval_shape(lambda: loss_balancers.jax.IMTLLossBalancer(NAMES))
    for use in (abstract.export_state, lambda: abstract(losses_of("jax"))):
        with pytest.raises(RuntimeError, match="abstract"):
            use()


@pytest.mark.parametrize(("source", "target"), [("torch", "jax"), ("jax", "torch")])
def test_it_moves_between_frameworks_and_to_other_losses(source: str, target: str) -> None:
    trained = MODULES[source].UncertaintyLossBalancer(NAMES)
    set_parameter(trained, [0.125, -2.0, 1 / 3])
    copied = MODULES[target].UncertaintyLossBalancer(NAMES)
    copied.load_state(trained.export_state())
    assert parameter_of(copied).tobytes() == parameter_of(trained).tobytes()
    names = ("New_0", *NAMES[:2])
    other = MODULES[target].UncertaintyLossBalancer(names, initial={"New_0": 0.75})
    other.load_state(trained.export_state(), renamed={"New_0": None})
    found = dict(zip(other.names, parameter_of(other).tolist(), strict=True))
    assert found == {"New_0": 0.75, NAMES[0]: 0.125, NAMES[1]: -2.0}
    form = MODULES[target].functional_form(other)
    state = form.load_state(trained.export_state(), renamed={"New_0": None})
    assert as_bytes(state["log_variance"]) == as_bytes(parameter_of(other))
    exported = trained.export_state()
    exported["state"]["log_variance"][0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        copied.load_state(exported)
    assert parameter_of(copied).tobytes() == parameter_of(trained).tobytes()


def test_whether_an_optimizer_of_pytorch_has_it() -> None:
    balancer, student = loss_balancers.torch.UncertaintyLossBalancer(NAMES), torch.nn.Linear(2, 2)
    assert not balancer.is_optimized_by(torch.optim.SGD(student.parameters(), lr=0.1))
    groups = [{"params": student.parameters()}, {"params": balancer.parameters(), "weight_decay": 0.0}]
    assert balancer.is_optimized_by(torch.optim.AdamW(groups))
    with pytest.raises(TypeError, match="`optimizer` must be a `torch"):
        balancer.is_optimized_by(student)


def test_whether_an_optimizer_of_jax_has_it() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.student, self.balancer = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), loss_balancers.jax.UncertaintyLossBalancer(NAMES)

    model = Model()
    balancer, adam = model.balancer, optax.adam(0.1)
    assert balancer.is_optimized_by(nnx.Optimizer(model, adam, wrt=nnx.Param))
    assert not balancer.is_optimized_by(nnx.Optimizer(model.student, adam, wrt=nnx.Param))
    assert balancer.is_optimized_by(adam.init(nnx.state(model, nnx.Param)))
    assert balancer.is_optimized_by(adam.init({"student": jnp.ones(2), "log_variance": jnp.zeros(3)}))
    assert not balancer.is_optimized_by(adam.init({"student": jnp.ones(3)}))
    with pytest.raises(ValueError, match="keeps nothing"):
        balancer.is_optimized_by(nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
    for wrong in (model, adam, "adam", None, {}):
        with pytest.raises(TypeError, match="`optimizer` must be an `nnx"):
            balancer.is_optimized_by(wrong)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_parameter_that_nobody_trains_draws_one_warning(framework: str) -> None:
    def balancer() -> Any:
        return MODULES[framework].IMTLLossBalancer(NAMES)

    losses = losses_of(framework)
    untrained = balancer()
    untrained.step()  # nothing happened before
    untrained(losses)
    with pytest.warns(UserWarning, match="`log_scale` of this balancer did not change") as caught:
        untrained.step()
    assert caught[0].filename == __file__
    patient = balancer()
    for _ in range(1000):
        patient(losses)
    with pytest.warns(UserWarning, match="`log_scale` of this balancer did not change") as caught:
        patient(losses)
    assert caught[0].filename == __file__
    trained, skipped, evaluated = balancer(), balancer(), balancer()
    evaluated.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(202):
            untrained(losses)  # it has warned
            patient(losses)
            evaluated(losses)
            trained(losses)
            set_parameter(trained, [float(i)] * 3)
            trained.step()
            skipped(losses)
            skipped.discard()
        for one in (untrained, patient, evaluated, skipped):
            one.step()


@pytest.mark.parametrize("optimizer", ["fused", "data", "replaced", "functional"])
def test_a_parameter_that_is_trained_without_a_version_draws_no_warning(optimizer: str) -> None:
    balancer = loss_balancers.torch.IMTLLossBalancer(NAMES)
    descent = torch.optim.SGD(balancer.parameters(), lr=0.1, fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            if optimizer == "functional":
                torch.func.functional_call(balancer, {"log_scale": torch.ones(3)}, (losses_of("torch"),))
            else:
                balancer(losses_of("torch")).backward()
            if optimizer == "fused":
                descent.step()
            elif optimizer == "data":
                balancer.log_scale.data.add_(0.5)
            elif optimizer == "replaced":
                balancer.log_scale = torch.nn.Parameter(balancer.log_scale.detach() + 0.5)
            balancer.step()


def test_eager_gradients_by_a_whole_model_are_watched_in_jax() -> None:
    balancer = loss_balancers.jax.IMTLLossBalancer(NAMES)

    def train_step(moved: bool) -> None:
        nnx.grad(lambda balancer: balancer(losses_of("jax")))(balancer)
        if moved:
            set_parameter(balancer, [0.5] * 3)
        balancer.step()

    train_step(moved=False)
    with pytest.warns(UserWarning, match="did not change"):
        train_step(moved=False)
    trained = balancer = loss_balancers.jax.IMTLLossBalancer(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train_step(moved=True)
    assert parameter_of(trained).tolist() == [0.5] * 3


@pytest.mark.parametrize("how", ["made", "copied", "loaded", "moved"])
def test_a_parameter_that_was_made_in_inference_mode_can_be_trained(how: str) -> None:
    from copy import deepcopy

    balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES)
    with torch.inference_mode():
        if how == "made":
            balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES)
        elif how == "copied":
            balancer = deepcopy(balancer)
        elif how == "loaded":
            balancer.load_state_dict({"log_variance": torch.ones(3)}, assign=True)
        else:
            balancer.half()
    balancer(losses_of("torch")).backward()
    torch.optim.SGD(balancer.parameters(), lr=0.5).step()
    assert (parameter_of(balancer) != (1.0 if how == "loaded" else 0.0)).all()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_state_dict_that_is_wrong_changes_nothing(name: str, assign: bool) -> None:
    balancer = make("torch", EXAMPLES[name])
    entry, parameter = EXAMPLES[name].parameter, balancer.parameter
    set_parameter(balancer, (0.5, 0.25, 2.0))
    begun, good = parameter_of(balancer), {entry: torch.ones(3)}
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(RuntimeError, match=f"{entry}: The entry '{entry}' of the state must hold finite numbers"):
            balancer.load_state_dict({entry: torch.tensor([1.0, value, 1.0])}, assign=assign)
    for wrong in ({}, {entry: torch.ones(2)}, {entry: "text"}, {**good, "more": torch.ones(3)}):
        with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
            balancer.load_state_dict(wrong, assign=assign)
    with pytest.raises(RuntimeError, match=r"load_state_dict\(\)` must be called outside"):
        torch.func.vmap(lambda x: balancer.load_state_dict({entry: x}, assign=assign))(torch.ones(2, 3))
    assert balancer.parameter is parameter
    assert_same_bits(parameter_of(balancer), begun)
    balancer.load_state_dict(good, assign=assign)
    assert parameter_of(balancer).tolist() == [1.0] * 3


def test_a_parameter_that_is_frozen_draws_no_warning() -> None:
    balancer = loss_balancers.torch.IMTLLossBalancer(NAMES).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer(losses_of("torch"))
        balancer.step()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_functional_form_is_differentiated_by_its_state(name: str) -> None:
    gradients = {}
    for framework in FRAMEWORKS:
        balancer = make(framework, EXAMPLES[name])
        form = MODULES[framework].functional_form(balancer)
        (key,) = state = form.init()
        assert as_bytes(state[key]) == np.array(EXAMPLES[name].start, np.float32).tobytes()
        losses = losses_of(framework)
        grad = torch.func.grad if framework == "torch" else jax.grad
        gradient = grad(lambda state, form=form, losses=losses: form.apply(state, losses)[0])(state)[key]
        assert as_bytes(gradient) == as_bytes(differentiated(framework, balancer, VALUES)[2])
        assert form.commit(form.discard(form.observe(state, losses))) is state
        gradients[framework] = as_bytes(gradient)
    assert gradients["torch"] == gradients["jax"]


def test_weights_are_detached_from_the_parameter() -> None:
    balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES)
    assert not any(x.requires_grad for x in balancer.breakdown(losses_of("torch")).values())
    graph, parameters = nnx.split(loss_balancers.jax.UncertaintyLossBalancer(NAMES))
    of_weights = jax.grad(lambda parameters: sum(nnx.merge(graph, parameters).weights(losses_of("jax")).values()))(parameters)
    assert all((x == 0).all() for x in jax.tree.leaves(of_weights))


@pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning")
def test_training_compiles_once() -> None:
    balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES)
    descent = torch.optim.SGD(balancer.parameters(), lr=0.1)
    graphs = []

    def counted(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(balancer, fullgraph=True, backend=counted)
    for i in range(20):
        descent.zero_grad()
        compiled(losses_of("torch", (1.0 + i, 2.0, 3.0))).backward()
        descent.step()
        balancer.step()
    assert len(graphs) == 1
    traces = []

    @nnx.jit
    def aggregate(balancer: Any, losses: Any) -> Any:
        traces.append(None)
        return balancer(losses)

    of_jax = loss_balancers.jax.UncertaintyLossBalancer(NAMES)
    for i in range(20):
        aggregate(of_jax, losses_of("jax", (1.0 + i, 2.0, 3.0)))
        set_parameter(of_jax, [float(i)] * 3)
        of_jax.step()
    assert len(traces) == 1


def test_copies_have_parameters_of_their_own() -> None:
    from copy import deepcopy

    balancer = loss_balancers.torch.UncertaintyLossBalancer(NAMES)
    copied = deepcopy(balancer)
    set_parameter(balancer, [1.0, 2.0, 3.0])
    assert parameter_of(copied).tolist() == [0.0] * 3
    assert list(balancer.state_dict()) == ["log_variance"]
    copied.load_state_dict(balancer.state_dict())
    assert parameter_of(copied).tolist() == [1.0, 2.0, 3.0]
