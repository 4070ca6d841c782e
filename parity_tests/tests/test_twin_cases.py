"""The losses that twins are given: drawn ones, those of the hypothesis strategy, and how a case is read."""

import math
import random
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, seed, settings

from loss_balancers.parity import assert_twins, drawn_cases, loss_dicts
from loss_balancers.parity.bits import array_bits, as_numpy, to_bits
from loss_balancers.parity.twins.cases import FORMATS_OF_LABEL, read_cases
from loss_balancers.spec import FORMATS


def test_drawn_cases_are_the_same_every_time_and_hold_the_hard_ones() -> None:
    names = ["student_loss", "A_0", "B_1"]
    cases = drawn_cases(61, names=names, formats=["f16", "mixed"], seed=3)
    assert repr(cases) == repr(drawn_cases(61, names=names, formats=["f16", "mixed"], seed=3))  # repr: NaN is not itself
    assert repr(cases) != repr(drawn_cases(61, names=names, formats=["f16", "mixed"], seed=4))
    assert len(cases) == 61
    assert all(sorted(case) == sorted(names) for case in cases)
    assert [sorted({fmt for fmt, _ in case.values()}) for case in cases] == [["f16"]] * 31 + [["bf16", "f32"]] * 30
    for rows in (cases[:31], cases[31:]):
        values = [[value for _, value in case.values()] for case in rows]
        flat = [(fmt, value) for case in rows for fmt, value in case.values()]
        assert any(all(math.copysign(1, v) < 0 and v == 0 for v in row) for row in values)
        assert any(len(set(row)) == 1 and row[0] not in (0.0,) for row in values)
        assert any({math.inf, -math.inf} <= set(row) for row in values)
        assert any(math.isnan(value) for _, value in flat)
        assert any(0 < value < FORMATS[fmt].tiny for fmt, value in flat)  # type: ignore[index]
        assert all(to_bits(value, fmt) >= 0 for fmt, value in flat)  # raises where the format does not hold the value


def test_a_case_is_rounded_once() -> None:
    # Halfway between two bf16 numbers, plus a little that float32 would drop: rounding by way of float32 gives the even one.
    value = 1 + 2**-8 + 2**-40
    (read,) = read_cases([{"once": ("bf16", value), "f32": 0.1, "zero": ("f16", -0.0), "int": 3, "own": ml_dtypes.bfloat16(2.0)}])
    assert float(read["once"]) == 1 + 2**-7
    assert read["f32"].dtype == np.float32
    assert float(read["f32"]) == float(np.float32(0.1))
    assert array_bits(read["zero"]) == 0x8000
    assert float(read["int"]) == 3.0
    assert read["own"].dtype.name == "bfloat16"


def test_a_case_is_a_copy() -> None:
    mine = np.ones(2, np.float32)
    (read,) = read_cases([{"a": mine}])
    mine[0] = 5
    assert read["a"].tolist() == [1, 1]


# --- the hypothesis strategy ----------------------------------------------------------------------------------------

QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("label", list(FORMATS_OF_LABEL))
def test_the_strategy_generates_what_it_says(label: str) -> None:
    seen: set[str] = set()
    kinds = set()

    @seed(20260101)
    @settings(max_examples=400, **QUIET)
    @given(loss_dicts(formats=[label], min_kd=2, max_kd=3))
    def collect(losses) -> None:
        names = sorted(losses)
        assert names in (
            ["KLDivLoss_1", "MSELoss_0", "student_loss"],
            ["CosineEmbeddingLoss_2", "KLDivLoss_1", "MSELoss_0", "student_loss"],
        )
        seen.add(f"{len(names)} losses")
        if list(losses) != names:
            seen.add("another order")
        values = [value for _, value in losses.values()]
        if len(set(values)) == 1 and values[0] != 0 and math.isfinite(values[0]):
            seen.add("ties")
        for fmt, value in losses.values():
            kinds.add(fmt)
            assert math.isnan(value) or as_numpy(read_cases([{"x": (fmt, value)}])[0]["x"]).astype(np.float64) == value
            seen.add(_kind(fmt, value))

    collect()
    assert kinds == set(FORMATS_OF_LABEL[label])
    assert seen >= {
        "zero",
        "-zero",
        "inf",
        "-inf",
        "nan",
        "subnormal",
        "-subnormal",
        "tiny",
        "normal",
        "-normal",
        "ties",
        "another order",
    }
    assert seen >= {"3 losses", "4 losses"}


def _kind(fmt: str, value: float) -> str:
    if math.isnan(value):
        return "nan"
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return f"{sign}zero"
    if math.isinf(value):
        return f"{sign}inf"
    if abs(value) == FORMATS[fmt].tiny:  # type: ignore[index]
        return f"{sign}tiny"
    return f"{sign}subnormal" if abs(value) < FORMATS[fmt].tiny else f"{sign}normal"  # type: ignore[index]


def test_the_strategy_s_arguments() -> None:
    @seed(1)
    @settings(max_examples=50, **QUIET)
    @given(loss_dicts(["x"], special=False, formats=["f16"]), loss_dicts(student=False, min_kd=1, max_kd=1))
    def check(named, alone) -> None:
        ((fmt, value),) = named.values()
        assert list(named) == ["x"]
        assert fmt == "f16"
        assert 2**-4 <= value <= 16
        assert list(alone) == ["MSELoss_0"]

    check()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"names": "ab"}, TypeError, "`names` must be a sequence of strings"),
        ({"names": ["a", "a"]}, ValueError, "distinct names"),
        ({"formats": ["f8"]}, ValueError, "`formats` must be a sequence of"),
        ({"min_kd": 0}, ValueError, "`min_kd` must be at least 1 and at most `max_kd`. Received 0 and 4"),
        ({"min_kd": 5}, ValueError, "Received 5 and 4"),
    ],
)
def test_wrong_arguments_of_the_strategy(arguments, error, words) -> None:
    with pytest.raises(error) as raised:
        loss_dicts(**arguments)
    assert words in str(raised.value)


def test_without_hypothesis_the_strategy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"needs hypothesis, which is not installed. Install .* its extra `\[test\]`"):
        loss_dicts()


def test_hypothesis_finds_and_shrinks_a_difference() -> None:
    """Twins that add in another order differ only now and then, on any processor: a drawn case that shows it is found."""
    ours, theirs = (lambda loss: (loss["a"] + loss["b"]) + loss["c"]), (lambda loss: loss["a"] + (loss["b"] + loss["c"]))

    def differ(losses) -> bool:
        try:
            # Eager, because a jitted lane compiles anew for each call of `assert_twins`.
            assert_twins(ours, theirs, cases=[losses], cotangents=[1.0], lanes=["torch-cpu-eager", "jax-cpu-eager"])
        except AssertionError:
            return True
        return False

    strategy = loss_dicts(["a", "b", "c"], formats=["f32"], special=False)
    losses = find(strategy, differ, settings=settings(max_examples=200, **QUIET), random=random.Random(1))
    assert differ(losses)
