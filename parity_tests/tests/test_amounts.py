"""`count=` and `share=`: however a batch is split, the weights are the same; an absent loss says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from runs import BALANCERS, FRAMEWORKS, NAMES, as_bytes, make, state_of

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import EMANormalizedLossBalancerSettings, StaticLossBalancerSettings, registry
from loss_balancers.spec.amounts import Amounts
from loss_balancers.spec.reference import Step, run

BATCH, STEPS = 64, 4
SPLITS = {"1x64": [64], "4x16": [16] * 4, "1/1/1/61": [1, 1, 1, 61], "61/0/3": [61, 0, 3]}


def array(framework: str, value: Any, dtype: str = "float32") -> Any:
    return torch.tensor(value, dtype=getattr(torch, dtype)) if framework == "torch" else jnp.asarray(value, dtype)


def per_sample(step: int) -> np.ndarray:
    """The losses of each sample of a batch: small dyadic numbers, whose sums are exact, each loss of another scale."""
    drawn = np.random.default_rng(step).integers(1, 256, (BATCH, len(NAMES)))
    return (drawn * np.array([0.125, 1.0, 8.0])).astype(np.float32)


def trained(framework: str, settings: Any, split: list[int], way: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """State and weights after some steps, the batch split like this, each loss given as a mean or as a share."""
    balancer = make(framework, settings)
    for step in range(STEPS):
        samples, start = per_sample(step), 0
        for items in split:
            rows, start = samples[start : start + items], start + items
            if way == "means":
                values = rows.astype(np.float64).mean(0) if items else np.full(len(NAMES), np.nan)
                keywords: dict[str, Any] = {"count": items}
            else:
                values, keywords = rows.astype(np.float64).sum(0) / BATCH, {"share": array(framework, items / BATCH)}
            balancer({name: array(framework, x) for name, x in zip(NAMES, values, strict=True)}, **keywords)
        balancer.step()
    losses = {name: array(framework, x) for name, x in zip(NAMES, per_sample(99).mean(0), strict=True)}
    return state_of(balancer), {name: as_bytes(weight) for name, weight in balancer.weights(losses).items()}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["ema", "ema-lagged"])
def test_a_split_as_shares_changes_no_bit(name: str, split: str) -> None:
    """All sums are exact: shares are 64ths, and so are the sums over samples."""
    expected = trained("torch", BALANCERS[name], [64], "shares")
    for framework in FRAMEWORKS:
        assert trained(framework, BALANCERS[name], SPLITS[split], "shares") == expected


@pytest.mark.parametrize("split", ["1x64", "4x16"])
@pytest.mark.parametrize("name", ["ema", "ema-lagged"])
def test_a_split_as_means_changes_no_bit_where_they_are_exact(name: str, split: str) -> None:
    expected = trained("torch", BALANCERS[name], [64], "means")
    assert expected == trained("torch", BALANCERS[name], [64], "shares")
    for framework in FRAMEWORKS:
        assert trained(framework, BALANCERS[name], SPLITS[split], "means") == expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("split", ["1/1/1/61", "61/0/3"])
def test_a_split_as_means_of_unequal_size(split: str, framework: str) -> None:
    """A mean over 61 samples is rounded, so the last places may differ; not, as without counts, by what the split is."""
    settings = EMANormalizedLossBalancerSettings(NAMES, lagged=True)
    expected, _ = trained(framework, settings, [64], "means")
    (state, _) = trained(framework, settings, SPLITS[split], "means")
    total, wanted = (np.frombuffer(x["total"], np.float32) for x in (state, expected))
    assert state["fix"] == expected["fix"]
    assert (np.abs(total - wanted) <= 2 * np.spacing(wanted)).all()


def test_without_counts_it_does_depend_on_the_split() -> None:
    """What the tests above would see if counts did nothing."""
    balancer, other = make("torch", BALANCERS["ema"]), make("torch", BALANCERS["ema"])
    for items, target in ((1, balancer), (63, balancer), (64, other)):
        target({name: torch.tensor(float(items)) for name in NAMES})
        balancer.step() if items == 63 else None
    other.step()
    assert state_of(balancer)["total"] != state_of(other)["total"]


# --- forms -----------------------------------------------------------------------------------------------------------


def forms(framework: str, value: float) -> dict[str, Any]:
    """One amount in each form that a call takes."""
    return {
        "number": value,
        "numpy": np.float32(value),
        "numpy-0-d": np.array(value),
        "device": array(framework, value),
        "int-on-device": array(framework, int(value), "int32"),
        "mapping": dict.fromkeys(NAMES, value),
        "mapping-on-device": {name: array(framework, value) for name in NAMES},
        "mixed-mapping": {name: value if i else array(framework, value, "bfloat16") for i, name in enumerate(NAMES)},
    }


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("keyword", ["count", "share"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", BALANCERS)
def test_every_form_gives_the_same_bits(name: str, framework: str, keyword: str) -> None:
    losses = {each: array(framework, 0.5 + i) for i, each in enumerate(NAMES)}
    found = set()
    for amount in forms(framework, 3.0).values():
        balancer = make(framework, BALANCERS[name])
        before = dict(losses)
        aggregate = as_bytes(balancer(losses, **{keyword: amount}))
        assert losses == before
        pending = state_of(balancer)["pending"]
        weights = tuple(map(as_bytes, balancer.weights(losses, **{keyword: amount}).values()))
        balancer.step()
        found.add((aggregate, pending, weights, *state_of(balancer).values()))
    assert len(found) == 1


@pytest.mark.parametrize("name", BALANCERS)
def test_a_count_of_one_is_the_default(name: str) -> None:
    for framework in FRAMEWORKS:
        losses = {each: array(framework, 0.3 + i) for i, each in enumerate(NAMES)}
        states = []
        for keywords in ({}, {"count": 1}, {"share": 1.0}):
            balancer = make(framework, BALANCERS[name])
            aggregate = as_bytes(balancer(losses, **keywords))
            states.append((aggregate, state_of(balancer)))
        assert states[0] == states[1] == states[2]


# --- absent losses ---------------------------------------------------------------------------------------------------


Values = dict[str, float]


@cache
def differentiated(framework: str, name: str, compiled: bool) -> tuple[Any, Callable[[Values, Any], tuple[Any, dict[str, Any]]]]:
    """A balancer, and what gives aggregate and gradients of its training forward: compiled once, whatever the values."""
    balancer = make(framework, BALANCERS[name])
    if framework == "torch":
        torch.compiler.reset()  # Dynamo counts compilations by the code of a function, which all balancers share
        forward = torch.compile(balancer, fullgraph=True, backend="aot_eager") if compiled else balancer

        def torch_call(values: Values, amounts: Any) -> tuple[Any, dict[str, Any]]:
            losses = {name: torch.tensor(x, requires_grad=True) for name, x in values.items()}
            aggregate = forward(losses, count=amounts)
            return aggregate, dict(zip(losses, torch.autograd.grad(aggregate, list(losses.values())), strict=True))

        return balancer, torch_call

    value_and_grad = nnx.value_and_grad(lambda losses, balancer, amounts: balancer(losses, count=amounts))
    if compiled:
        value_and_grad = nnx.jit(value_and_grad)

    def jax_call(values: Values, amounts: Any) -> tuple[Any, dict[str, Any]]:
        return value_and_grad({name: jnp.float32(x) for name, x in values.items()}, balancer, amounts)

    return balancer, jax_call


def outcomes(framework: str, name: str, rows: list[Values], count: Values, compiled: bool) -> list[dict[str, bytes]]:
    """For each row of losses the aggregate, gradients and state of two steps from a new state on. Amounts are tensors."""
    balancer, call = differentiated(framework, name, compiled)
    begin = make(framework, BALANCERS[name]).export_state()
    amounts = {name: array(framework, x) for name, x in count.items()}
    found = []
    for values in rows:
        balancer.load_state(begin)
        outcome = {}
        for step in range(2):
            aggregate, gradients = call(values, amounts)
            outcome |= {f"{step}": as_bytes(aggregate)} | {f"{step} {n}": as_bytes(g) for n, g in gradients.items()}
            balancer.step()
        found.append(outcome | state_of(balancer))
    return found


#: Each loss is absent from a compiled call, which takes any values; from an eager one, in which JAX is slow, one of them in turn.
ABSENT = [
    (name, absent, compiled)
    for i, name in enumerate(BALANCERS)
    for j, absent in enumerate(NAMES)
    for compiled in (False, True)
    if compiled or j == i % len(NAMES)
]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("name", "absent", "compiled"), ABSENT)
def test_an_absent_loss_may_be_anything(name: str, absent: str, compiled: bool) -> None:
    """NaN, infinity or zero: the same aggregate, a gradient of +0, and the same state, which is that of the exact reference."""
    settings = BALANCERS[name]
    count = {each: float(each != absent) * 2 for each in NAMES}
    values = {each: 1.5 + i for i, each in enumerate(NAMES)}
    rows = [{**values, absent: value} for value in (math.nan, math.inf, 0.0, -3.0)]
    found = [outcome for framework in FRAMEWORKS for outcome in outcomes(framework, name, rows, count, compiled)]
    assert len(found) == len(FRAMEWORKS) * len(rows)
    assert all(other == found[0] for other in found)
    order = settings.names or ("LogitsKL_0", "MSE_1", "student_loss")
    step = Step({each: ("f32", x) for each, x in values.items()}, 1.0, Amounts(tuple(count[each] for each in order), False))
    answers = list(run(settings, [step] * 2))
    for index, answer in enumerate(answers):
        assert np.frombuffer(found[0][str(index)], np.float32)[0] == answer.aggregate
        for each in NAMES:
            assert np.frombuffer(found[0][f"{index} {each}"], np.float32)[0] == answer.gradients[each]
        assert answer.gradients[absent] == answer.weights[absent] == 0
    for entry in settings.state:
        assert np.frombuffer(found[0][entry.name], entry.dtype).tolist() == np.ravel(answers[-1].state[entry.name]).tolist()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", BALANCERS)
def test_without_any_loss_the_aggregate_is_zero(name: str, framework: str) -> None:
    balancer = make(framework, BALANCERS[name])
    aggregate = balancer({each: array(framework, math.nan) for each in NAMES}, count=0)
    assert_same_bits(aggregate, np.float32(0.0))
    balancer.step()
    state = balancer.export_state()["state"]
    assert (state["steps"], state["skipped"]) == (1, 0)
    assert not state.get("total", np.zeros(1)).any()


@pytest.mark.in_turn(8)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("absent", [NAMES, NAMES[:1], NAMES[-1:]], ids=["all", "first", "last"])
@pytest.mark.parametrize("name", registry.examples())
def test_who_looks_for_nans_finds_none(name: str, absent: tuple[str, ...], framework: str) -> None:
    """Nor on the way to a result that has none: what finds NaNs looks at every operation."""
    balancer = make(framework, registry.examples()[name])
    count = {each: 0 if each in absent else 2 for each in NAMES}
    if framework == "torch":
        losses = {each: torch.tensor(1.5 + i, requires_grad=True) for i, each in enumerate(NAMES)}
        with torch.autograd.detect_anomaly():
            balancer(losses, count=count).backward()
        gradients: dict[str, Any] = {each: x.grad for each, x in losses.items()}
    else:
        with jax.debug_nans(True):
            values = {each: jnp.float32(1.5 + i) for i, each in enumerate(NAMES)}
            gradients = nnx.grad(lambda losses, balancer: balancer(losses, count=count))(values, balancer)
    for each in absent:
        assert_same_bits(gradients[each], np.float32(0.0))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0])
def test_a_count_on_the_device_that_is_none_leaves_the_call_out(name: str, framework: str, count: float) -> None:
    balancer = make(framework, BALANCERS[name])
    balancer({each: array(framework, 2.0) for each in NAMES}, count=array(framework, count))
    balancer.step()
    state = balancer.export_state()["state"]
    assert state["skipped"] == 1
    assert not state.get("total", np.zeros(1)).any()


STATIC = {"shared": 0.25, "sequence": [0.5, 0.125], "mapping": {"LogitsKL_0": 0.5, "MSE_1": 0.25}}


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("absent", NAMES)
@pytest.mark.parametrize("weight", STATIC)
def test_an_absent_loss_in_a_balancer_without_state(weight: str, absent: str, compiled: bool) -> None:
    """So that a loop that passes counts can change its balancer."""
    settings = StaticLossBalancerSettings(STATIC[weight])
    values = {each: math.nan if each == absent else 1.5 + i for i, each in enumerate(NAMES)}
    count = {each: 0.0 if each == absent else 7.0 for each in NAMES}
    given = Amounts(tuple(count[each] for each in ("LogitsKL_0", "MSE_1", "student_loss")), False)
    (answer,) = run(settings, [Step({each: ("f32", x) for each, x in values.items()}, 1.0, given)])
    assert math.isfinite(answer.aggregate)
    for framework in FRAMEWORKS:
        balancer = make(framework, settings)
        for amounts in (count, {each: array(framework, x) for each, x in count.items()}):
            if framework == "torch":
                torch.compiler.reset()
                forward = torch.compile(balancer, fullgraph=True, backend="aot_eager") if compiled else balancer
                losses = {each: torch.tensor(x, requires_grad=True) for each, x in values.items()}
                aggregate = forward(losses, count=amounts)
                found = dict(zip(losses, torch.autograd.grad(aggregate, list(losses.values())), strict=True))
            else:
                losses = {each: jnp.float32(x) for each, x in values.items()}
                value_and_grad = jax.value_and_grad(lambda x, balancer=balancer, amounts=amounts: balancer(x, count=amounts))
                aggregate, found = (jax.jit(value_and_grad) if compiled else value_and_grad)(losses)
            assert_same_bits(aggregate, np.float32(answer.aggregate))
            for each, gradient in answer.gradients.items():
                assert_same_bits(found[each], np.float32(gradient))
            weights = balancer.weights(losses, count=amounts)
            assert {each: float(x) for each, x in weights.items()} == answer.weights
            assert answer.weights[absent] == 0
            parts = balancer.breakdown(losses, share=amounts)
            assert_same_bits(parts["total"], np.float32(answer.aggregate))
            assert_same_bits(parts[f"{absent}/weighted"], np.float32(0.0))


@pytest.mark.parametrize("name", BALANCERS)
def test_breakdown_of_an_absent_loss_is_zero(name: str) -> None:
    for framework in FRAMEWORKS:
        balancer = make(framework, BALANCERS[name])
        losses = {each: array(framework, math.nan if each == "LogitsKL_0" else 2.0) for each in NAMES}
        parts = balancer.breakdown(losses, count={**dict.fromkeys(NAMES, 1), "LogitsKL_0": 0})
        for part in ("raw", "weight", "weighted"):
            assert_same_bits(parts[f"LogitsKL_0/{part}"], np.float32(0.0))
        assert math.isfinite(parts["total"])


def test_the_number_of_a_compiled_call_may_change_without_compiling_again() -> None:
    """On the device, where a compiled function wants its numbers."""
    balancer, traces = make("jax", BALANCERS["ema"]), []

    @nnx.jit
    def call(balancer: Any, losses: Any, count: Any) -> Any:
        traces.append(1)
        return balancer(losses, count=count)

    losses = {each: jnp.float32(2.0) for each in NAMES}
    for count in range(1, 6):
        call(balancer, losses, count)
    assert len(traces) == 1

    twin, frames = make("torch", BALANCERS["ema"]), []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(1)
        return graph.forward

    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for count in range(1, 6):
        compiled({each: torch.tensor(2.0) for each in NAMES}, count=torch.tensor(float(count)))
    assert len(frames) == 1
    assert state_of(twin)["pending"] == state_of(balancer)["pending"]


def test_a_count_on_the_host_compiles_twice_at_most() -> None:
    twin, frames = make("torch", BALANCERS["ema"]), []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(1)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    other = make("torch", BALANCERS["ema"])
    for count in range(3, 9):
        for call in (compiled, other):
            call({each: torch.tensor(2.0) for each in NAMES}, count=count)
    assert len(frames) <= 2  # the first number as a constant, then any
    assert state_of(twin) == state_of(other)


# --- errors ----------------------------------------------------------------------------------------------------------

Wrong = Callable[[Any, dict[str, Any], Any], Any]
ONES = dict.fromkeys(NAMES, 1)
#: What is done wrong, the class, and words that the message must have. `b` is the balancer, `x` its losses, `a` makes an array.
WRONG: dict[str, tuple[Wrong, type[Exception], str]] = {
    "both": (lambda b, x, a: b(x, count=1, share=1), TypeError, "takes `count` or `share`, not both"),
    "bool": (lambda b, x, a: b(x, count=True), TypeError, "`count` must be a real number or a scalar array of them. Received True"),
    "numpy-bool": (lambda b, x, a: b(x, share=np.bool_(True)), TypeError, "`share` must be a real number"),
    "string": (lambda b, x, a: b(x, count="3"), TypeError, "Received '3' of type str"),
    "list": (lambda b, x, a: b(x, count=[1, 1, 1]), TypeError, "Pass a number, or a mapping from the name of each loss to its"),
    "vector": (lambda b, x, a: b(x, count=a([1.0, 1.0, 1.0])), TypeError, "`count` must be a real number or a scalar array"),
    "bool-array": (lambda b, x, a: b(x, count=a(True, "bool")), TypeError, "`count` must be a real number or a scalar array"),
    "complex-array": (
        lambda b, x, a: b(x, share=a(1.0, "complex64")),
        TypeError,
        "`share` must be a real number or a scalar array",
    ),
    "none-in-mapping": (lambda b, x, a: b(x, count={**ONES, "LogitsKL_0": None}), TypeError, "`count['LogitsKL_0']` must be"),
    "negative": (lambda b, x, a: b(x, count=-1), ValueError, "`count` must be finite and at least 0. Received -1"),
    "nan": (lambda b, x, a: b(x, share=math.nan), ValueError, "`share` must be finite and at least 0. Received nan"),
    "inf": (lambda b, x, a: b(x, count={**ONES, "LogitsKL_0": math.inf}), ValueError, "`count['LogitsKL_0']` must be finite"),
    "huge": (
        lambda b, x, a: b(x, count=10**400),
        ValueError,
        f"`count` must be at most 3.4028234663852886e+38, the largest number of float32. Received {10**400}",
    ),
    "beyond-float32": (
        lambda b, x, a: b(x, count=1e39),
        ValueError,
        "`count` must be at most 3.4028234663852886e+38, the largest number of float32. Received 1e+39",
    ),
    "name-missing": (lambda b, x, a: b(x, count={"LogitsKL_0": 1}), ValueError, "the losses exactly. It names ['LogitsKL_0']"),
    "name-unknown": (lambda b, x, a: b(x, share={**ONES, "A": 1}), ValueError, "`share` must name the losses exactly"),
    "loss-missing": (
        lambda b, x, a: b({"LogitsKL_0": x["LogitsKL_0"]}),
        ValueError,
        "balancer({..., 'MSE_1': any_value}, count={..., 'MSE_1': 0})  # instead",
    ),
    "loss-none": (lambda b, x, a: b({**x, "LogitsKL_0": None}), TypeError, "pass any value and `count={...}` with 0 for it"),
    "observe": (lambda b, x, a: b.observe(x, count=-1), ValueError, "`count` must be finite and at least 0"),
    "weights": (lambda b, x, a: b.weights(x, share=-1), ValueError, "`share` must be finite and at least 0"),
    "breakdown": (lambda b, x, a: b.breakdown(x, count=1, share=1), TypeError, "not both"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_amount_changes_nothing_and_both_twins_say_the_same(wrong: str) -> None:
    call, kind, words = WRONG[wrong]
    messages = []
    for framework in FRAMEWORKS:
        balancer = make(framework, BALANCERS["ema"])
        losses = {each: array(framework, 2.0) for each in NAMES}
        before = state_of(balancer)
        with pytest.raises(kind) as raised:
            call(balancer, losses, lambda *given, f=framework: array(f, *given))
        assert words in str(raised.value)
        assert type(raised.value) is kind
        assert state_of(balancer) == before
        messages.append(str(raised.value))
    if not wrong.endswith(("array", "vector")):  # those name the framework's own type
        assert messages[0] == messages[1]


NO_NUMBER = "must be a real number or a scalar array"
#: Scalar arrays of each framework that do not hold a real number, or not as an array does.
NO_AMOUNTS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "torch-sparse": (
        "torch",
        lambda: torch.tensor(1.0).to_sparse(),
        "a dense scalar array. Received an array in the layout sparse_coo",
    ),
    "torch-quantized": ("torch", lambda: torch.quantize_per_tensor(torch.tensor(1.0), 0.1, 0, torch.quint8), NO_NUMBER),
    "torch-nested": ("torch", lambda: torch.nested.nested_tensor([torch.ones(2)]), NO_NUMBER),
    "torch-jagged": ("torch", lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), NO_NUMBER),
    "torch-bool": ("torch", lambda: torch.tensor(True), NO_NUMBER),
    "torch-duration": ("torch", lambda: np.timedelta64(3, "ns"), NO_NUMBER),
    "jax-key": ("jax", lambda: jax.random.key(0), NO_NUMBER),
    "jax-bool": ("jax", lambda: jnp.array(True), NO_NUMBER),
    "jax-duration": ("jax", lambda: np.timedelta64(3, "ns"), NO_NUMBER),
    "jax-time": ("jax", lambda: np.datetime64(1, "ns"), NO_NUMBER),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, and may come all the same
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of quantized tensors
@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("keyword", ["count", "share"])
@pytest.mark.parametrize("given", NO_AMOUNTS)
def test_an_array_that_is_no_amount(balancer: str, keyword: str, given: str) -> None:
    framework, of, words = NO_AMOUNTS[given]
    twin, losses = make(framework, BALANCERS[balancer]), {each: array(framework, 2.0) for each in NAMES}
    for amounts in (of(), {**ONES, "LogitsKL_0": of()}):
        with pytest.raises(TypeError, match=words) as raised:
            twin(losses, **{keyword: amounts})
        assert str(raised.value).startswith(f"`{keyword}")


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("keyword", ["count", "share"])
@pytest.mark.parametrize("named", [False, True], ids=["for-all", "by-name"])
def test_an_amount_that_is_learned_is_refused(balancer: str, keyword: str, named: bool) -> None:
    twin = make("torch", BALANCERS[balancer])
    twin.eval()
    losses = {each: torch.tensor(2.0) for each in NAMES}

    def call(amount: Any) -> Any:
        return twin(losses, **{keyword: {**ONES, "LogitsKL_0": amount} if named else amount})

    words = r"must be constant: no gradient reaches it.*Pass `tensor.detach\(\)`"
    one = torch.tensor(1.0)
    with pytest.raises(TypeError, match=words):
        call(torch.tensor(1.0, requires_grad=True))
    for differentiate in (lambda: torch.func.grad(call)(one), lambda: torch.func.jvp(call, (one,), (one,))):
        with pytest.raises(TypeError, match=words):
            differentiate()
    assert torch.func.vmap(lambda x: call(x.detach()))(torch.ones(2)).shape == (2,)


def test_no_gradient_reaches_an_amount() -> None:
    """PyTorch says so in words, as of weights; to JAX it is a constant."""
    balancer = make("jax", BALANCERS["ema"])
    balancer.eval()
    gradient = jax.grad(lambda c: balancer({each: jnp.float32(2.0) for each in NAMES}, count=c))(jnp.float32(2.0))
    assert gradient == 0
