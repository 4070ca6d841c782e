"""Schedules: their values at every step, both ends, what they refuse and in which words, JSON, long tables."""
# pyright: reportArgumentType=false, reportCallIssue=false
#   What is refused is wrong on purpose.

import base64
import json
import math
import pickle
import re
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_balancers.spec import Schedule, schedules
from loss_balancers.spec.schedules import MAX_STEPS, Point, as_schedule

VALUES = st.floats(-1e300, 1e300)
SHAPES = st.sampled_from(["linear", "cosine"])
POINTS = st.dictionaries(st.integers(0, 200), st.tuples(VALUES, SHAPES), min_size=1, max_size=5).map(
    lambda points: tuple(Point(step, *points[step]) for step in sorted(points))
)
ANY = st.one_of(
    POINTS.map(Schedule), st.lists(VALUES, min_size=1, max_size=20).map(lambda v: schedules.tabulate(v.__getitem__, len(v)))
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        pytest.param(schedules.constant(0.3), [0.3], id="constant"),
        pytest.param(schedules.constant(1), [1.0], id="constant-int"),
        pytest.param(schedules.linear(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0], id="linear"),
        pytest.param(schedules.linear(1.0, 0.0, 1), [1.0, 0.0], id="one-step"),
        pytest.param(schedules.linear(np.float32(0.5), np.int64(1), np.int32(1)), [0.5, 1.0], id="numpy"),
        pytest.param(schedules.cosine(0.0, 1.0, 2), [0.0, 0.5, 1.0], id="cosine"),
        pytest.param(schedules.piecewise_linear({4: 0.0, 2: 1.0}), [1.0, 1.0, 1.0, 0.5, 0.0], id="piecewise-held-before"),
        pytest.param(schedules.piecewise_linear({0: 0.25}), [0.25], id="piecewise-one"),
        pytest.param(schedules.warmup_constant(1.0, 2), [0.0, 0.5, 1.0], id="warmup-constant"),
        pytest.param(schedules.warmup_constant(1.0, 2, start=0.5), [0.5, 0.75, 1.0], id="warmup-constant-start"),
        pytest.param(schedules.warmup_linear(1.0, 2, 0.0, 4), [0.0, 0.5, 1.0, 0.5, 0.0], id="warmup-linear"),
        pytest.param(schedules.warmup_cosine(1.0, 2, 0.0, 4), [0.0, 0.5, 1.0, 0.5, 0.0], id="warmup-cosine"),
        pytest.param(schedules.tabulate(lambda step: step / 4, 3), [0.0, 0.25, 0.5], id="tabulate"),
        pytest.param(schedules.tabulate(lambda step: np.float32([0.1]), 1), [float(np.float32(0.1))], id="tabulate-array-of-one"),
        pytest.param(schedules.tabulate(lambda step: np.array(1), 1), [1.0], id="tabulate-int-array"),
    ],
)
def test_values(schedule, expected):
    values = schedule.values()
    assert values.dtype == np.float64
    assert schedule.steps == len(values)
    np.testing.assert_allclose(values, expected, rtol=1e-15, atol=0)
    assert values[0] == expected[0]
    assert values[-1] == expected[-1]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(POINTS)
def test_exact_at_every_point_and_never_beyond_its_neighbours(points):
    values = Schedule(points).values()
    assert len(values) == points[-1].step + 1
    assert (values[: points[0].step + 1] == points[0].value).all()  # held before the first
    for before, after in pairwise(points):
        assert values[after.step] == after.value
        between = values[before.step : after.step + 1]
        assert between.min() >= min(before.value, after.value)
        assert between.max() <= max(before.value, after.value)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000, 99_991])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.9, 0.1), (1e-6, 0.1), (0.3, 0.3)])
def test_curves_against_their_formulas(start, end, steps):
    """Where MaxText's form misses an end (0.9 to 0.1 by five float32 ulp, 1e-6 by two parts in a thousand), these are exact."""
    p = np.arange(steps + 1) / steps
    line, wave = schedules.linear(start, end, steps).values(), schedules.cosine(start, end, steps).values()
    np.testing.assert_allclose(line, (1 - p) * start + p * end, rtol=0, atol=4e-16)
    np.testing.assert_allclose(wave, end + (start - end) * 0.5 * (1 + np.cos(np.pi * p)), rtol=0, atol=7e-16)
    for values in (line, wave):
        assert (values[0], values[-1]) == (start, end)
        assert (np.diff(values) * np.sign(end - start) >= -2e-16).all()
    if (start, end) == (0.0, 1.0):
        assert (line == p).all()
        # Near its start a cosine is a small number that the obvious formula cancels away.
        np.testing.assert_allclose(wave[1:], np.sin(np.pi / 2 * p[1:]) ** 2, rtol=1e-15)


def test_a_cosine_reversed_is_the_cosine_back():
    there, back = schedules.cosine(0.2, 0.7, 101).values(), schedules.cosine(0.7, 0.2, 101).values()
    assert (there == back[::-1]).all()


