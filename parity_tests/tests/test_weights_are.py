"""What the weights of a balancer are is declared: the kit runs balancers of every kind, with state and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from runs import make
from trial_balancers import TRIALS, ProductLossBalancerSettings, register, vectors

from loss_balancers.parity import assert_same_bits
from loss_balancers.parity.golden.vectors import cases
from loss_balancers.parity.lanes.known import find_lanes
from loss_balancers.parity.run import run_lane
from loss_balancers.spec import Vector, registry
from loss_balancers.spec.call import Call
from loss_balancers.spec.keys import EXAMPLE_NAMES

NAMES = EXAMPLE_NAMES
VALUES = (3.0, 0.5, 7.0)
EXAMPLES = registry.examples() | {name: each for settings in TRIALS for name, each in settings.examples().items()}
#: All that run in this process.
LANES = {
    lane.name: lane
    for lane in find_lanes()
    if lane.device == "cpu" and lane.mode not in ("x64", "sharded") and not lane.why_absent()
}
#: From framework to how a loss is made.
ARRAYS: dict[str, Callable[[float], Any]] = {"torch": torch.tensor, "jax": jnp.float32}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def product(framework: str) -> Any:
    return make(framework, ProductLossBalancerSettings())


def gradients(framework: str, balancer: Any, losses: dict[str, Any]) -> dict[str, Any]:
    """The gradient of the aggregate to each loss."""
    if framework == "jax":
        return jax.grad(balancer)(losses)
    leaves = {name: x.clone().requires_grad_() for name, x in losses.items()}
    return dict(zip(leaves, torch.autograd.grad(balancer(leaves), list(leaves.values())), strict=True))


def losses_of(framework: str, values: tuple[float, ...] = VALUES) -> dict[str, Any]:
    return dict(zip(NAMES, map(ARRAYS[framework], values), strict=True))


@pytest.mark.parametrize("framework", ARRAYS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_weights_are_what_the_settings_say(framework: str, example: str) -> None:
    balancer, losses = make(framework, EXAMPLES[example]), losses_of(framework)
    if EXAMPLES[example].state:
        balancer.eval()  # `jax.grad` refuses to observe
    weights = balancer.weights(losses)
    assert tuple(weights) == NAMES
    if EXAMPLES[example].weights_are == "constants":
        assert {type(weight) for weight in weights.values()} == {float}
        assert balancer.weights(losses_of(framework, (0.1, 9.0, 2.0))) == weights
        return
    assert all(isinstance(weight, torch.Tensor if framework == "torch" else jax.Array) for weight in weights.values())
    if EXAMPLES[example].weights_are == "derivatives":
        for name, gradient in gradients(framework, balancer, losses).items():
            assert_same_bits(weights[name], gradient)


@pytest.mark.parametrize("settings", TRIALS, ids=lambda settings: settings.balancer)
def test_cases_have_the_weights_of_every_step(settings: Any) -> None:
    found = cases(vectors(settings))
    assert len(found) == 32
    wanted = [f"the weight of {name}" for name in NAMES]
    assert all([value.what for value in case.values if "weight" in value.what] == wanted for case in found)
    assert len({value.bits for case in found for value in case.values if value.what == wanted[0]}) > 1


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", LANES)
def test_every_lane_has_the_bits_of_the_reference(name: str) -> None:
    cells = run_lane(LANES[name], [group for settings in TRIALS for group in vectors(settings)])
    assert [(cell.balancer, cell.vectors) for cell in cells] == [(settings.balancer, 32) for settings in TRIALS]
    for cell in cells:
        assert not cell.differences, str(cell.first)


def test_a_derivative_has_the_format_of_its_loss() -> None:
    one: dict[str, float] = dict.fromkeys(NAMES, 1.0)
    formats = dict(zip(NAMES, ("f64", "f32", "bf16"), strict=True))
    (group,) = vectors(ProductLossBalancerSettings)
    (case,) = cases([group._replace(formats=formats, sequences=((Vector(one, 1.0, 1.0, one, one, {}),),))])
    assert [value.format for value in case.values if "weight" in value.what] == ["f64", "f32", "bf16"]


@pytest.mark.parametrize("name", ["torch-cpu-eager", "jax-cpu-eager"])
@pytest.mark.parametrize("settings", TRIALS, ids=lambda settings: settings.balancer)
def test_a_weight_that_is_an_ulp_off_is_found(monkeypatch: pytest.MonkeyPatch, name: str, settings: Any) -> None:
    for twin in TRIALS[settings]:
        own = twin.weights

        def faulty(self: Any, loss: Any, *, own: Any = own, **more: Any) -> Any:
            return {name: weight * (1 + 2.0**-23) for name, weight in own(self, loss, **more).items()}

        monkeypatch.setattr(twin, "weights", faulty)
    (cell,) = run_lane(LANES[name], vectors(settings))
    assert cell.differences
    assert {difference.what for difference in cell.differences} <= {f"the weight of {name}" for name in NAMES}


@pytest.mark.parametrize("framework", ARRAYS)
def test_derivatives_stand_for_weights_and_the_total_need_not_be_their_sum(framework: str) -> None:
    parts = product(framework).breakdown(losses_of(framework))
    assert list(parts) == [*(f"{name}/{part}" for name in NAMES for part in ("raw", "weight", "weighted")), "total"]
    for name, value, derivative in zip(NAMES, VALUES, (3.5, 21.0, 1.5), strict=True):
        shown = [float(parts[f"{name}/{part}"]) for part in ("raw", "weight", "weighted")]
        assert shown == [value, derivative, 10.5]
    assert float(parts["total"]) == 10.5
    assert {name: float(x) for name, x in product(framework).weights(losses_of(framework)).items()} == {
        name: float(parts[f"{name}/weight"]) for name in NAMES
    }


@pytest.mark.parametrize("framework", ARRAYS)
def test_an_absent_loss_has_the_derivative_0(framework: str) -> None:
    losses, counts = losses_of(framework), dict(zip(NAMES, (0.0, 1.0, 1.0), strict=True))
    weights = product(framework).weights(losses, count=counts)
    call = Call(NAMES, ("f32",) * 3, (0.0, *VALUES[1:]), (0.0, 1.0, 1.0))
    assert [float(x) for x in weights.values()] == ProductLossBalancerSettings().exact_weights(call, {}) == [0.0] * 3


@pytest.mark.parametrize("framework", ARRAYS)
def test_derivatives_are_detached(framework: str) -> None:
    balancer, losses = product(framework), losses_of(framework)
    if framework == "torch":
        parts = balancer.breakdown({name: x.requires_grad_() for name, x in losses.items()})
        assert not any(part.requires_grad for part in parts.values())
    else:
        of_weights = jax.grad(lambda losses: sum(balancer.weights(losses).values()))(losses)
        assert [float(x) for x in of_weights.values()] == [0.0] * 3


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_derivatives_are_there_where_autograd_is_off(off: Any) -> None:
    wanted = product("torch").weights(losses_of("torch"))
    with off():
        found = product("torch").weights(losses_of("torch"))
    for name in NAMES:
        assert_same_bits(found[name].clone(), wanted[name])


def test_a_compiled_breakdown_is_one_graph_with_the_same_bits() -> None:
    balancer, losses = product("torch"), losses_of("torch")
    compiled = torch.compile(balancer.breakdown, fullgraph=True, backend="aot_eager")(losses)
    for name, part in balancer.breakdown(losses).items():
        assert_same_bits(compiled[name], part)


def test_breakdown_under_torch_func_and_jit() -> None:
    rows = [(3.0, 0.5, 7.0), (0.1, -2.0, 1e-20)]
    stacked = {name: torch.tensor(column) for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)}
    of_torch = torch.func.vmap(product("torch").breakdown)(stacked)
    of_jax = jax.jit(jax.vmap(product("jax").breakdown))({name: jnp.asarray(x.numpy()) for name, x in stacked.items()})
    for i, row in enumerate(rows):
        for name, part in product("torch").breakdown(losses_of("torch", row)).items():
            assert_same_bits(of_torch[name][i], part)
            assert_same_bits(of_jax[name][i], part)


def test_a_kind_that_no_lane_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProductLossBalancerSettings, "weights_are", "guesses")
    with pytest.raises(RuntimeError, match="ProductLossBalancer are 'guesses'"):
        cases(vectors(ProductLossBalancerSettings))
