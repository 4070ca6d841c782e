"""The settings of the balancers that change over time: three forms, bounds at every step, JSON, equality, memory."""
# pyright: reportArgumentType=false, reportCallIssue=false
#   What is refused is wrong on purpose.

import copy
import json
import math
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_balancers import spec
from loss_balancers.spec import schedules
from loss_balancers.spec.registry import SETTINGS

Scheduled, WeightedSum = spec.ScheduledLossBalancerSettings, spec.WeightedSumLossBalancerSettings
EMANormalized, Logits = spec.EMANormalizedLossBalancerSettings, spec.LogitsAndIntermediatesLossBalancerSettings
DWA, SoftAdapt = spec.DWALossBalancerSettings, spec.SoftAdaptLossBalancerSettings
Geometric, STCH = spec.GeometricLossBalancerSettings, spec.STCHLossBalancerSettings
Random, ReLoBRaLo = spec.RandomLossBalancerSettings, spec.ReLoBRaLoLossBalancerSettings
Uncertainty, IMTL = spec.UncertaintyLossBalancerSettings, spec.IMTLLossBalancerSettings
FAMO = spec.FAMOLossBalancerSettings
ALL = [*SETTINGS.values()]

NAMES = ("student_loss", "MSELoss_0", "KLDivLoss_1")
RAMP = schedules.linear(0.0, 0.5, 4)

EXAMPLES = {
    "static": spec.StaticLossBalancerSettings({"MSELoss_0": 0.25}),
    "scheduled-shared": Scheduled(RAMP, NAMES),
    "scheduled-sequence": Scheduled([RAMP, 0.25], NAMES),
    "scheduled-mapping": Scheduled({"MSELoss_0": RAMP, "KLDivLoss_1": 0.25}),
    "scheduled-with-student": Scheduled({"MSELoss_0": schedules.linear(0.0, 1.0, 2), "student_loss": schedules.linear(1.0, 0.0, 2)}),
    "scheduled-named-by_name": Scheduled({"by_name": 0.5}),
    "weighted-sum": WeightedSum({"MSELoss_0": 3.0, "KLDivLoss_1": RAMP}, 0.5),
    "weighted-sum-no-student": WeightedSum({"points": schedules.tabulate(lambda step: step, 3)}),
    "ema": EMANormalized(NAMES),
    "ema-all": EMANormalized(NAMES, {"MSELoss_0": RAMP}, 0.5, 0.0, "student_loss", True),
    "ema-bounded": EMANormalized(NAMES, max_ratio=8),
    "logits": Logits(),
    "logits-all": Logits(RAMP, True, "KL_0"),
    "soft-adapt": SoftAdapt(NAMES),
    "soft-adapt-all": SoftAdapt(NAMES, {"MSELoss_0": RAMP}, "normalized", 0.5, 3, True, 2.0, "one"),
    "dwa": DWA(NAMES),
    "dwa-all": DWA(NAMES, {"MSELoss_0": RAMP}, 0.5, 3, 2.0, "one"),
    "geometric": Geometric(NAMES),
    "geometric-all": Geometric(NAMES, {"MSELoss_0": 0.1}, "K"),
    "stch": STCH(NAMES),
    "stch-all": STCH(NAMES, 0.1, {"MSELoss_0": 2}, {"MSELoss_0": 0.1}, "log", "one"),
    "random": Random(NAMES),
    "random-all": Random(NAMES, {"MSELoss_0": RAMP}, 2**63 - 1, "K"),
    "relobralo": ReLoBRaLo(NAMES),
    "relobralo-all": ReLoBRaLo(NAMES, {"MSELoss_0": RAMP}, 0.5, 0.25, 2.0, True, 7, 2.0, "one"),
    "uncertainty": Uncertainty(NAMES),
    "uncertainty-all": Uncertainty(NAMES, "regularized", {"MSELoss_0": 0.1}, "K"),
    "imtl": IMTL(NAMES),
    "imtl-all": IMTL(NAMES, -0.5, "one"),
    "famo": FAMO(NAMES),
    "famo-all": FAMO(NAMES, 0.5, 0.25, {"MSELoss_0": -1}, 0.0, "K"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_round_trip(name):
    given = EXAMPLES[name]
    for back in (type(given).from_json(given.to_json()), type(given).from_json(given.as_json())):
        assert back == given
        assert hash(back) == hash(given)
        assert back.to_json() == given.to_json()
        assert back.names == given.names
        assert back.state == given.state
    assert json.loads(given.to_json()) == given.as_json()  # nothing in it that JSON turns into something else


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
def test_copies_leave_the_tables_behind(name, copied):
    given = EXAMPLES[name]
    back = copied(given)
    assert back == given
    assert hash(back) == hash(given)
    assert "table" not in vars(back)
    if given.table is None:
        assert back.table is None
    elif name != "static":
        assert back.table.tobytes() == given.table.tobytes()


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.balancer)
def test_all_settings_offer_the_same(cls):
    assert issubclass(cls, spec.Settings)
    assert cls.__name__ == f"{cls.balancer}Settings"
    example = next(example for example in EXAMPLES.values() if type(example) is cls)
    for name in ("balancer", "names", "state", "as_json", "to_json"):
        assert hasattr(example, name)
    with pytest.raises(ValueError, match=rf"settings of {cls.balancer} must be a JSON object with exactly"):
        cls.from_json({"gamma": 1})
    for text in ("{", "", "[1,", '{"a": ' + "1" * 5000 + "}", "[" * 100_000):
        with pytest.raises(
            ValueError, match=rf"settings of {cls.balancer} must be a JSON object. Received text that is not valid JSON"
        ):
            cls.from_json(text)
    for other in ("[1]", "null", "0.5", [1], None, 0.5):
        with pytest.raises(ValueError, match=r"exactly \["):
            cls.from_json(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["one", "student_loss"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["points", "table", "by_name", "student_loss", "MSELoss_0"]), inner, max_size=3)
    ),
    max_leaves=12,
)

