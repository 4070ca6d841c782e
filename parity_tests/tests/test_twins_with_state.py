"""Twins with state: sequences of steps, weights, commits, state, second derivatives; and what a case of no elements compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from planted import FaultyJaxState, FaultyTorchState
from runs import BALANCERS, drawn, make

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_twins
from loss_balancers.parity.twins.lanes import MODES

LANES = [f"{framework}-cpu-{mode}" for framework, modes in MODES.items() for mode in modes]
QUICK = [lane for lane in LANES if lane not in ("torch-cpu-eager", "torch-cpu-compiled", "torch-cpu-step", "jax-cpu-jit")]
EMA = "EMANormalizedLossBalancer"
NAMES = ("student_loss", "MSELoss_0")


def _both(lane: str) -> list[str]:
    return ["torch-cpu-eager", "jax-cpu-jit", lane]


def _message(*twins, **options) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_twins(*twins, **options)
    return str(raised.value)


class Mean(torch.nn.Module):
    """Divides the loss by the running sum of losses: anybody's twin, with state of its own."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("total", torch.ones(()))
        self.register_buffer("only_here", torch.zeros(()))
        self.seen = torch.zeros(())
        self.off = off

    def forward(self, loss):
        self.seen = self.seen + loss["a"].detach()
        return loss["a"] * self.total

    def weights(self, loss):
        return {"a": self.total, "constant": 0.1}

    def step(self) -> None:
        self.total = self.total * 0.5 + self.seen + self.off
        self.seen = torch.zeros(())


class JaxMean(nnx.Module):
    def __init__(self, weight: float = 0.1) -> None:
        self.total = nnx.Variable(jnp.ones(()))
        self.seen = nnx.Variable(jnp.zeros(()))
        self.constant = weight

    def __call__(self, loss):
        self.seen[...] += jax.lax.stop_gradient(loss["a"])
        return loss["a"] * self.total[...]

    def weights(self, loss):
        return {"a": self.total[...], "constant": self.constant}

    def step(self) -> None:
        self.total[...] = self.total[...] * 0.5 + self.seen[...]
        self.seen[...] = jnp.zeros(())


STEPS = [[{"a": 1.0}, {"a": 0.25}, {"a": 3.0}], [{"a": 2.0}, {"a": 0.5}, {"a": 1.0}]]


# --- each case and each sequence begins afresh ----------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
def test_cases_of_twins_with_state_begin_afresh_in_both(lane: str) -> None:
    assert_twins(Mean(), JaxMean(), cases=[{"a": x} for x in (1.0, 2.0, 3.0, 0.5)], lanes=_both(lane))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", BALANCERS)
def test_cases_of_the_library_s_twins_with_state(name: str) -> None:
    """More of them than forwards after which a balancer warns that nobody commits."""
    twins = make("torch", BALANCERS[name]), make("jax", BALANCERS[name])
    assert_twins(*twins, cases=drawn(70), lanes=["torch-cpu-eager", "jax-cpu-jit"])
    assert_twins(*twins, cases=drawn(5), lanes=["torch-cpu-eager", "jax-cpu-eager"])


# --- sequences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
def test_sequences_of_somebody_s_twins(lane: str) -> None:
    ours, theirs = Mean(), JaxMean()
    assert_twins(ours, theirs, steps=STEPS, lanes=_both(lane))
    assert float(ours.total) == float(theirs.total[...]) == 1


#: Each example on every third lane beside the two that all run on; the next one on others.
EVERY_THIRD = {name: [lane for j, lane in enumerate(QUICK) if j % 3 == i % 3] for i, name in enumerate(BALANCERS)}


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", BALANCERS)
def test_sequences_of_the_library_s_twins(name: str) -> None:
    twins = make("torch", BALANCERS[name]), make("jax", BALANCERS[name])
    lanes = ["torch-cpu-eager", "jax-cpu-jit", *EVERY_THIRD[name]]
    assert_twins(*twins, steps=[drawn(8, seed=1), drawn(8, seed=2), drawn(8, seed=3)], lanes=lanes)


@pytest.mark.parametrize("lane", ["torch-cpu-compiled", "torch-cpu-step"])
def test_sequences_of_the_library_s_twins_compiled(lane: str) -> None:
    twins = make("torch", BALANCERS["ema"]), make("jax", BALANCERS["ema"])
    assert_twins(*twins, steps=[drawn(4, seed=seed) for seed in range(12)], lanes=_both(lane))


def test_formats_and_cases_beside_sequences() -> None:
    twins = loss_balancers.torch.EMANormalizedLossBalancer(NAMES), loss_balancers.jax.EMANormalizedLossBalancer(NAMES)
    step = {"student_loss": ("bf16", 1.5), "MSELoss_0": ("f64", 0.1)}
    assert_twins(*twins, cases=[step], steps=[[step, step]], lanes=["torch-cpu-eager", "jax-cpu-scan"])


