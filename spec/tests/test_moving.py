"""State that moves: what is taken over, what a change of losses means, what is refused and in which words."""

import copy
import re
from typing import Any

import numpy as np
import pytest

from loss_balancers import spec
from loss_balancers.spec import schedules
from loss_balancers.spec.moving import SCHEMA

NAMES = ("MSELoss_0", "KLDivLoss_1", "student_loss")
SETTINGS = spec.EMANormalizedLossBalancerSettings(NAMES, {"MSELoss_0": schedules.linear(0.0, 1.0, 3)})


def state(**changed: Any) -> dict[str, Any]:
    count = len(NAMES)
    held = {
        "steps": np.array(3, np.int32),
        "skipped": np.array(1, np.int32),
        "pending": np.zeros(2 * count + 2, np.float32),
        "total": np.arange(1, count + 1, dtype=np.float32),
        "fix": np.arange(11, count + 11, dtype=np.float32),
    }
    exported = spec.exported(SETTINGS.balancer, SETTINGS.as_json(), SETTINGS.names, held)
    return {**exported, **changed}


def loaded(exported: Any, settings: Any = SETTINGS, renamed: Any = None) -> dict[str, np.ndarray]:
    return spec.checked_state(settings.balancer, settings.as_json(), settings.names, settings.state, exported, renamed)


def test_what_is_exported_is_what_is_loaded():
    exported = state()
    before = copy.deepcopy(exported)
    arrays = loaded(exported)
    assert list(arrays) == ["steps", "skipped", "pending", "total", "fix"]
    for name, array in arrays.items():
        assert array.tobytes() == exported["state"][name].tobytes()
        assert array.dtype == exported["state"][name].dtype
        assert array.shape == exported["state"][name].shape
        array[...] = 9  # a copy
    assert all((exported["state"][name] == before["state"][name]).all() for name in arrays)
    assert exported["schema"] == SCHEMA == "loss-balancers-state/2"


def test_the_order_of_the_parts_does_not_matter():
    exported = state()
    turned = {key: exported[key] for key in reversed(exported)}
    turned["state"] = {key: exported["state"][key] for key in reversed(exported["state"])}
    assert loaded(turned)["total"].tolist() == [1, 2, 3]


def test_tuples_for_lists_are_the_same_state():
    exported = state(names=NAMES)
    exported["settings"] = {**exported["settings"], "names": NAMES}
    assert loaded(exported)["total"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("names", "renamed", "total", "fix"),
    [
        pytest.param(NAMES, {}, [1, 2, 3], [11, 12, 13], id="other-settings"),
        pytest.param(("A_0", "KLDivLoss_1", "student_loss"), {"A_0": "MSELoss_0"}, [1, 2, 3], [11, 12, 13], id="renamed"),
        pytest.param(
            ("KLDivLoss_0", "MSELoss_1", "student_loss"), {"KLDivLoss_0": "KLDivLoss_1", "MSELoss_1": "MSELoss_0"}, [2, 1, 3], [12, 11, 13],
            id="reordered",
        ),
        pytest.param(("MSELoss_0", "KLDivLoss_1"), {}, [1, 2], [11, 12], id="one-dropped"),
        pytest.param(("MSELoss_0", "Cosine_1", "student_loss"), {"Cosine_1": None}, [1, 0, 3], [11, 0, 13], id="one-afresh"),
        pytest.param(
            ("MSELoss_0", "KLDivLoss_1", "Cosine_2", "Huber_3", "student_loss"), {"Cosine_2": None, "Huber_3": "MSELoss_0"}, [1, 2, 0, 1, 3],
            [11, 12, 0, 11, 13], id="one-added-one-split",
        ),
    ],
)  # fmt: skip
def test_losses_that_have_changed(names, renamed, total, fix):
    arrays = loaded(state(), spec.EMANormalizedLossBalancerSettings(names), renamed)
    assert arrays["total"].tolist() == total
    assert arrays["fix"].tolist() == fix
    assert arrays["pending"].tolist() == [0.0] * (2 * len(names) + 2)
    assert (int(arrays["steps"]), int(arrays["skipped"])) == (3, 1)


def test_pending_sums_go_with_their_losses():
    exported = state()
    exported["state"]["pending"] = np.array([5, 6, 7, 2, 3, 4, 4, 1], np.float32)
    assert loaded(exported)["pending"].tolist() == [5, 6, 7, 2, 3, 4, 4, 1]
    settings = spec.EMANormalizedLossBalancerSettings(("KLDivLoss_0", "student_loss"))
    assert loaded(exported, settings, {"KLDivLoss_0": "KLDivLoss_1"})["pending"].tolist() == [6, 7, 3, 4, 4, 1]
    settings = spec.EMANormalizedLossBalancerSettings(("KLDivLoss_0", "MSELoss_1", "student_loss"))
    renamed = {"KLDivLoss_0": None, "MSELoss_1": "MSELoss_0"}
    assert loaded(exported, settings, renamed)["pending"].tolist() == [0, 5, 7, 0, 2, 4, 4, 1]  # a new loss has nothing pending


