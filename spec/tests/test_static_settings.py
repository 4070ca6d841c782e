"""`StaticLossBalancerSettings`: the three forms, what they refuse and in which words, JSON, equality."""

import json
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest

from loss_balancers.spec import StaticLossBalancerSettings as Settings

ABOVE_ONE = math.nextafter(1.0, 2.0)


@pytest.mark.parametrize(
    ("given", "held", "student"),
    [
        pytest.param(0.25, 0.25, 0.75, id="float"),
        pytest.param(0, 0.0, 1.0, id="int-0"),
        pytest.param(1, 1.0, 0.0, id="int-1"),
        pytest.param(np.float32(0.5), 0.5, 0.5, id="numpy-float32"),
        pytest.param(np.float16(0.25), 0.25, 0.75, id="numpy-float16"),
        pytest.param(np.int64(1), 1.0, 0.0, id="numpy-int64"),
        pytest.param(Fraction(1, 4), 0.25, 0.75, id="fraction"),
        pytest.param([0.5, 0.25], (0.5, 0.25), 0.25, id="list"),
        pytest.param((0.5, 0.25), (0.5, 0.25), 0.25, id="tuple"),
        pytest.param([np.float64(0.5), 0], (0.5, 0.0), 0.5, id="list-of-numpy"),
        pytest.param(range(2), (0.0, 1.0), 0.0, id="range"),
        pytest.param(np.array(0.25), 0.25, 0.75, id="numpy-0d"),
        pytest.param(np.array(Fraction(1, 4), dtype=object), 0.25, 0.75, id="numpy-0d-object"),
        pytest.param(np.longdouble(0.25), 0.25, 0.75, id="numpy-longdouble"),
        pytest.param(np.array([0.5, 0.25]), (0.5, 0.25), 0.25, id="numpy-1d"),
        pytest.param(np.array([0.5, 0.25, 0.125], np.float16)[::2], (0.5, 0.125), 0.375, id="numpy-1d-float16-strided"),
        pytest.param(np.array([0, 1]), (0.0, 1.0), 0.0, id="numpy-1d-int"),
        pytest.param([np.array(0.5), 0], (0.5, 0.0), 0.5, id="numpy-0d-in-a-list"),
        pytest.param({"A": np.array(0.5)}, (("A", 0.5),), 0.5, id="numpy-0d-in-a-mapping"),
        pytest.param({"B": 0.5, "A": 0.25}, (("A", 0.25), ("B", 0.5)), 0.25, id="mapping"),
        pytest.param({"M_10": 0.5, "M_2": 0.25}, (("M_2", 0.25), ("M_10", 0.5)), 0.25, id="mapping-by-idx"),
        pytest.param({"student_loss": 0.75, "A": 0.25}, (("A", 0.25), ("student_loss", 0.75)), 0.75, id="mapping-with-student"),
        pytest.param([0.5, 0.5 + 9e-10], (0.5, 0.5 + 9e-10), 0.0, id="sum-just-above-1"),
        pytest.param([0.5, 0.5 - 9e-10], (0.5, 0.5 - 9e-10), 0.0, id="sum-just-below-1"),
        pytest.param([0.5, 0.5 - 2e-9], (0.5, 0.5 - 2e-9), 1.0 - (0.5 + (0.5 - 2e-9)), id="sum-below-1"),
    ],
)
def test_forms(given, held, student):
    settings = Settings(given)
    assert settings.kd_loss_weight == held
    assert settings.student_loss_weight == student
    flat = held if isinstance(held, tuple) else (held,)
    assert all(type(part[1] if isinstance(part, tuple) else part) is float for part in flat)


def test_default_is_a_half():
    assert Settings() == Settings(0.5)


