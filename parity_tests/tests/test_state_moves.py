"""A run that moves between frameworks, or to a file and back, at any moment gives the same bits as one that stays."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from runs import BALANCERS, FRAMEWORKS, NAMES, Outcome, drawn, forward, make, state_of, step

from loss_balancers import spec

STEPS = 30
MICRO_BATCHES = 2

Move = Callable[[Any, str], Any]


def _run(balancer: Any, settings: Any, moves: dict[int, str], by: Move) -> Iterator[Outcome]:
    """Every forward's outcome and every state of a run of two micro-batches a step.

    ``moves`` says after which forward the balancer moves, and where to.
    """
    losses = drawn(STEPS * MICRO_BATCHES)
    for i, row in enumerate(losses):
        yield forward(balancer, row)
        if i in moves:
            carried = make(moves[i], settings)
            by(balancer, carried)
            balancer = carried
        if i % MICRO_BATCHES == MICRO_BATCHES - 1:
            step(balancer)
            yield state_of(balancer)


def _in_memory(source: Any, target: Any) -> None:
    target.load_state(source.export_state())


@pytest.fixture
def by_file(tmp_path: Path) -> Move:
    def move(source: Any, target: Any) -> None:
        spec.save_state(tmp_path / "balancer.safetensors", source.export_state())
        target.load_state(spec.read_state(tmp_path / "balancer.safetensors"))

    return move


@pytest.fixture(scope="module")
def unmoved() -> dict[str, list[Outcome]]:
    """The run in torch that never moves, for each balancer; the run in JAX is the same."""
    runs = {}
    for name, settings in BALANCERS.items():
        runs[name], in_jax = (list(_run(make(framework, settings), settings, {}, _in_memory)) for framework in FRAMEWORKS)
        assert runs[name] == in_jax
        assert len({outcome["aggregate"] for outcome in runs[name] if "aggregate" in outcome}) > STEPS  # nothing stands still
    return runs


#: Each example begins in one framework and moves in memory, and begins in the other and moves by a file; the next one reverses that.
MOVES = [(name, way, FRAMEWORKS[(i + j) % 2]) for i, name in enumerate(BALANCERS) for j, way in enumerate(("in-memory", "by-file"))]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("name", "way", "start"), MOVES)
def test_there_and_back_mid_way(name: str, way: str, start: str, unmoved: Any, by_file: Move) -> None:
    """Once after a commit, once with an observation pending."""
    other = next(framework for framework in FRAMEWORKS if framework != start)
    moves = {19: other, 36: start}
    settings = BALANCERS[name]
    assert list(_run(make(start, settings), settings, moves, by_file if way == "by-file" else _in_memory)) == unmoved[name]


@pytest.mark.parametrize("name", ["weighted-sum", "ema"])
def test_at_every_forward_of_the_run(name: str, unmoved: Any) -> None:
    """Sixty moves in one run: with and without an observation pending."""
    settings = BALANCERS[name]
    moves = {i: FRAMEWORKS[(i + 1) % 2] for i in range(STEPS * MICRO_BATCHES)}
    assert list(_run(make("torch", settings), settings, moves, _in_memory)) == unmoved[name]


def test_a_state_that_is_not_carried_shows() -> None:
    """What the tests above would see if `load_state` did nothing."""
    settings = BALANCERS["ema"]
    runs = [list(_run(make("torch", settings), settings, {19: "jax"}, by)) for by in (_in_memory, lambda source, target: None)]
    assert runs[0][:29] == runs[1][:29]  # ten steps of two forwards and a state; the tenth commit comes after the move
    assert runs[0][29] != runs[1][29]


@pytest.mark.parametrize("name", BALANCERS)
def test_both_export_the_same(name: str) -> None:
    exports = []
    for framework in FRAMEWORKS:
        balancer = make(framework, BALANCERS[name])
        for row in drawn(5):
            forward(balancer, row)
            step(balancer)
        exports.append(balancer.export_state())
    ours, theirs = exports
    assert list(ours) == list(theirs) == ["schema", "balancer", "settings", "names", "state"]
    assert {**ours, "state": None} == {**theirs, "state": None}
    assert list(ours["state"]) == list(theirs["state"]) == [entry.name for entry in BALANCERS[name].state]
    for entry in BALANCERS[name].state:
        for array in (ours["state"][entry.name], theirs["state"][entry.name]):
            assert type(array) is np.ndarray
            assert (array.dtype, array.shape) == (entry.dtype, entry.shape)
    assert type(BALANCERS[name]).from_json(ours["settings"]) == BALANCERS[name]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_was_exported_does_not_change(framework: str) -> None:
    balancer = make(framework, BALANCERS["ema"])
    exported = balancer.export_state()
    before = copy.deepcopy(exported)
    forward(balancer, drawn(1)[0])
    step(balancer)
    other = make(framework, BALANCERS["ema"])
    other.load_state(exported)
    forward(other, drawn(1)[0])
    step(other)
    assert all((exported["state"][name] == before["state"][name]).all() for name in before["state"])
    assert state_of(other) == state_of(balancer)


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("source", FRAMEWORKS)
def test_renamed_losses_go_on_as_they_were(source: str, target: str) -> None:
    """The KD losses change names and places, one is dropped, one is new: what stays has the weights it would have had."""
    old = spec.EMANormalizedLossBalancerSettings(NAMES, beta=0.9)
    new = spec.EMANormalizedLossBalancerSettings(("student_loss", "KLDivLoss_0", "CosineLoss_5"), beta=0.9)
    renamed = {"KLDivLoss_0": "MSE_1", "CosineLoss_5": None}
    before, after = make(source, old), make(target, new)
    for row in drawn(8):
        forward(before, row)
        step(before)
    after.load_state(before.export_state(), renamed=renamed)
    held, taken = before.export_state()["state"], after.export_state()["state"]
    # Canonical order: LogitsKL_0, MSE_1, student_loss; now KLDivLoss_0, CosineLoss_5, student_loss.
    for name in ("total", "fix"):
        assert taken[name].tolist() == [held[name][1], 0.0, held[name][2]]
    (row,) = drawn(1, seed=9)
    renamed_row = {"student_loss": row["student_loss"], "KLDivLoss_0": row["MSE_1"], "CosineLoss_5": row["LogitsKL_0"]}
    ours, theirs = forward(before, row), forward(after, renamed_row)
    assert theirs["student_loss"] == ours["student_loss"]
    assert theirs["KLDivLoss_0"] == ours["MSE_1"]
    assert theirs["CosineLoss_5"] != ours["LogitsKL_0"]  # which has no past


def test_pending_observations_move_with_their_names() -> None:
    old = spec.EMANormalizedLossBalancerSettings(NAMES)
    new = spec.EMANormalizedLossBalancerSettings(("student_loss", "KLDivLoss_0", "MSELoss_1"))
    renamed = {"KLDivLoss_0": "MSE_1", "MSELoss_1": "LogitsKL_0"}
    before, after = make("torch", old), make("jax", new)
    (row,) = drawn(1)
    forward(before, row)
    after.load_state(before.export_state(), renamed=renamed)
    step(before)
    step(after)
    held, taken = before.export_state()["state"]["total"], after.export_state()["state"]["total"]
    assert taken.tolist() == held[[1, 0, 2]].tolist()
    assert held.any()


def _other(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda exported: {**exported, "state": {**exported["state"], name: value}}


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], Any, type[Exception], str]] = {
    # what is made of a good state, renamed, class, words
    "none": (lambda exported: None, None, TypeError, "A state must be a mapping"),
    "missing": (lambda exported: {**exported, "names": NAMES[:2]}, None, ValueError, "must be of the same losses"),
    "of-another": (lambda exported: make("torch", BALANCERS["logits"]).export_state(), None, ValueError, "another balancer"),
    "of-other-settings": (lambda exported: make("jax", BALANCERS["ema-lagged"]).export_state(), None, ValueError, "'beta': 0.5, 'target': 'one'"),
    "tensor": (_other("total", torch.ones(3)), None, ValueError, "Received one of type Tensor"),
    "last-entry": (_other("fix", np.array([1, 2, np.nan], np.float32)), None, ValueError, "must hold finite numbers"),
    "float64": (_other("fix", np.ones(3)), None, ValueError, "Received float64 of shape (3,)"),
    "0-d": (_other("total", np.float32(1)), None, ValueError, "Received float32 of shape ()"),
    "unknown-name": (lambda exported: exported, {"A": None}, ValueError, "must have names of this balancer as keys"),
    "absent-name": (lambda exported: exported, {"LogitsKL_0": "A"}, ValueError, "`renamed` must have names of the state as values, or None. Received {'LogitsKL_0': 'A'}"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing_and_both_say_the_same(name: str) -> None:
    change, renamed, kind, words = REFUSED[name]
    messages = []
    for framework in FRAMEWORKS:
        balancer = make(framework, BALANCERS["ema"])
        for row in drawn(3):
            forward(balancer, row)
            step(balancer)
        forward(balancer, drawn(1)[0])
        before = state_of(balancer)
        with pytest.raises(kind, match=re.escape(words)) as raised:
            balancer.load_state(change(balancer.export_state()), renamed=renamed)
        assert type(raised.value) is kind
        messages.append(str(raised.value))
        assert state_of(balancer) == before
    assert messages[0] == messages[1]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", BALANCERS)
def test_in_a_checkpoint_of_torch_as_docs_state_has_it(name: str, framework: str, tmp_path: Path) -> None:
    """Plain `torch.load` refuses NumPy arrays; allowed by name, they come back bit for bit. A `state_dict` needs none of that."""
    source, target = make(framework, BALANCERS[name]), make("torch", BALANCERS[name])
    forward(source, drawn(1)[0])
    torch.save({"balancer": source.export_state()}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"(?s)Weights only load failed.*numpy"):
        torch.load(tmp_path / "checkpoint.pt")
    of_numpy = [np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Int32DType, np.zeros(0).__reduce__()[0]]
    with torch.serialization.safe_globals(of_numpy):
        target.load_state(torch.load(tmp_path / "checkpoint.pt")["balancer"])
    assert state_of(target) == state_of(source)
    torch.save(target.state_dict(), tmp_path / "state_dict.pt")
    again = make("torch", BALANCERS[name])
    again.load_state_dict(torch.load(tmp_path / "state_dict.pt"))
    assert state_of(again) == state_of(source)


def test_the_state_loads_into_a_compiled_step() -> None:
    """A state that is loaded has the types it had: JAX does not trace again."""
    traces = []

    @nnx.jit
    def call(balancer: Any, losses: Any) -> Any:
        traces.append(1)
        return balancer(losses)

    balancer, source = make("jax", BALANCERS["ema"]), make("torch", BALANCERS["ema"])
    rows = [{name: np.array(value) for name, value in row.items()} for row in drawn(4)]
    call(balancer, rows[0])
    forward(source, rows[1])
    step(source)
    balancer.load_state(source.export_state())
    call(balancer, rows[2])
    balancer.load_state(balancer.export_state())
    call(balancer, rows[3])
    assert len(traces) == 1