def test_a_state_of_the_schema_before_is_read():
    """It has one count, of calls, for all losses."""
    exported = state(schema="loss-balancers-state/1")
    exported["state"]["pending"] = np.array([5, 6, 7, 2, 1], np.float32)
    before = copy.deepcopy(exported)
    assert loaded(exported)["pending"].tolist() == [5, 6, 7, 2, 2, 2, 2, 1]
    assert exported["schema"] == before["schema"]
    assert exported["state"]["pending"].tolist() == before["state"]["pending"].tolist()
    settings = spec.EMANormalizedLossBalancerSettings(("KLDivLoss_0", "student_loss"))
    assert loaded(exported, settings, {"KLDivLoss_0": "KLDivLoss_1"})["pending"].tolist() == [6, 7, 2, 2, 2, 1]
    exported["state"]["pending"] = np.zeros(8, np.float32)  # of the schema of today
    with pytest.raises(ValueError, match=re.escape("an element per loss and two more. Received float32 of shape (8,)")):
        loaded(exported)
    for pending in (None, [1.0], np.zeros((), np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32)):
        exported["state"]["pending"] = pending
        with pytest.raises(ValueError, match="The entry 'pending' of the state must be an array"):
            loaded(exported)
    with pytest.raises(ValueError, match="another entries"):
        loaded({**exported, "state": 3})


def test_balancers_that_observe_nothing_keep_their_counts_whatever_their_losses():
    ours = spec.WeightedSumLossBalancerSettings({"A": 1.0, "B": 2.0})
    exported = spec.exported(
        "WeightedSumLossBalancer",
        {},
        ["C"],
        {"steps": np.int32(3), "skipped": np.int32(0), "pending": np.array([2, 0], np.float32)},
    )
    assert loaded(exported, ours, {"A": "C", "B": "C"})["pending"].tolist() == [2, 0]


def test_a_balancer_of_any_losses():
    settings = spec.LogitsAndIntermediatesLossBalancerSettings()
    held = {"steps": np.int32(3), "skipped": np.int32(0), "pending": np.zeros(2, np.float32)}
    exported = spec.exported(settings.balancer, settings.as_json(), settings.names, held)
    assert int(loaded(exported, settings)["steps"]) == 3
    with pytest.raises(ValueError, match=r"must have names of this balancer as keys. Received \['A'\]; this balancer has \[\]"):
        loaded(exported, settings, {"A": None})