# --- what is found --------------------------------------------------------------------------------------------------


def _wrong_every_second_time(framework: str):
    class Torch(torch.nn.Module):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            self.calls: torch.Tensor
            self.register_buffer("calls", torch.zeros(()))
            self.wrong = wrong

        def forward(self, loss):
            factor = torch.where(self.calls % 2 == 1, 0.25 if self.wrong else 0.5, 0.5)
            self.calls += 1
            return loss["a"] * factor

    class Jax(nnx.Module):
        def __init__(self, wrong: bool) -> None:
            self.calls = nnx.Variable(jnp.zeros(()))
            self.wrong = wrong

        def __call__(self, loss):
            factor = jnp.where(self.calls[...] % 2 == 1, 0.25 if self.wrong else 0.5, 0.5)
            self.calls[...] += 1
            return loss["a"] * factor

    return Torch(framework == "torch"), Jax(framework == "jax")


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("lane", LANES)
def test_a_balancer_that_is_wrong_every_second_time_is_found(lane: str, framework: str) -> None:
    lanes = [lane, "jax-cpu-jit" if lane.startswith("torch") else "torch-cpu-eager"]
    message = _message(*_wrong_every_second_time(framework), cases=[{"a": 3.0}], lanes=lanes)
    assert "    the aggregate of forward 2  " in message
    assert "    the aggregate  " not in message
    assert_twins(*_wrong_every_second_time("neither"), cases=[{"a": 3.0}], lanes=lanes)


@pytest.mark.parametrize("lane", LANES)
def test_a_state_that_differs_is_found_by_its_name(lane: str) -> None:
    message = _message(
        Mean(off=2.0**-20), JaxMean(), steps=STEPS, lanes=[lane, "jax-cpu-jit" if lane[0] == "t" else "torch-cpu-eager"]
    )
    assert message.startswith("The twins differ: first of ")
    assert "in 6 steps of 2 sequences, 6 of which differ\nsequence 0, step 0:\n    a  f32  0x1.0000000000000p+0  (1)\n" in message
    assert "the state's total:" in message
    assert "only_here" not in message


def test_weights_that_differ_are_found_numbers_too() -> None:
    for lane in ("jax-cpu-eager", "jax-cpu-jit", "jax-cpu-step", "jax-cpu-scan"):
        message = _message(Mean(), JaxMean(weight=float(np.nextafter(0.1, 1))), cases=[{"a": 1.0}], lanes=["torch-cpu-eager", lane])
        assert "the weight of constant:\n    torch-cpu-eager  f64  0x1.999999999999ap-4" in message
        assert "1 ulp off" in message


@pytest.mark.parametrize("faulty", ["torch", "jax"])
def test_faults_in_weights_and_state_of_the_library_s_twins_are_found(faulty: str) -> None:
    ours = FaultyTorchState if faulty == "torch" else loss_balancers.torch.EMANormalizedLossBalancer
    theirs = FaultyJaxState if faulty == "jax" else loss_balancers.jax.EMANormalizedLossBalancer
    message = _message(ours(NAMES), theirs(NAMES), steps=[[{"student_loss": 1.5, "MSELoss_0": 3.0}] * 3])
    assert "the weight of student_loss" in message
    assert "the state's total" in message


def test_a_weight_that_one_of_them_has_alone_is_a_difference() -> None:
    class More(JaxMean):
        def weights(self, loss):
            return super().weights(loss) | {"b": 1.0}

    message = _message(Mean(), More(), cases=[{"a": 1.0}])
    assert "the weight of b:\n    torch-cpu-eager  nothing\n    jax-cpu-jit      f64  0x1.0000000000000p+0  (1)" in message


def test_what_only_looks_like_a_method_is_left_alone() -> None:
    class Parameter(Mean):
        weights = 3  # type: ignore[assignment]

        def step(self, optimizer) -> None:  # type: ignore[override]
            raise AssertionError

    assert_twins(Parameter(), JaxMean(), steps=STEPS, cotangents=[1.0])


def test_weights_that_are_no_mapping_are_refused() -> None:
    class Wrong(Mean):
        def weights(self, loss):  # type: ignore[override]
            return [0.5]

    with pytest.raises(TypeError, match="`weights` of the torch balancer must return a mapping from name to number or array"):
        assert_twins(Wrong(), JaxMean(), cases=[{"a": 1.0}])


# --- second derivatives ---------------------------------------------------------------------------------------------


def _cubed(loss):
    return loss["a"] * loss["a"] * loss["a"] * loss["b"]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("lane", [lane for lane in LANES if lane != "torch-cpu-eager"])