def test_student_weight_is_summed_left_to_right():
    weights = [0.1] * 7 + [0.2]
    total = 0.0
    for weight in weights:
        total += weight
    assert total != math.fsum(weights)  # else this test shows nothing
    assert Settings(weights).student_loss_weight == 1.0 - total


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(True, ["`kd_loss_weight`", "real number", "Received True of type bool"], id="bool"),
        pytest.param(np.bool_(True), ["`kd_loss_weight`", "real number", "of type bool"], id="numpy-bool"),
        pytest.param("0.5", ["sequence", "mapping", "'0.5' of type str"], id="string"),
        pytest.param(b"\x00", ["sequence", "mapping", "of type bytes"], id="bytes"),
        pytest.param(None, ["real number", "Received None of type NoneType"], id="none"),
        pytest.param(0.5j, ["real number", "of type complex"], id="complex"),
        pytest.param(np.array([[0.5, 0.5]]), ["of type ndarray", "an array must have one dimension"], id="numpy-2d-array"),
        pytest.param(np.array(True), ["real number", "Received array(True) of type ndarray"], id="numpy-0d-bool"),
        pytest.param(np.array("0.5"), ["real number", "of type ndarray"], id="numpy-0d-string"),
        pytest.param(np.array(0.5j), ["real number", "of type ndarray"], id="numpy-0d-complex"),
        pytest.param(np.timedelta64(1, "s"), ["real number", "of type timedelta64"], id="numpy-timedelta"),
        pytest.param(np.timedelta64(1, "ns"), ["real number", "of type timedelta64"], id="numpy-timedelta-that-is-an-int"),
        pytest.param(np.timedelta64(1), ["real number", "of type timedelta64"], id="numpy-timedelta-without-unit"),
        pytest.param(np.datetime64(1, "ns"), ["real number", "of type datetime64"], id="numpy-datetime-that-is-an-int"),
        pytest.param(
            [np.array(1, "m8[ns]")], ["`kd_loss_weight[0]`", "real number", "of type ndarray"], id="numpy-timedelta-array"
        ),
        pytest.param(np.array([True, False]), ["`kd_loss_weight[0]`", "real number", "of type bool"], id="numpy-bools"),
        pytest.param(np.array(["0.5"]), ["`kd_loss_weight[0]`", "Pass `float('0.5')`"], id="numpy-strings"),
        pytest.param([np.array([0.5])], ["`kd_loss_weight[0]`", "of type ndarray"], id="numpy-array-in-a-list"),
        pytest.param({"A": np.array([0.5])}, ["`kd_loss_weight['A']`", "of type ndarray"], id="numpy-array-in-a-mapping"),
        pytest.param("1e-3", ["'1e-3' of type str. Pass `float('1e-3')`, a number and not text. YAML reads 1e-3"], id="yaml"),
        pytest.param("half", ["'half' of type str. Pass a number, not text."], id="words"),
        pytest.param({"A": "1e-3"}, ["`kd_loss_weight['A']`", "Pass `float('1e-3')`"], id="yaml-in-a-mapping"),
        pytest.param({0.5}, ["sequence", "of type set"], id="set"),
        pytest.param([0.5, True], ["`kd_loss_weight[1]`", "real number", "True of type bool"], id="bool-in-a-list"),
        pytest.param([0.5, "x"], ["`kd_loss_weight[1]`", "real number", "'x' of type str"], id="string-in-a-list"),
        pytest.param([[0.5]], ["`kd_loss_weight[0]`", "[0.5] of type list"], id="nested-list"),
        pytest.param({"A": None}, ["`kd_loss_weight['A']`", "None of type NoneType"], id="none-in-a-mapping"),
        pytest.param({"A": False}, ["`kd_loss_weight['A']`", "False of type bool"], id="bool-in-a-mapping"),
        pytest.param({0: 0.5}, ["strings as keys", "the key 0"], id="int-as-name"),
    ],
)
def test_wrong_types(given, words):
    with pytest.raises(TypeError) as caught:
        Settings(given)
    for word in words:
        assert word in str(caught.value)


