"""Every golden vector on every lane of this host, compared as bits."""

import pytest

from loss_balancers.parity.golden.vectors import LABELS, installed_vectors
from loss_balancers.parity.lanes.known import find_lanes
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.run import run_lane
from loss_balancers.spec import Group, load_golden
from loss_balancers.spec.registry import SETTINGS

GROUPS = [group for vectors in installed_vectors().values() for group in vectors.groups]
COLUMNS = {(group.balancer, group.label) for group in GROUPS}
STATIC = load_golden()
PROMISED = {
    *(f"torch-cpu-{mode}" for mode in ("eager", "compiled", "vmap", "step")),
    *(f"jax-cpu-{mode}" for mode in ("eager", "jit", "vmap", "scan", "remat", "step", "sharded", "x64")),
}


def test_all_promised_lanes_are_known() -> None:
    assert {lane.name for lane in find_lanes()} >= PROMISED


def test_there_are_enough_vectors_in_every_column() -> None:
    counts = {label: sum(len(group.vectors) for group in GROUPS if group.label == label) for label in LABELS}
    assert sum(counts.values()) >= 400
    assert min(counts.values()) >= 100


LANES = [lane.name for lane in find_lanes()]
#: The lanes that run all vectors here. JAX has so many lanes that each vector is run on one or two of them.
IN_FULL = ("torch-cpu-eager",)


def chosen(lane: Lane, label: str) -> list[Group]:
    """The vectors of a column that are run here: on all lanes but one, each balancer has one label, and on the next lane the next.

    `make parity` and `make evidence` run them all, which takes the compilers a quarter of an hour.
    """
    if lane.name in IN_FULL:
        return GROUPS
    turn = LANES.index(lane.name)
    labels = {name: [label for label in LABELS if (name, label) in COLUMNS] for name in SETTINGS}
    at = {name: its[(i + turn) % len(its)] for i, (name, its) in enumerate(labels.items())}
    return [group for group in GROUPS if at[group.balancer] == label]


def test_every_balancer_and_every_label_is_run_on_each_lane_and_every_vector_in_each_framework() -> None:
    in_all: dict[str, set[tuple[str, str]]] = {}
    for lane in find_lanes():
        ran = {(group.balancer, label) for label in LABELS for group in chosen(lane, label) if group.label == label}
        assert {balancer for balancer, _ in ran} == set(SETTINGS), lane.name
        assert {label for _, label in ran} == set(LABELS), lane.name
        if lane.device == "cpu":
            in_all.setdefault(lane.framework, set()).update(ran)
    assert in_all == {"torch": COLUMNS, "jax": COLUMNS}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("lane", find_lanes(), ids=lambda lane: lane.name)
def test_golden_vectors_are_bit_identical(lane: Lane, label: str) -> None:
    if reason := lane.why_absent():
        pytest.skip(reason)
    groups = chosen(lane, label)
    cells = run_lane(lane, groups, [label])
    assert [cell.balancer for cell in cells] == list(dict.fromkeys(group.balancer for group in groups if group.label == label))
    for cell in cells:
        if cell.absent is None:
            assert cell.vectors > 0
            assert cell.identical == cell.vectors, f"{cell.balancer}: first {cell.first}; worst {cell.worst}"
        else:
            assert lane.device != "cpu", cell


def test_a_lane_that_is_off_by_one_bit_is_found() -> None:
    """The comparison of lanes can fail: a lane whose every aggregate has its last bit flipped agrees on nothing."""
    eager = next(lane for lane in find_lanes() if lane.name == "torch-cpu-eager")

    def off_by_one(groups):
        for results in eager.run(groups):
            yield [r._replace(aggregate=(r.aggregate[0], r.aggregate[1] ^ 1)) for r in results]

    (cell,) = run_lane(eager._replace(run=off_by_one), STATIC, ["f32"])
    # NaN aggregates stay NaN with a flipped bit, and agree by class; an infinity becomes a NaN, a zero a subnormal.
    nan = sum(vector.aggregate != vector.aggregate for group in STATIC if group.label == "f32" for vector in group.vectors)
    assert cell.identical == nan
    assert cell.first is not None
    assert cell.first.what == "the aggregate"