FIELDS = {
    Scheduled: ["kd_loss_weight", "names"],
    WeightedSum: ["weights", "student_weight"],
    EMANormalized: ["names", "weights", "beta", "eps", "target", "lagged"],
    Logits: ["kd_loss_scale", "skip_original_loss", "reference"],
    SoftAdapt: ["names", "weights", "variant", "beta", "order", "lagged", "max_ratio", "total_weight"],
    DWA: ["names", "weights", "temperature", "epoch_steps", "max_ratio", "total_weight"],
    Geometric: ["names", "weights", "total_weight"],
    STCH: ["names", "mu", "weights", "reference", "form", "total_weight"],
    Random: ["names", "weights", "seed", "total_weight"],
    ReLoBRaLo: ["names", "weights", "alpha", "beta", "temperature", "lagged", "seed", "max_ratio", "total_weight"],
    FAMO: ["names", "lr", "weight_decay", "min_losses", "eps", "total_weight"],
}


@pytest.mark.parametrize("cls", FIELDS, ids=lambda cls: cls.balancer)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_malformed_json_is_an_error_in_words(cls, data):
    """One field at a time made into any JSON: an error of `errors`, with what was received, or settings."""
    good = next(example for example in EXAMPLES.values() if type(example) is cls).as_json()
    field = data.draw(st.sampled_from(FIELDS[cls]))
    given = data.draw(JSON | st.builds(lambda x: {"by_name": x}, JSON) | st.builds(lambda x: [x, x], JSON))
    try:
        read = cls.from_json({**good, field: given})
    except (TypeError, ValueError) as error:
        words = str(error)
    else:
        assert cls.from_json(read.to_json()) == read
        return
    assert re.search(r"([Rr]eceived|Found|it is|it sums to) .*\. \w", words, re.DOTALL)