BOUNDS = "must be finite and in [0, 1]"
BEYOND = "must be a number that float64 holds, at most 1.7976931348623157e+308 in magnitude"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(math.nan, ["`kd_loss_weight`", BOUNDS, "Received nan"], id="nan"),
        pytest.param(math.inf, ["`kd_loss_weight`", BOUNDS, "Received inf"], id="inf"),
        pytest.param(-math.inf, ["`kd_loss_weight`", BOUNDS, "Received -inf"], id="minus-inf"),
        pytest.param(-0.1, ["`kd_loss_weight`", BOUNDS, "Received -0.1"], id="negative"),
        pytest.param(-5e-324, ["`kd_loss_weight`", BOUNDS, "Received -5e-324"], id="negative-subnormal"),
        pytest.param(ABOVE_ONE, ["`kd_loss_weight`", BOUNDS, f"Received {ABOVE_ONE}"], id="just-above-1"),
        pytest.param(10**400, ["`kd_loss_weight`", BEYOND, f"Received {10**400}"], id="int-beyond-float64"),
        pytest.param(-(10**400), ["`kd_loss_weight`", BEYOND, f"Received {-(10**400)}"], id="negative-int-beyond-float64"),
        pytest.param(10**5000, ["`kd_loss_weight`", BEYOND, "Received an int of 16610 bits"], id="int-beyond-repr"),
        pytest.param(Fraction(10**400), ["`kd_loss_weight`", BEYOND, "Received Fraction(1000"], id="fraction-beyond-float64"),
        pytest.param(Fraction(10**5000), ["`kd_loss_weight`", BEYOND, "Received a Fraction too long"], id="fraction-beyond-repr"),
        pytest.param([0.5, 10**400], ["`kd_loss_weight[1]`", BEYOND], id="int-beyond-float64-in-a-list"),
        pytest.param({"A": 10**400}, ["`kd_loss_weight['A']`", BEYOND], id="int-beyond-float64-in-a-mapping"),
        pytest.param([0.5, math.nan], ["`kd_loss_weight[1]`", BOUNDS, "Received nan"], id="nan-in-a-list"),
        pytest.param([1.5, 0.0], ["`kd_loss_weight[0]`", BOUNDS, "Received 1.5"], id="above-1-in-a-list"),
        pytest.param([0.5, -0.5], ["`kd_loss_weight[1]`", BOUNDS, "Received -0.5"], id="negative-in-a-list"),
        pytest.param({"A": -1}, ["`kd_loss_weight['A']`", BOUNDS, "Received -1"], id="negative-in-a-mapping"),
        pytest.param(8.0, ["`kd_loss_weight`", BOUNDS, "Received 8.0", "use `WeightedSumLossBalancer`"], id="above-1"),
        pytest.param(np.array([1.5, 0]), ["`kd_loss_weight[0]`", BOUNDS, "`WeightedSumLossBalancer`"], id="above-1-in-an-array"),
        pytest.param(np.array(-1), ["`kd_loss_weight`", BOUNDS, "Correct this weight"], id="negative-array"),
        pytest.param(np.array([]), ["at least one KD loss"], id="empty-array"),
        pytest.param([], ["at least one KD loss", "Received []"], id="empty-list"),
        pytest.param((), ["at least one KD loss", "Received ()"], id="empty-tuple"),
        pytest.param({}, ["at least one KD loss", "Received {}"], id="empty-mapping"),
        pytest.param({"student_loss": 1.0}, ["at least one KD loss", "{'student_loss': 1.0}"], id="student-only"),
        pytest.param([0.5, 0.75], ["sum to at most 1", "[0.5, 0.75] (sum 1.25)", "Lower", "`WeightedSumLossBalancer`"], id="sum"),
        pytest.param([0.5, 0.5 + 2e-9], ["sum to at most 1", "(sum 1.00000000200"], id="sum-beyond-the-tolerance"),
        pytest.param({"A": 0.5, "B": 0.75}, ["sum to at most 1", "{'A': 0.5, 'B': 0.75} (sum 1.25)"], id="sum-of-a-mapping"),
        pytest.param({"A": 0.5, "student_loss": 0.25}, ["sum to 1", "student_loss", "(sum 0.75)"], id="student-sum-below-1"),
        pytest.param({"A": 0.5, "student_loss": 0.75}, ["sum to 1", "student_loss", "(sum 1.25)"], id="student-sum-above-1"),
        pytest.param({"A": 0.5, "student_loss": 0.5 + 2e-9}, ["sum to 1", "student_loss"], id="student-sum-just-off"),
    ],
)
def test_wrong_values(given, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        Settings(given)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("off", [-9e-10, 9e-10], ids=["below", "above"])
def test_named_student_may_be_off_by_the_tolerance(off):
    assert Settings({"A": 0.5, "student_loss": 0.5 + off}).student_loss_weight == 0.5 + off


FORMS = {
    "number": 0.3,
    "list": [0.1, 0.2],
    "tuple": (0.1, 0.2),
    "mapping": {"A": 0.1, "B": 0.2},
    "mapping-with-student": {"A": 0.1, "student_loss": 0.9},
}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_as_given(given):
    settings = Settings(given)
    assert settings.as_given == given
    assert type(settings.as_given) is type(given)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.array([0.1, 0.2]), [0.1, 0.2]),
        (np.array(0.1), 0.1),
        ((np.float64(0.1), np.array(0.2)), (0.1, 0.2)),
        ({"A": np.array(0.1)}, {"A": 0.1}),
    ],
    ids=["array", "scalar", "in-a-tuple", "in-a-mapping"],
)
def test_arrays_are_given_back_as_plain_python(given, plain):
    settings = Settings(given)
    assert repr(settings.as_given) == repr(plain)  # np.float64(0.1) has another
    assert settings == Settings(plain) == Settings.from_json(settings.to_json())
    assert json.loads(settings.to_json()) == json.loads(Settings(plain).to_json())