class Tensor:
    """What is no NumPy array though NumPy could make one of it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.zeros(3, np.float32)


def entry(name: str, value: Any) -> dict[str, Any]:
    exported = state()
    return {**exported, "state": {**exported["state"], name: value}}


REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    # what, renamed, class, words
    "none": (None, None, TypeError, "must be a mapping with exactly `schema`, `balancer`, `settings`, `names` and `state`. Received NoneType. Pass what `export_state()` returned"),
    "list": ([1], None, TypeError, "Received list"),
    "empty": ({}, None, TypeError, "Received []"),
    "missing-key": ({k: v for k, v in state().items() if k != "names"}, None, TypeError, "Received ['schema', 'balancer', 'settings', 'state']"),
    "one-more-key": ({**state(), 3: 4}, None, TypeError, "'state', 3]"),
    "schema": (state(schema="loss-balancers-state/3"), None, ValueError, "another schema than this balancer. Expected 'loss-balancers-state/2'; received 'loss-balancers-state/3'"),
    "schema-type": (state(schema=np.zeros(3)), None, ValueError, "another schema than this balancer. Expected 'loss-balancers-state/2'; received array("),
    "balancer": (state(balancer="WeightedSumLossBalancer"), None, ValueError, "another balancer than this balancer. Expected 'EMANormalizedLossBalancer'; received 'WeightedSumLossBalancer'"),
    "settings": (state(settings={**SETTINGS.as_json(), "beta": 0.5}), None, ValueError, "must have the settings of this balancer. Expected {'beta': 0.99}; received {'beta': 0.5}. Build"),
    "settings-missing-compared": (state(settings={}), None, ValueError, "received {}. Build the balancer as the one that was exported, or pass `renamed={}`"),
    "settings-type": (state(settings=7), None, ValueError, "must have the settings of this balancer. Expected {'names':"),
    "settings-array": (state(settings={**SETTINGS.as_json(), "beta": np.zeros(2)}), None, ValueError, "Expected {'beta': 0.99}; received {'beta': array("),
    "names": (state(names=["A", "B", "student_loss"]), None, ValueError, "must be of the same losses. This balancer has ['MSELoss_0', 'KLDivLoss_1', 'student_loss']; the state is of ['A', 'B', 'student_loss']. Pass `renamed=`"),
    "names-order": (state(names=["KLDivLoss_1", "MSELoss_0", "student_loss"]), None, ValueError, "must be of the same losses"),
    "names-type": (state(names=3), None, ValueError, "the state is of 3."),
    "names-string": (state(names="MSELoss_0"), None, ValueError, "the state is of 'MSELoss_0'."),
    "names-ints": (state(names=[1, 2, 3]), {}, ValueError, "the state is of [1, 2, 3]."),
    "names-twice": (state(names=[*NAMES, "student_loss"]), {}, ValueError, "must be of the same losses"),
    "renamed-absent": (state(), {"MSELoss_0": "A", "KLDivLoss_1": None}, ValueError, "`renamed` must have names of the state as values, or None. Received {'MSELoss_0': 'A'}; the state is of ['MSELoss_0', 'KLDivLoss_1', 'student_loss']"),
    "renamed-absent-unsaid": (state(names=["A", "KLDivLoss_1", "student_loss"]), {}, ValueError, "must be of the same losses"),
    "renamed-unknown": (state(), {"A": "MSELoss_0"}, ValueError, "`renamed` must have names of this balancer as keys. Received ['A']; this balancer has ['MSELoss_0', 'KLDivLoss_1', 'student_loss']"),
    "renamed-type": (state(), ["A"], TypeError, "`renamed` must be None or a mapping from a name of this balancer to its name in the state, or to None. Received ['A']"),
    "renamed-value": (state(), {"MSELoss_0": 3}, TypeError, "Received {'MSELoss_0': 3}"),
    "renamed-unhashable": (state(), {"MSELoss_0": ["A"]}, TypeError, "Received {'MSELoss_0': ['A']}"),
    "state-type": (state(state=[]), None, ValueError, "another entries than this balancer. Expected ['steps', 'skipped', 'pending', 'total', 'fix']; received 'list'"),
    "entry-missing": (state(state={k: v for k, v in state()["state"].items() if k != "fix"}), None, ValueError, "received ['steps', 'skipped', 'pending', 'total']"),
    "entry-more": (entry("gamma", np.zeros(3)), None, ValueError, "'fix', 'gamma']"),
    "entry-none": (entry("total", None), None, ValueError, "The entry 'total' of the state must be an array, float32 of shape (3,). Received one of type NoneType"),
    "entry-list": (entry("total", [1.0, 2.0, 3.0]), None, ValueError, "Received one of type list"),
    "entry-tensor": (entry("total", Tensor()), None, ValueError, "Received one of type Tensor"),
    "entry-int": (entry("steps", 3), None, ValueError, "The entry 'steps' of the state must be an array, int32 of shape (). Received one of type int"),
    "entry-float64": (entry("total", np.zeros(3)), None, ValueError, "float32 of shape (3,). Received float64 of shape (3,)"),
    "entry-object": (entry("total", np.array(["a", None, 3], object)), None, ValueError, "Received object of shape (3,)"),
    "entry-0-d": (entry("total", np.float32(1.0)), None, ValueError, "float32 of shape (3,). Received float32 of shape ()"),
    "entry-1-d": (entry("steps", np.zeros(1, np.int32)), None, ValueError, "int32 of shape (). Received int32 of shape (1,)"),
    "entry-length": (entry("pending", np.zeros(3, np.float32)), None, ValueError, "float32 of shape (8,). Received float32 of shape (3,)"),
    "entry-swapped-bytes": (entry("total", np.zeros(3, ">f4")), None, ValueError, "Received >f4 of shape (3,)"),
    "entry-nan": (entry("total", np.array([1, np.nan, 2], np.float32)), None, ValueError, "The entry 'total' of the state must hold finite numbers, and counts of at least 0. Received [1.0, nan, 2.0]"),
    "entry-inf": (entry("pending", np.full(8, np.inf, np.float32)), None, ValueError, "The entry 'pending' of the state must hold finite"),
    "entry-negative": (entry("steps", np.array(-1, np.int32)), None, ValueError, "The entry 'steps' of the state must hold finite numbers, and counts of at least 0. Received -1"),
    "entry-negative-count": (entry("pending", np.array([0, 0, 0, 1, -1, 1, 1, 0], np.float32)), None, ValueError, "counts of at least 0"),
    "entry-negative-calls": (entry("pending", np.array([0, 0, 0, 1, 1, 1, -1, 0], np.float32)), None, ValueError, "counts of at least 0"),
    "entry-negative-left-out": (entry("pending", np.array([0, 0, 0, 1, 1, 1, 1, -1], np.float32)), None, ValueError, "counts of at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    exported, renamed, kind, words = REFUSED[name]
    with pytest.raises(kind, match=re.escape(words)) as caught:
        loaded(exported, renamed=renamed)
    assert type(caught.value) is kind


def test_settings_are_not_compared_where_losses_are_renamed():
    assert loaded(state(settings={}), renamed={})["total"].tolist() == [1, 2, 3]


def test_a_message_does_not_hold_a_whole_table():
    exported = state(settings={**SETTINGS.as_json(), "weights": {"MSELoss_0": {"table": "A" * 100_000}}})
    with pytest.raises(ValueError, match="characters") as caught:
        loaded(exported)
    assert len(str(caught.value)) < 2000