WEIGHT = st.floats(0.0, 0.25) | st.builds(
    schedules.cosine, st.floats(0.0, 0.25), st.floats(0.0, 0.25), st.integers(1, 50)
) | st.lists(st.floats(0.0, 0.25), min_size=1, max_size=9).map(lambda v: schedules.tabulate(v.__getitem__, len(v)))  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(WEIGHT, min_size=1, max_size=4), st.sampled_from(["shared", "sequence", "mapping", "sum", "ema"]))
def test_drawn_settings_round_trip_and_the_student_has_the_rest(weights, form):
    kd = [f"MSELoss_{i}" for i in range(len(weights))]
    given = {
        "shared": lambda: Scheduled(weights[0], ("student_loss", *kd)),
        "sequence": lambda: Scheduled(weights, ("student_loss", *kd)),
        "mapping": lambda: Scheduled(dict(zip(kd, weights, strict=True))),
        "sum": lambda: WeightedSum(dict(zip(kd, weights, strict=True)), weights[0]),
        "ema": lambda: EMANormalized(kd, dict(zip(kd, weights, strict=True))),
    }[form]()
    back = type(given).from_json(given.to_json())
    assert back == given
    assert hash(back) == hash(given)
    assert back.table.tobytes() == given.table.tobytes()
    if isinstance(given, Scheduled):
        used = weights[:1] if form == "shared" else weights
        curves = [schedules.as_schedule(weight, "").values() for weight in used]
        for step in range(len(given.table) + 2):
            total = 0.0
            for curve in curves:
                total += curve[min(step, len(curve) - 1)]
            row = given.table[min(step, len(given.table) - 1)]
            assert row[-1] == np.float32(1.0 - total)  # of the float64 weights, at every step, rounded once


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        pytest.param(Scheduled(RAMP, NAMES), [[0, 1], [0.125, 0.875], [0.25, 0.75], [0.375, 0.625], [0.5, 0.5]], id="shared"),
        pytest.param(Scheduled([0.25, schedules.linear(0, 0.5, 1)], NAMES), [[0.25, 0, 0.75], [0.25, 0.5, 0.25]], id="sequence"),
        pytest.param(Scheduled({"B": 0.25, "A": schedules.linear(0, 0.5, 1)}), [[0, 0.25, 0.75], [0.5, 0.25, 0.25]], id="mapping"),
        pytest.param(Scheduled({"B": 0.25}, ("B",)), [[0.25]], id="no-student"),
        pytest.param(Scheduled({"B": 0.25, "student_loss": 0.75}, ("B",)), [[0.25]], id="student-named-but-absent"),
        pytest.param(Scheduled(1.0, ("A", "student_loss")), [[1, 0]], id="nothing-left"),
        pytest.param(Scheduled([0.5, 0.5 - 9e-10], NAMES), [[0.5, np.float32(0.5 - 9e-10), 0]], id="within-the-tolerance"),
        pytest.param(WeightedSum({"B": 7, "A": RAMP}, 2.0).table[:2], [[0, 7, 2], [0.125, 7, 2]], id="weighted-sum"),
        pytest.param(WeightedSum({"A": 3e38}), [[3e38]], id="large"),
        pytest.param(WeightedSum({"A": 1e-39}), [[0]], id="flushed"),
        pytest.param(EMANormalized(NAMES, {"KLDivLoss_1": 2}), [[1, 2, 1]], id="ema"),
        pytest.param(Logits(RAMP), [[0], [0.125], [0.25], [0.375], [0.5]], id="logits"),
    ],
)
def test_tables(given, rows):
    table = given if isinstance(given, np.ndarray) else given.table
    assert table.dtype == np.float32
    assert table.tobytes() == np.array(rows, np.float32).tobytes()


def test_what_is_dropped_is_the_largest_weight_of_an_absent_student():
    assert Scheduled(schedules.linear(0.75, 0.25, 4), ("MSELoss_0",)).dropped == 0.75
    assert Scheduled({"B": 0.25, "student_loss": 0.75}, ("B",)).dropped == 0.75
    assert Scheduled(1.0, ("MSELoss_0",)).dropped == 0.0
    assert Scheduled(0.5, NAMES).dropped == 0.0