def test_as_given_is_a_copy_of_an_array_too():
    given = np.array([0.1, 0.2])
    settings = Settings(given)
    given[0] = 0.9
    assert settings.as_given == [0.1, 0.2]


def test_as_given_is_a_copy():
    given = [0.1, 0.2]
    settings = Settings(given)
    given[0] = 0.9
    settings.as_given[0] = 0.8
    assert settings.as_given == [0.1, 0.2]


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_json_round_trip(given):
    settings = Settings(given)
    text = settings.to_json()
    back = Settings.from_json(text)
    assert json.loads(text) == {"kd_loss_weight": list(given) if isinstance(given, tuple) else given}
    assert back == settings
    assert back.as_given == (list(given) if isinstance(given, tuple) else given)
    assert back.to_json() == text


def test_json_keeps_every_bit():
    given = [1 / 3, 5e-324, 0.1]
    assert Settings.from_json(Settings(given).to_json()).kd_loss_weight == tuple(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{", ["must be a JSON object", "text that is not valid JSON", "to_json"], id="no-json"),
        pytest.param("", ["must be a JSON object", "text that is not valid JSON"], id="empty"),
        pytest.param("0.5", ["exactly ['kd_loss_weight']", "Received ['float']"], id="number"),
        pytest.param("[0.5]", ["exactly ['kd_loss_weight']", "Received ['list']"], id="list"),
        pytest.param("{}", ["exactly ['kd_loss_weight']", "Received []"], id="missing"),
        pytest.param('{"kd_loss_weight": 0.5, "gamma": 1}', ["Received ['kd_loss_weight', 'gamma']"], id="unknown"),
        pytest.param('{"kd_loss_weight": NaN}', ["finite and in [0, 1]", "Received nan"], id="nan"),
        pytest.param('{"kd_loss_weight": [0.6, 0.6]}', ["sum to at most 1", "(sum 1.2)"], id="sum"),
    ],
)
def test_json_errors(text, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        Settings.from_json(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", ["true", "null", '"0.5"'])
def test_json_type_errors(value):
    with pytest.raises(TypeError, match="real number"):
        Settings.from_json(f'{{"kd_loss_weight": {value}}}')


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0.5, np.float64(0.5)),
        (1, 1.0),
        ([0.5, 0.25], (0.5, 0.25)),
        ({"A": 0.5, "B": 0.25}, {"B": 0.25, "A": 0.5}),
    ],
    ids=["numpy", "int", "list-tuple", "mapping-order"],
)
def test_equal_values_are_equal_settings(a, b):
    assert Settings(a) == Settings(b)
    assert hash(Settings(a)) == hash(Settings(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [(0.5, 0.25), ([0.5, 0.25], [0.25, 0.5]), (0.5, [0.5]), ([0.5], {"A": 0.5}), ({"A": 0.5}, {"B": 0.5})],
    ids=["value", "order", "number-list", "list-mapping", "names"],
)
def test_different_values_are_different_settings(a, b):
    assert Settings(a) != Settings(b)


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_pickle(given):
    settings = Settings(given)
    back = pickle.loads(pickle.dumps(settings))
    assert back == settings
    assert hash(back) == hash(settings)
    assert back.as_given == given
    assert type(back.as_given) is type(given)


def test_frozen():
    settings = Settings(0.5)
    with pytest.raises(AttributeError, match="kd_loss_weight"):
        settings.kd_loss_weight = 0.25  # type: ignore[misc]