def test_tabulate_takes_an_optax_schedule():
    optax = pytest.importorskip("optax")
    curve = optax.warmup_cosine_decay_schedule(0.0, 0.9, 5, 20, 0.1)
    schedule = schedules.tabulate(curve, 25)
    assert schedule.values().tolist() == [float(curve(step)) for step in range(25)]
    assert schedules.tabulate(np.asarray([curve(step) for step in range(25)]).item, 25) == schedule


def test_tabulate_calls_once_a_step_and_never_again():
    calls = []
    schedule = schedules.tabulate(lambda step: calls.append(step) or 0.5, 5)
    schedule.values()
    assert calls == [0, 1, 2, 3, 4]
    assert all(type(step) is int for step in calls)


def test_tabulate_passes_on_what_the_function_raises():
    with pytest.raises(ZeroDivisionError):
        schedules.tabulate(lambda step: 1 / step, 3)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        pytest.param(lambda: schedules.linear(0.0, 1.0, 0), ValueError, "step 0 after step 0", id="no-steps"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, -1), ValueError, "from 0 to 100000000. Received -1", id="negative-steps"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, 2.0), TypeError, "A step must be an int. Received 2.0 of type float", id="float-steps"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, True), TypeError, "Received True of type bool", id="bool-steps"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, MAX_STEPS + 1), ValueError, "from 0 to 100000000", id="too-many-steps"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, 10**5000), ValueError, "an int of 16610 bits", id="unprintable-steps"),
        pytest.param(lambda: schedules.linear("0", 1.0, 2), TypeError, "`schedule at step 0` must be a real number", id="string-value"),
        pytest.param(lambda: schedules.linear(0.0, True, 2), TypeError, "`schedule at step 2` must be a real number", id="bool-value"),
        pytest.param(lambda: schedules.cosine(0.0, math.nan, 2), ValueError, "`schedule at step 2` must be finite. Received nan", id="nan"),
        pytest.param(lambda: schedules.constant(math.inf), ValueError, "`schedule at step 0` must be finite. Received inf", id="inf"),
        pytest.param(lambda: schedules.constant(10**400), ValueError, f"at most 1.7976931348623157e+308 in magnitude. Received {10**400}", id="huge-int"),
        pytest.param(lambda: schedules.tabulate(lambda step: 10**400, 2), ValueError, "`schedule at step 0` must be a number that float64 holds", id="tabulate-huge-int"),
        pytest.param(lambda: as_schedule(10**400, "alpha"), ValueError, "`alpha` must be a number that float64 holds", id="huge-int-for-schedule"),
        pytest.param(lambda: schedules.constant(np.timedelta64(1, "ns")), TypeError, "`schedule at step 0` must be a real number", id="duration"),
        pytest.param(lambda: schedules.tabulate(lambda step: np.datetime64(1, "ns"), 2), TypeError, "`schedule at step 0` must be a real number", id="tabulate-time"),
        pytest.param(lambda: schedules.linear(0.0, 1.0, np.timedelta64(3, "ns")), TypeError, "A step must be an int. Received ", id="duration-steps"),
        pytest.param(lambda: schedules.constant(np.zeros(2)), TypeError, "must be a real number", id="array"),
        pytest.param(lambda: schedules.constant(np.array(True)), TypeError, "Received True of type bool", id="bool-array"),
        pytest.param(lambda: schedules.piecewise_linear({}), ValueError, "at least one value, by step. Received {}", id="empty"),
        pytest.param(lambda: schedules.piecewise_linear([1.0]), TypeError, "at least one value, by step. Received [1.0]", id="list"),
        pytest.param(lambda: schedules.piecewise_linear({"0": 1.0}), TypeError, "A step must be an int. Received '0'", id="string-step"),
        pytest.param(lambda: schedules.piecewise_linear({0.5: 1.0}), TypeError, "A step must be an int. Received 0.5", id="float-step"),
        pytest.param(lambda: schedules.piecewise_linear({-1: 1.0, 1: 1.0}), ValueError, "Received -1", id="negative-step"),
        pytest.param(lambda: schedules.warmup_cosine(1.0, 5, 0.0, 5), ValueError, "step 5 after step 5. Count every step from the start", id="no-decay"),
        pytest.param(lambda: schedules.warmup_linear(1.0, 0, 0.0, 5), ValueError, "let each part take at least one", id="no-warmup"),
        pytest.param(lambda: schedules.tabulate(0.5, 3), TypeError, "`schedule` must be a function from step to number. Received 0.5", id="no-function"),
        pytest.param(lambda: schedules.tabulate(lambda step: 1.0, 0), ValueError, "`steps` must be at least 1. Received 0", id="tabulate-no-steps"),
        pytest.param(lambda: schedules.tabulate(lambda step: 1.0, -1), ValueError, "Received -1", id="tabulate-negative"),
        pytest.param(lambda: schedules.tabulate(lambda step: 1.0, 1.0), TypeError, "A step must be an int", id="tabulate-float"),
        pytest.param(lambda: schedules.tabulate(lambda step: None, 3), TypeError, "`schedule at step 0` must be a real number", id="tabulate-none"),
        pytest.param(lambda: schedules.tabulate(lambda step: 1 / (2 - step) if step != 2 else math.inf, 4), ValueError, "`schedule at step 2` must be finite", id="tabulate-inf"),
        pytest.param(lambda: schedules.tabulate(lambda step: np.ones(2), 3), TypeError, "must be a real number", id="tabulate-array"),
        pytest.param(lambda: schedules.tabulate(lambda step: 1j, 3), TypeError, "of type complex", id="tabulate-complex"),
        pytest.param(Schedule, ValueError, "at least one value", id="nothing"),
        pytest.param(lambda: Schedule((Point(0, 1.0),), b"\0" * 8), ValueError, "at least one value", id="both"),
        pytest.param(lambda: Schedule(data=b"\0" * 7), ValueError, "8 bytes a step. Received 7 bytes", id="seven-bytes"),
        pytest.param(lambda: Schedule(data=np.array([0.0, np.nan]).tobytes()), ValueError, "`schedule at step 1` must be finite", id="nan-in-table"),
        pytest.param(lambda: Schedule((Point(0, 1.0, "spline"),)), ValueError, "must be \"linear\" or \"cosine\". Received 'spline'", id="shape"),
        pytest.param(lambda: as_schedule("1", "alpha"), TypeError, "`alpha` must be a real number (int, float, or a scalar of NumPy, PyTorch or JAX on the host) or a schedule. Received '1' of type str. Pass `float('1')`", id="no-schedule"),
        pytest.param(lambda: as_schedule(lambda step: 1.0, "alpha"), TypeError, "of type function. Make a schedule of a function with `schedules.tabulate`", id="bare-function"),
        pytest.param(lambda: as_schedule(math.nan, "alpha"), ValueError, "`alpha` must be finite. Received nan", id="nan-for-schedule"),
    ],
)  # fmt: skip
def test_refusals(make, kind, words):
    with pytest.raises(kind, match=re.escape(words)) as caught:
        make()
    assert type(caught.value) is kind


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ANY)
def test_json_keeps_every_bit(schedule):
    back = Schedule.from_json(json.loads(json.dumps(schedule.as_json())))
    assert back == schedule
    assert hash(back) == hash(schedule)
    assert back.values().tobytes() == schedule.values().tobytes()
    assert pickle.loads(pickle.dumps(schedule)) == schedule


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["linear", "AAAAAAAAAAA="]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["points", "table", "by_name", "student_loss", "MSELoss_0"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(JSON | st.builds(lambda x: {"points": x}, JSON) | st.builds(lambda x: {"points": [[0, x, "linear"]]}, JSON))
def test_malformed_json_is_an_error_in_words(data):
    try:
        schedule = Schedule.from_json(data)
    except (TypeError, ValueError) as error:
        words = str(error)
    else:
        assert np.isfinite(schedule.values()).all()
        return
    assert re.search(r"Received .*\. \w", words, re.DOTALL)  # of `errors`: what was received, and what to do


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"table": "ä"}, id="not-ascii"),
        pytest.param({"table": "A"}, id="not-base64"),
        pytest.param({"table": ""}, id="empty"),
        pytest.param({"points": []}, id="no-points"),
        pytest.param({"points": {"0": 1.0}}, id="points-by-key"),
        pytest.param({"points": [[0, 1.0]]}, id="point-of-two"),
        pytest.param({"points": [[0, 1.0, "linear"]], "table": ""}, id="both"),
        pytest.param([["points"]], id="list"),
        pytest.param(None, id="none"),
    ],
)
def test_no_schedule_in_json(data):
    with pytest.raises(ValueError, match=r"must be a JSON object with `points` or `table`\. Received"):
        Schedule.from_json(data)


def test_a_message_does_not_hold_a_whole_table():
    text = base64.b64encode(bytes(800_000)).decode()
    with pytest.raises(ValueError, match=r"… \(10\d+ characters\)") as caught:
        Schedule.from_json({"table": text, "points": []})
    assert len(str(caught.value)) < 1000


def test_repr_is_short_and_says_the_curve():
    assert repr(schedules.warmup_cosine(1.0, 2, 0.1, 9)) == "Schedule(0: 0.0, 2: 1.0, 9: 0.1 by cosine)"
    assert repr(schedules.tabulate(lambda step: 0.5, 1000)) == "Schedule(table of 1000 steps)"


def test_values_are_a_copy():
    schedule = schedules.tabulate(lambda step: 0.5, 3)
    schedule.values()[:] = 9.0
    assert schedule.values().tolist() == [0.5] * 3


def test_a_million_steps_take_the_memory_that_is_stated():
    tracemalloc.start()
    try:
        table = schedules.tabulate(lambda step: step * 1e-6, 1_000_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8.1e6  # 8 MB
    assert table.values()[123_456] == 123_456 * 1e-6
    assert hash(table) == hash(table)