OVER = schedules.piecewise_linear({0: 0.5, 10: 1.5})
REFUSED = {
    "above-1": (lambda: Scheduled(OVER, NAMES), ValueError, "`kd_loss_weight` must be in [0.0, 1.0] at every step. At step 6 it is 1.0999999999999999, the first that is not. Lower the weight, or use `WeightedSumLossBalancer`"),
    "below-0": (lambda: Scheduled([0.5, schedules.linear(0.1, -0.1, 4)], NAMES), ValueError, "`kd_loss_weight[1]` must be in [0.0, 1.0] at every step. At step 3 it is -0.05000000000000001, the first that is not. Correct the weight or its schedule."),
    "by-name": (lambda: Scheduled({"A": schedules.tabulate([0.0, 0.0, 2.0].__getitem__, 3)}), ValueError, "`kd_loss_weight['A']` must be in [0.0, 1.0] at every step. At step 2 it is 2.0"),
    "sum": (lambda: Scheduled([0.75, RAMP], NAMES), ValueError, "must sum to at most 1 at every step. At step 3 it sums to 1.125, the first that is over. Lower the weights, or use `WeightedSumLossBalancer`"),
    "student-sum": (lambda: Scheduled({"A": RAMP, "student_loss": 1.0}), ValueError, "must sum to 1 at every step when it names `student_loss`. At step 1 it sums to 1.125"),
    "student-sum-below": (lambda: Scheduled({"A": schedules.linear(0.5, 0, 5), "student_loss": 0.5}), ValueError, "At step 1 it sums to 0.9"),
    "number-above-1": (lambda: Scheduled(1.5, NAMES), ValueError, "`kd_loss_weight` must be in [0.0, 1.0] at every step. At step 0 it is 1.5"),
    "nan": (lambda: Scheduled(math.nan, NAMES), ValueError, "`kd_loss_weight` must be finite. Received nan"),
    "string": (lambda: Scheduled("0.5", NAMES), TypeError, "`kd_loss_weight` must be a real number (int, float, or a scalar of NumPy, PyTorch or JAX on the host) or a schedule. Received '0.5' of type str. Pass `float('0.5')`"),
    "array-2d": (lambda: Scheduled(np.array([[0.5]]), NAMES), TypeError, "`kd_loss_weight` must be a real number"),
    "array-count": (lambda: Scheduled(np.array([0.5]), NAMES), ValueError, "Received 1 weights [Schedule(0: 0.5)] and 2 KD losses"),
    "array-bool": (lambda: WeightedSum({"A": np.array(True)}), TypeError, "`weights['A']` must be a real number"),
    "ema-beta-array": (lambda: EMANormalized(NAMES, beta=np.array([0.5])), TypeError, "`beta` must be a real number"),
    "ema-beta-yaml": (lambda: EMANormalized(NAMES, beta="1e-3"), TypeError, "`beta` must be a real number (int, float, or a scalar of NumPy, PyTorch or JAX on the host). Received '1e-3' of type str. Pass `float('1e-3')`"),
    "logits-yaml": (lambda: Logits("1e-3"), TypeError, "YAML reads 1e-3 as text and 1.0e-3 as a number"),
    "function": (lambda: Scheduled([lambda step: 0.5], NAMES), TypeError, "`kd_loss_weight[0]` must be a real number"),
    "empty-list": (lambda: Scheduled([], NAMES), ValueError, "at least one KD loss. Received []"),
    "empty-mapping": (lambda: Scheduled({}), ValueError, "at least one KD loss. Received {}"),
    "only-student": (lambda: Scheduled({"student_loss": 1.0}), ValueError, "at least one KD loss. Received {'student_loss': 1.0}"),
    "key": (lambda: Scheduled({0: 1.0}), TypeError, "`kd_loss_weight` must have strings as keys, the names of the losses. Received the key 0"),
    "no-names": (lambda: Scheduled(0.5), TypeError, "`names` must be a sequence of strings, the names of the losses. Received None"),
    "names-string": (lambda: Scheduled(0.5, "MSELoss_0"), TypeError, "`names` must be a sequence of strings"),
    "names-set": (lambda: Scheduled(0.5, {"MSELoss_0"}), TypeError, "`names` must be a sequence of strings"),
    "names-int": (lambda: Scheduled(0.5, ["MSELoss_0", 1]), TypeError, "`names` must be a sequence of strings"),
    "names-list": (lambda: Scheduled(0.5, [["MSELoss_0"]]), TypeError, "`names` must be a sequence of strings"),
    "names-twice": (lambda: Scheduled(0.5, ["A", "A"]), ValueError, "`names` must be distinct. Received ['A', 'A']"),
    "names-student-twice": (lambda: EMANormalized(["A", "student_loss", "student_loss"]), ValueError, "`names` must be distinct. Received ['A', 'student_loss', 'student_loss']"),
    "names-student-only": (lambda: Scheduled(0.5, ["student_loss"]), ValueError, "at least one KD loss. Received ['student_loss']"),
    "count": (lambda: Scheduled([0.5], NAMES), ValueError, "Received 1 weights [Schedule(0: 0.5)] and 2 KD losses ['MSELoss_0', 'KLDivLoss_1']"),
    "mismatch": (lambda: Scheduled({"A": 0.5}, ("B", "student_loss")), ValueError, "It names ['A']; received the KD losses ['B']"),
    "ambiguous": (lambda: Scheduled([0.5, 0.5], ("A", "B")), ValueError, "Name the weights"),
    "sum-list": (lambda: WeightedSum([1.0]), TypeError, "`weights` must be a mapping from the name of each loss to its weight. Received [1.0]"),
    "sum-student": (lambda: WeightedSum({"A": 1.0, "student_loss": 1.0}), ValueError, "`weights` must name KD losses only"),
    "sum-empty": (lambda: WeightedSum({}), ValueError, "at least one KD loss. Received []"),
    "sum-key": (lambda: WeightedSum({1: 1.0}), TypeError, "must be strings. Received the key 1"),
    "sum-negative": (lambda: WeightedSum({"A": schedules.linear(1, -1, 4)}), ValueError, "`weights['A']` must be in [0.0, 3.4028234663852886e+38] at every step. At step 3 it is -0.5"),
    "sum-too-large": (lambda: WeightedSum({"A": 1.0}, 1e39), ValueError, "`student_weight` must be in [0.0, 3.4028234663852886e+38] at every step. At step 0 it is 1e+39"),
    "sum-none": (lambda: WeightedSum({"A": None}), TypeError, "`weights['A']` must be a real number"),
    "ema-weights": (lambda: EMANormalized(NAMES, [1.0]), TypeError, "`weights` must be a mapping from the name of a loss to its value. Received [1.0] of type list"),
    "ema-unknown": (lambda: EMANormalized(NAMES, {"A": 1.0}), ValueError, "`weights` must name losses of `names`. Received ['A']; `names` are ['MSELoss_0', 'KLDivLoss_1', 'student_loss']"),
    "ema-target": (lambda: EMANormalized(NAMES, target="A"), ValueError, '`target` must be "one" or one of `names`. Received \'A\''),
    "ema-target-none": (lambda: EMANormalized(NAMES, target=None), ValueError, '`target` must be "one" or one of `names`. Received None'),
    "ema-target-array": (lambda: EMANormalized(NAMES, target=np.array(["one", "two"])), ValueError, '`target` must be "one" or one of `names`'),
    "ema-lagged": (lambda: EMANormalized(NAMES, lagged=1), TypeError, "`lagged` must be True or False. Received 1 of type int"),
    "ema-beta": (lambda: EMANormalized(NAMES, beta=1.5), ValueError, "`beta` must be in [0.0, 1.0]. Received 1.5"),
    "ema-beta-nan": (lambda: EMANormalized(NAMES, beta=math.nan), ValueError, "`beta` must be in [0.0, 1.0]. Received nan"),
    "ema-beta-type": (lambda: EMANormalized(NAMES, beta="0.9"), TypeError, "`beta` must be a real number"),
    "ema-eps": (lambda: EMANormalized(NAMES, eps=-1e-8), ValueError, "`eps` must be in [0.0, "),
    "ema-eps-inf": (lambda: EMANormalized(NAMES, eps=math.inf), ValueError, "`eps` must be in [0.0, "),
    "logits-scale": (lambda: Logits(-1), ValueError, "`kd_loss_scale` must be in [0.0, 3.4028234663852886e+38] at every step. At step 0 it is -1.0"),
    "logits-skip": (lambda: Logits(skip_original_loss=0), TypeError, "`skip_original_loss` must be True or False"),
    "logits-reference": (lambda: Logits(reference="student_loss"), ValueError, "`reference` must be None or the name of a KD loss. Received 'student_loss'"),
    "logits-reference-type": (lambda: Logits(reference=0), TypeError, "`reference` must be None or the name of a KD loss. Received 0"),
    "logits-none": (lambda: Logits().roles(("MSELoss_0", "student_loss")), ValueError, "exactly one KD loss whose name holds \"Logits\", the reference. Found [] among ['MSELoss_0']"),
    "logits-two": (lambda: Logits().roles(("Logits_0", "Logits_1", "student_loss")), ValueError, "Found ['Logits_0', 'Logits_1'] among"),
    "logits-named": (lambda: Logits(reference="A").roles(("Logits_0", "student_loss")), ValueError, "exactly one KD loss named 'A', the reference. Found []"),
    "logits-no-student": (lambda: Logits().roles(("Logits_0",)), ValueError, "must hold `student_loss` unless `skip_original_loss` is set. Received ['Logits_0']"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, kind, words = REFUSED[name]
    with pytest.raises(kind, match=re.escape(words)) as caught:
        make()
    assert type(caught.value) is kind


def test_roles():
    names = ("MSELoss_0", "LogitsKLLoss_1", "CosineLoss_2", "student_loss")
    assert Logits().roles(names) == (1, (0, 2), 3)
    assert Logits(skip_original_loss=True).roles(names) == (1, (0, 2), None)
    assert Logits(reference="MSELoss_0").roles(names) == (0, (1, 2), 3)
    assert Logits(skip_original_loss=True).roles(names[:-1]) == (1, (0, 2), None)


def entries_of(settings):
    """The entries without their start, which is 0 for all of them."""
    assert not any(entry.start for entry in settings.state)
    return [entry[:5] for entry in settings.state]


def test_state_entries_are_a_table_per_balancer():
    counters = [("steps", "int32", (), 0, 1), ("skipped", "int32", (), 0, 1)]
    assert entries_of(Scheduled(0.5, NAMES)) == [*counters, ("pending", "float32", (2,), 0, 2)]
    assert entries_of(WeightedSum({"A": 1.0})) == [*counters, ("pending", "float32", (2,), 0, 2)]
    assert entries_of(Logits()) == [*counters, ("pending", "float32", (2,), 0, 2)]
    sums = [("total", "float32", (3,), 3, 1), ("fix", "float32", (3,), 3, 1)]
    assert entries_of(EMANormalized(NAMES)) == [*counters, ("pending", "float32", (8,), 3, 2), *sums]
    twice = [("moments", "float32", (6,), 3, 2), ("corrections", "float32", (6,), 3, 2)]
    assert entries_of(FAMO(NAMES)) == [*counters, ("pending", "float32", (14,), 3, 4), ("logits", "float32", (3,), 3, 1), *twice]
    assert spec.StaticLossBalancerSettings().state == ()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Scheduled(0.5, NAMES), Scheduled(schedules.constant(0.5), NAMES[::-1])),
        (Scheduled([0.5, 0.25], NAMES), Scheduled((np.float64(0.5), 0.25), list(NAMES))),
        (Scheduled({"A": 0.5, "B": 0.25}), Scheduled({"B": 0.25, "A": 0.5}, ("B", "A", "student_loss"))),
        (WeightedSum({"A": 1, "B": 2.0}), WeightedSum({"B": 2, "A": 1.0})),
        (EMANormalized(NAMES), EMANormalized(NAMES[::-1], {"MSELoss_0": 1})),
        (Scheduled(0.5, NAMES), Scheduled(np.array(0.5), NAMES)),
        (Scheduled([0.5, 0.25], NAMES), Scheduled(np.array([0.5, 0.25]), NAMES)),
        (WeightedSum({"A": 1}, 2.0), WeightedSum({"A": np.array(1)}, np.array(2.0))),
        (
            EMANormalized(NAMES, {"MSELoss_0": 0.5}, 0.5, 0.25),
            EMANormalized(NAMES, {"MSELoss_0": np.array(0.5)}, np.array(0.5), np.array(0.25)),
        ),
        (Logits(2.0), Logits(np.array(2))),
    ],
    ids=["number", "sequence", "mapping", "sum", "ema", "scalar", "array", "sum-scalars", "ema-scalars", "logits-scalar"],
)
def test_equal_settings_are_equal_and_hash_alike(a, b):
    assert a == b
    assert hash(a) == hash(b)


def test_another_curve_is_other_settings():
    assert Scheduled(RAMP, NAMES) != Scheduled(schedules.cosine(0.0, 0.5, 4), NAMES)
    assert Scheduled(RAMP, NAMES) != Scheduled(schedules.linear(0.0, 0.5, 5), NAMES)


def test_a_million_steps_take_the_memory_that_is_stated():
    """4 MB a weight to keep, 85 MB while it is built (docs/schedules.md)."""
    tables = [schedules.cosine(0.0, 0.5, 1_000_000), schedules.linear(0.5, 0.0, 1_000_000)]
    tracemalloc.start()
    try:
        given = Scheduled(tables, NAMES)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert given.table.shape == (1_000_001, 3)
    assert held < 12.1e6
    assert peak < 85e6