def test_second_derivatives_agree(lane: str) -> None:
    cases = [{"a": 2.0, "b": 3.0}, {"a": 0.5, "b": -1.0}]
    lanes = list(dict.fromkeys(["torch-cpu-eager", lane, "jax-cpu-jit"]))
    assert_twins(_cubed, _cubed, cases=cases, lanes=lanes, second_derivative=True)
    weights = [0.1, 0.3]
    twins = loss_balancers.torch.StaticLossBalancer(weights), loss_balancers.jax.StaticLossBalancer(weights)
    assert_twins(*twins, cases=20, names=["A_0", "B_1", "student_loss"], formats=["bf16"], lanes=lanes, second_derivative=True)


class WrongTwice(torch.autograd.Function):
    """x squared, whose gradient is right, and the derivative of its gradient not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0] * (2 * x.detach())


def test_a_wrong_second_derivative_is_found_on_request() -> None:
    twins = (lambda loss: WrongTwice.apply(loss["a"])), (lambda loss: loss["a"] * loss["a"])
    cases = [{"a": 3.0}]
    assert_twins(*twins, cases=cases)
    message = _message(*twins, cases=cases, second_derivative=True)
    assert "the second derivative to a and a (cotangent 1.0):\n    torch-cpu-eager  f32  0x0.0p+0  (0)\n" in message
    for lanes in (["torch-cpu-vmap", "jax-cpu-jit"], ["jax-cpu-jit", "torch-cpu-compiled", "torch-cpu-eager"]):
        assert "the second derivative to a and a" in _message(*twins, cases=cases, second_derivative=True, lanes=lanes)


def test_second_derivatives_need_a_lane_that_has_them() -> None:
    with pytest.raises(ValueError, match=r"needs a lane torch-DEVICE-eager or torch-DEVICE-vmap.*Add torch-cpu-eager"):
        assert_twins(
            _cubed, _cubed, cases=[{"a": 1.0, "b": 1.0}], lanes=["torch-cpu-compiled", "jax-cpu-jit"], second_derivative=True
        )


# --- nothing to compare ---------------------------------------------------------------------------------------------

EMPTY = {"a": ("f32", [])}


def _half(loss):
    return loss["a"] * 0.5


@pytest.mark.parametrize("lane", LANES)
def test_a_run_in_which_nothing_has_an_element_is_an_error(lane: str) -> None:
    lanes = [lane, "jax-cpu-jit" if lane.startswith("torch") else "torch-cpu-eager"]
    with pytest.raises(ValueError, match="Nothing was compared but dtypes and shapes"):
        assert_twins(_half, _half, cases=[EMPTY], lanes=lanes)
    assert_twins(_half, _half, cases=[EMPTY, {"a": 1.0}], lanes=lanes)


def test_of_a_case_without_elements_dtype_and_shape_are_compared() -> None:
    cases = [EMPTY, {"a": 1.0}]
    message = _message(_half, lambda loss: _half(loss).astype(jnp.bfloat16) if loss["a"].ndim else _half(loss), cases=cases)
    assert "case 0:" in message
    assert "another format" in message
    empty = {"a": ("f32", np.zeros((0, 2))), "b": ("f32", [])}
    message = _message(lambda loss: loss["a"] * 1, lambda loss: loss["b"] * 1, cases=[empty])
    assert "another shape" in message


# --- wrong use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": []}, ValueError, "`steps` must hold at least one sequence. Received none"),
        ({"steps": [[]]}, ValueError, "steps[0] must hold at least one loss dict"),
        ({"steps": 3}, TypeError, "`steps` must be sequences of loss dicts, one dict a step. Received int."),
        (
            {"steps": [{"a": 1.0}]},
            TypeError,
            "steps[0] must be a sequence of loss dicts, one dict a step. Received dict. For one seq",
        ),
        ({"steps": [[{"a": 1.0}, 2.0]]}, TypeError, "steps[0][1] must be a mapping from name to loss"),
        (
            {"steps": [[{"a": 1.0}, {"a": ("bf16", 1.0)}]]},
            ValueError,
            "steps[0][1] must have the losses of steps[0][0]: the same names in the same order, formats and shapes. Received "
            "{a: bfloat16}, not {a: float32}. Begin another sequence",
        ),
        ({"steps": [[{"a": 1.0}]], "names": ["a"]}, ValueError, "`names` are for drawn cases, and `steps` holds loss dicts."),
    ],
    ids=["none", "empty", "number", "one-sequence", "no-dict", "another-signature", "names"],
)
def test_wrong_steps_are_an_error_in_words(options, error, words) -> None:
    with pytest.raises(error) as raised:
        assert_twins(_half, _half, **options)
    assert words in str(raised.value)
