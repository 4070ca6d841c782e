"""`assert_twins` used wrongly: every mistake is an error that says what was expected, what came, and what to do."""

import math

import numpy as np
import pytest

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import LaneAbsentError, assert_twins
from loss_balancers.parity.twins.lanes import MODES

LANES = [f"{framework}-cpu-{mode}" for framework, modes in MODES.items() for mode in modes]
X = {"MSELoss_0": 3.0}


def half(loss):
    return loss["MSELoss_0"] * 0.5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cases": []}, ValueError, "`cases` must hold at least one loss dict"),
        ({"cases": 0}, ValueError, "The cases to draw must be at least 1. Received 0"),
        ({"cases": True}, ValueError, "The cases to draw must be at least 1. Received True"),
        ({"cases": 2.5}, TypeError, "`cases` must be a number of cases to draw, or an iterable of loss dicts. Received float"),
        ({"cases": X}, TypeError, "For one case, pass a list with one dict"),
        ({"cases": [X, 3.0]}, TypeError, "cases[1] must be a mapping from name to loss. Received float"),
        ({"cases": [{}]}, ValueError, "cases[0] must hold at least one loss"),
        ({"cases": [{1: 2.0}]}, TypeError, "cases[0] must name its losses with strings. Received the key 1"),
        ({"cases": [{"a": ("f8", 1.0)}]}, ValueError, "cases[0]['a'] must be (format, value) with a format of bf16, f16, f32, f64"),
        ({"cases": [{"a": (1.0,)}]}, ValueError, "must be (format, value)"),
        ({"cases": [{"a": ([], 1.0)}]}, ValueError, "must be (format, value)"),
        ({"cases": [{"a": ("f32", "1")}]}, TypeError, "cases[0]['a'] must be a real number. Received '1' of type str"),
        ({"cases": [{"a": True}]}, TypeError, "must be a real number. Received True of type bool"),
        ({"cases": [{"a": np.int32(1)}]}, TypeError, "Received int32 of int32. Convert it"),
        ({"cases": [{"a": "1.0"}]}, TypeError, "Received str of"),
        ({"cases": [X], "names": ["a"]}, ValueError, "`names` are for drawn cases"),
        ({"names": "student_loss"}, TypeError, "`names` must be a sequence of strings"),
        ({"names": ["a", "a"]}, ValueError, "`names` must be the distinct names"),
        ({"names": []}, ValueError, "`names` must be the distinct names"),
        ({"formats": ["f33"]}, ValueError, "`formats` must be a sequence of bf16, f16, f32, f64, mixed. Received ['f33']"),
        ({"formats": "f32"}, ValueError, "Received 'f32'"),
        ({"formats": []}, ValueError, "`formats` must be a sequence"),
        ({"lanes": "torch-cpu-eager"}, TypeError, "`lanes` must be a sequence of names"),
        ({"lanes": ["torch-cpu-eager"]}, ValueError, "none of jax. Add, say, jax-cpu-jit"),
        ({"lanes": []}, ValueError, "none of torch or jax"),
        (
            {"lanes": ["torch-cpu-jit", "jax-cpu-jit"]},
            ValueError,
            "There is no lane 'torch-cpu-jit' for twins. Lanes are torch-DEVICE-MODE",
        ),
        ({"lanes": ["tensorflow-cpu-eager", "jax-cpu-jit"]}, ValueError, "There is no lane 'tensorflow-cpu-eager'"),
        ({"lanes": [None, "jax-cpu-jit"]}, ValueError, "There is no lane None"),
        ({"lanes": ["torch-abacus-eager", "jax-cpu-jit"]}, LaneAbsentError, "torch has no device 'abacus' here, but cpu"),
        ({"max_ulp": -1}, ValueError, "`max_ulp` must be an int of at least 0. Received -1"),
        ({"max_ulp": 0.5}, ValueError, "Received 0.5"),
        ({"cotangents": []}, ValueError, "`cotangents` must be at least one finite number"),
        ({"cotangents": [math.nan]}, ValueError, "`cotangents` must be at least one finite number"),
    ],
)
def test_wrong_use_is_an_error_in_words(options, error, words) -> None:
    with pytest.raises(error) as raised:
        assert_twins(half, half, **options)
    assert words in str(raised.value)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (
            lambda x: 1.0,
            TypeError,
            "balancer must return a floating-point array (bfloat16, float16, float32, float64). Received float",
        ),
        (lambda x: {"loss": x}, TypeError, "Received dict. Return the aggregate and nothing else"),
        (
            lambda x: x[None],
            ValueError,
            "balancer must return a scalar, or an array with the shape of a loss: one of (). Received the shape (1,)",
        ),
        (lambda x: x == 1, TypeError, "of bool"),
    ],
    ids=["number", "dict", "shape", "bool"],
)
def test_what_a_balancer_must_not_return(lane, result, error, words) -> None:
    with pytest.raises(error) as raised:
        assert_twins(
            lambda loss: result(loss["a"]), lambda loss: result(loss["a"]), cases=[{"a": 2.0}], lanes=[lane, *_other(lane)]
        )
    assert words in str(raised.value)


def _other(lane: str) -> list[str]:
    return ["jax-cpu-jit" if lane.startswith("torch") else "torch-cpu-eager"]


def test_an_error_of_a_balancer_says_where_it_came_up() -> None:
    twins = loss_balancers.torch.StaticLossBalancer([0.1, 0.2]), loss_balancers.jax.StaticLossBalancer([0.1, 0.2])
    with pytest.raises(ValueError, match="one weight per KD loss") as raised:
        assert_twins(*twins, cases=[{"MSELoss_0": ("bf16", 1.0), "student_loss": 1.0}])
    assert raised.value.__notes__ == [
        "In the lane torch-cpu-eager, on losses {MSELoss_0: bfloat16, student_loss: float32}, the first of them case 0."
    ]


def test_a_lane_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import loss_balancers.parity.lanes.known as module

    lanes = [lane._replace(why_absent=lambda: "no C++ compiler") for lane in module.known_lanes()]
    monkeypatch.setattr(module, "known_lanes", lambda: lanes)
    with pytest.raises(LaneAbsentError, match="The lane torch-cpu-compiled cannot run on this machine: no C\\+\\+ compiler"):
        assert_twins(half, half, cases=[X], lanes=["torch-cpu-compiled", "jax-cpu-vmap"])
