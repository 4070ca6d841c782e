"""Canonical order."""

import random

import pytest

from loss_balancers.spec import STUDENT_LOSS_KEY, canonical_order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(("MSE_10", "MSE_2", "KL_1"), ("KL_1", "MSE_2", "MSE_10"), id="2-before-10"),
        pytest.param(("A_008", "B_07", "C_7000"), ("B_07", "A_008", "C_7000"), id="leading-zeros-do-not-count"),
        pytest.param(("A_1", "B_0"), ("B_0", "A_1"), id="zero"),
        pytest.param(("A_007", "B_7"), ("A_007", "B_7"), id="one-idx-twice-by-code-point"),
        pytest.param(("b_1", "a_10", "a_2", "c_1"), ("a_10", "a_2", "b_1", "c_1"), id="one-idx-twice-spoils-all"),
        pytest.param(("A_10", "B_2", "C"), ("A_10", "B_2", "C"), id="one-without-idx-spoils-all"),
        pytest.param(("A_\u0663", "B_2"), ("A_\u0663", "B_2"), id="arabic-digits-are-no-idx"),
        pytest.param(("A_2\u00b2", "B_1"), ("A_2\u00b2", "B_1"), id="superscripts-are-no-idx"),
        pytest.param(("A_+3", "B_1"), ("A_+3", "B_1"), id="signs-are-no-idx"),
        pytest.param(("A_1_0", "B_1"), ("A_1_0", "B_1"), id="the-last-underscore-counts"),
        pytest.param(("A3", "B1"), ("A3", "B1"), id="digits-without-underscore"),
        pytest.param(("A_", "B_1"), ("A_", "B_1"), id="underscore-without-digits"),
        pytest.param(("_3", "_1"), ("_1", "_3"), id="idx-alone"),
        pytest.param(("a", "B", "\u00e9", "Z"), ("B", "Z", "a", "\u00e9"), id="by-code-point"),
        pytest.param((f"A_1{'0' * 5000}", f"B_9{'0' * 4999}"), (f"B_9{'0' * 4999}", f"A_1{'0' * 5000}"), id="idx-of-5000-digits"),
    ],
)
def test_canonical_order(names, expected):
    assert canonical_order(names) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("MSE_10", "MSE_2", "KL_1", "MSE_0", STUDENT_LOSS_KEY),
        ("A_007", "B_7", "C_1"),
        ("soft", "hard", STUDENT_LOSS_KEY, "a_1"),
    ],
    ids=["distinct-idx", "duplicate-idx", "no-idx"],
)
def test_order_given_does_not_matter(names):
    expected = canonical_order(names)
    rng = random.Random(0)
    for _ in range(20):
        assert canonical_order(tuple(rng.sample(names, len(names)))) == expected


@pytest.mark.parametrize("kd", ["zzz", "MSE_0", "Student_loss"])
def test_student_comes_last(kd):
    assert canonical_order((STUDENT_LOSS_KEY, kd)) == (kd, STUDENT_LOSS_KEY)


def test_student_does_not_count_as_a_name_without_idx():
    assert canonical_order(("A_10", STUDENT_LOSS_KEY, "A_9")) == ("A_9", "A_10", STUDENT_LOSS_KEY)


@pytest.mark.parametrize("names", [(), (STUDENT_LOSS_KEY,)], ids=["empty", "student-only"])
def test_no_kd_loss(names):
    with pytest.raises(ValueError, match=r"at least one KD loss\. Received \[.*\].*MSELoss_0"):
        canonical_order(names)


@pytest.mark.parametrize("name", [0, None, ("MSE", 0)], ids=repr)
def test_names_are_strings(name):
    with pytest.raises(TypeError, match="names of the losses must be strings") as caught:
        canonical_order(("MSE_0", name))
    assert repr(name) in str(caught.value)
