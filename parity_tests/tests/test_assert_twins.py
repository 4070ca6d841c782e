"""Other people's twins: equal ones pass on every lane, and each way to differ is found, located and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.core import Tracer

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.parity import assert_twins
from loss_balancers.parity.bits import array_bits, to_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.parity.twins.cases import specials
from loss_balancers.parity.twins.lanes import MODES
from loss_balancers.spec import FORMATS

LANES = [f"{framework}-cpu-{mode}" for framework, modes in MODES.items() for mode in modes]
X = {"MSELoss_0": 3.0}


def half(loss):
    return loss["MSELoss_0"] * 0.5


def _other(lane: str) -> list[str]:
    return ["jax-cpu-jit" if lane.startswith("torch") else "torch-cpu-eager"]


def _message(torch_balancer, jax_balancer, **options) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_twins(torch_balancer, jax_balancer, **options)
    return str(raised.value)


# --- twins that are -------------------------------------------------------------------------------------------------


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("lane", LANES)
def test_the_library_s_own_twins_agree_on_every_lane(lane: str) -> None:
    weights, names = [0.1, 0.3], ["B_10", "student_loss", "A_2"]
    formats = ["f32", "bf16", "f16", "f64", "mixed"]
    if lane in ("torch-cpu-compiled", "torch-cpu-step"):
        formats = ["bf16", "mixed"]  # a compilation each
    lanes = ["torch-cpu-eager", lane, "jax-cpu-jit"]
    twins = loss_balancers.torch.StaticLossBalancer(weights), loss_balancers.jax.StaticLossBalancer(weights)
    assert_twins(*twins, names=names, formats=formats, lanes=lanes)


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane not in ("torch-cpu-eager", "jax-cpu-jit")])
def test_each_lane_can_differ(lane: str) -> None:
    """The lane really runs its own balancer: one that is off shows there."""
    framework = lane.split("-", maxsplit=1)[0]
    off = {framework: lambda loss: loss["MSELoss_0"] * 0.25}
    message = _message(
        off.get("torch", half),
        off.get("jax", half),
        cases=[X],
        lanes=[lane, "jax-cpu-jit" if framework == "torch" else "torch-cpu-eager"],
    )
    assert "the aggregate  " in message
    assert "0x1.8000000000000p-1" in message


def test_arrays_and_every_way_to_write_a_loss() -> None:
    cases = [
        {"a": 0.1, "b": np.float32(0.1), "c": ("bf16", 0.1)},
        {"a": np.ones((2, 3), np.float32), "b": torch.ones((2, 3)), "c": jnp.ones((2, 3))},
        {"a": ("f32", [0.1, 0.2]), "b": ("f16", [1, 2]), "c": ("f32", np.array([0.5, -0.0]))},
    ]
    assert_twins(lambda loss: loss["a"] * 0.5, lambda loss: loss["a"] * 0.5, cases=cases, lanes=LANES[:1] + LANES[3:])


def test_any_nan_is_any_other() -> None:
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)[0]
    assert_twins(lambda loss: loss["a"] * 0 + other_nan, lambda loss: loss["a"] * 0 + jnp.nan, cases=[{"a": 1.0}])


def test_a_loss_that_is_not_used_has_gradient_zero_in_both() -> None:
    assert_twins(half, half, cases=[X | {"unused": 1.0}])
    assert_twins(lambda loss: torch.tensor(1.0), lambda loss: jnp.float32(1.0), cases=[X])


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_both_are_given_the_same_bits(fmt: str) -> None:
    """Every special value reaches both frameworks as the bits that it has, NaN included."""
    seen: dict[str, list[int]] = {"torch": [], "jax": []}

    def seeing(framework: str):
        def balancer(loss):
            seen[framework] += [int(b) for b in array_bits(loss["a"]).flat]
            return loss["a"]

        return balancer

    values = specials(fmt)
    with enable_x64(fmt == "f64"):  # for `jax.vjp`, whose arrays the balancer must be able to read
        assert_twins(
            seeing("torch"),
            lambda loss: seeing("jax")(loss) if not isinstance(loss["a"], Tracer) else loss["a"],
            cases=[{"a": (fmt, value)} for value in values],
            lanes=["torch-cpu-eager", "jax-cpu-eager"],
            cotangents=[1.0],
        )
    assert seen["torch"] == seen["jax"] == [to_bits(value, fmt) for value in values]


def test_what_is_given_stays_as_it_was() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, loss):
            self.calls += 1
            return loss["MSELoss_0"] * 0.5

    class CountingJax(nnx.Module):
        def __init__(self) -> None:
            self.calls = nnx.Variable(jnp.zeros(()))

        def __call__(self, loss):
            self.calls[...] += 1
            return loss["MSELoss_0"] * 0.5

    ours, theirs, case = Counting(), CountingJax(), dict(X)
    x64 = jax.config.read("jax_enable_x64")
    assert_twins(ours, theirs, cases=[case, {"MSELoss_0": ("f64", 0.1)}], lanes=LANES)
    assert float(ours.calls) == float(theirs.calls[...]) == 0
    assert case == X
    assert jax.config.read("jax_enable_x64") is x64


# --- twins that are not ---------------------------------------------------------------------------------------------


def test_the_message_says_where_what_how_far_and_how_often() -> None:
    cases = [{"MSELoss_0": 0.0, "KL_1": 1.0}, {"MSELoss_0": 1.5, "KL_1": ("bf16", 2.0)}, {"MSELoss_0": -3.0, "KL_1": 1.0}]
    one_ulp_more = float(np.nextafter(np.float32(0.5), np.float32(1)))
    message = _message(half, lambda loss: loss["MSELoss_0"] * one_ulp_more, cases=cases, cotangents=[1.0])
    assert message == (
        "The twins differ: first of 5 differences in 3 cases, 3 of which differ\n"
        "case 0:\n"
        "    MSELoss_0  f32  0x0.0p+0  (0)\n"
        "    KL_1       f32  0x1.0000000000000p+0  (1)\n"
        "the gradient to MSELoss_0 (cotangent 1.0):\n"
        "    torch-cpu-eager  f32  0x1.0000000000000p-1  (0.5)\n"
        "    jax-cpu-jit      f32  0x1.0000020000000p-1  (0.50000006)  1 ulp off\n"
        "differences by result:\n"
        "    the aggregate                              2\n"
        "    the gradient to MSELoss_0 (cotangent 1.0)  3\n"
        "worst, case 1:\n"
        "the aggregate:\n"
        "    torch-cpu-eager  f32  0x1.8000000000000p-1  (0.75)\n"
        "    jax-cpu-jit      f32  0x1.8000040000000p-1  (0.750000119)  2 ulp off"
    )


def _naive(loss):
    return 0.3 * loss["MSELoss_0"] + 0.7 * loss["student_loss"]


def test_the_obvious_port_is_found() -> None:
    for fmt in ("f32", "bf16"):
        assert "The twins differ" in _message(_naive, _naive, formats=[fmt])


def test_weights_by_position_in_the_dict_are_found() -> None:
    """Right in eager JAX, wrong as soon as `jit` sorts the dict."""
    by_position = lambda loss: list(loss.values())[0] * 0.5  # noqa: E731, RUF015
    cases = [{"b": 1.0, "a": 2.0}]
    assert "the gradient to b" in _message(by_position, by_position, cases=cases)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (lambda loss: -(loss["a"] * 0), "f32  -0x0.0p+0  (-0)  1 ulp off"),
        (lambda loss: (loss["a"] * 0).astype(jnp.bfloat16), "bf16  0x0.0p+0  (0)  another format"),
        (lambda loss: loss["a"] * jnp.nan, "nan  (nan)  a number against a NaN or an infinity"),
        (lambda loss: loss["a"] * 0 + jnp.inf, "inf  (inf)  a number against a NaN or an infinity"),
        (lambda loss: jax.lax.stop_gradient(loss["b"]) * 0 + loss["a"] * 0, None),
        (lambda loss: loss["a"] * 0 + loss["b"] - jax.lax.stop_gradient(loss["b"]), "the gradient to b (cotangent 1.0)"),
    ],
    ids=["minus-zero", "format", "nan", "infinity", "equal", "gradient-alone"],
)
def test_each_kind_of_difference(theirs, words) -> None:
    cases = [{"a": 1.0, "b": 2.0}]
    if words is None:
        assert_twins(lambda loss: loss["a"] * 0, theirs, cases=cases)
    else:
        assert words in _message(lambda loss: loss["a"] * 0, theirs, cases=cases)


def test_shapes_and_elements() -> None:
    cases = [{"a": ("f32", [1.0, 2.0, 3.0])}]
    assert "another shape" in _message(lambda loss: loss["a"], lambda loss: loss["a"].sum(), cases=cases)
    message = _message(lambda loss: loss["a"], lambda loss: loss["a"].at[2].multiply(2.0), cases=cases)
    assert "the aggregate, element (2,):\n    torch-cpu-eager  f32  0x1.8000000000000p+1  (3)\n" in message
    assert "8388608 ulp off" in message


def test_of_an_array_the_element_that_is_farthest_off_is_shown() -> None:
    """Not the first that differs, which `max_ulp` may allow."""
    off = np.array([1.0, 1 + 2**-23, 1 + 1000 * 2**-23, 1 + 2**-22], np.float32)
    cases = [{"a": ("f32", [1.0] * 4)}]
    for max_ulp in (0, 64):
        message = _message(lambda loss: loss["a"] * 1, lambda loss: loss["a"] * off, cases=cases, max_ulp=max_ulp, cotangents=[1.0])
        assert "the aggregate, element (2,):" in message
        assert "1000 ulp off" in message


def test_max_ulp_allows_as_many_and_no_more() -> None:
    two_ulp = lambda loss: loss["MSELoss_0"] * (0.5 * (1 + 2**-22))  # noqa: E731
    cases = [{"MSELoss_0": 1.0}]
    assert_twins(half, two_ulp, cases=cases, max_ulp=2, cotangents=[1.0])
    assert _message(half, two_ulp, cases=cases, max_ulp=1).startswith("The twins differ by more than 1 ulp: first of ")
    overflow = lambda loss: loss["MSELoss_0"] * 0 + jnp.inf  # noqa: E731
    largest = lambda loss: loss["MSELoss_0"] * 0 + torch.finfo(torch.float32).max  # noqa: E731
    assert "an infinity" in _message(largest, overflow, cases=cases, max_ulp=10**6)  # though it is the next number
    assert "a NaN" in _message(largest, lambda loss: loss["MSELoss_0"] * jnp.nan, cases=cases, max_ulp=10**6)


def test_cases_of_several_names_are_counted_by_result() -> None:
    first = lambda loss: next(iter(loss.values())) * 0.5  # noqa: E731
    off = lambda loss: next(iter(loss.values())) * 0.25  # noqa: E731
    message = _message(first, off, cases=[{"a": 1.0}, {"b": 1.0}], cotangents=[1.0])
    assert "    the gradient to a (cotangent 1.0)  1\n    the gradient to b (cotangent 1.0)  1" in message


def test_a_step_shows_losses_that_are_read_with_more_digits_than_they_have() -> None:
    """Inductor elides the conversion to bfloat16 and the one back, where a balancer is compiled together with its losses."""
    wide = lambda loss: loss["a"].to(torch.float32) * 0.3  # noqa: E731
    wide_jax = lambda loss: loss["a"].astype(jnp.float32) * 0.3  # noqa: E731
    cases = [{"a": ("bf16", 1.5)}]
    assert_twins(wide, wide_jax, cases=cases, lanes=["torch-cpu-eager", "torch-cpu-compiled", "jax-cpu-jit"])
    message = _message(wide, wide_jax, cases=cases, lanes=["torch-cpu-eager", "torch-cpu-step", "jax-cpu-jit"])
    assert "torch-cpu-step   f32  0x1.ccd4020000000p-2  (0.450027496)  922 ulp off" in message


def test_every_lane_is_compared_with_the_first() -> None:
    """Two lanes that agree, and one that does not: found whatever its place."""
    trace_dependent = lambda loss: loss["MSELoss_0"] * (0.5 if isinstance(loss["MSELoss_0"], Tracer) else 0.25)  # noqa: E731
    lanes = ["torch-cpu-eager", "jax-cpu-jit", "jax-cpu-eager"]
    for order in (lanes, lanes[::-1]):
        message = _message(half, trace_dependent, cases=[X], lanes=order)
        assert message.startswith(
            f"The twins differ: first of {2 if order is lanes else 4} differences in 1 cases, 1 of which differ"
        )
        assert all(lane in message for lane in lanes)
