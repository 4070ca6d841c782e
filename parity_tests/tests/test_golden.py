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


#: Every column of the vectors, a balancer's beside each other.
IN_ORDER = [column for name in SETTINGS for label in LABELS if (column := (name, label)) in COLUMNS]
JAX = [lane.name for lane in find_lanes() if lane.name in PROMISED and lane.framework == "jax"]
#: A lane runs every eighth column, from this one on: JAX's eight lanes share them out. Every balancer has four columns at least,
#: of which Inductor runs one.
BEGINS = {name.replace("-cpu", ""): i for i, name in enumerate(JAX)} | {"torch-compiled": 3, "torch-vmap": 1, "torch-step": 7}


def chosen(lane: Lane, label: str) -> list[Group]:
    """The vectors of a column that are run here: all in eager PyTorch, and on each other lane an eighth.

    `make parity` and `make evidence` run them all, which takes the compilers a quarter of an hour.
    """
    mode = f"{lane.framework}-{lane.mode}"  # the same columns on whatever device
    its = IN_ORDER if mode == "torch-eager" else IN_ORDER[BEGINS[mode] :: 8]
    return [group for group in GROUPS if group.label == label and (group.balancer, label) in its]


def test_every_vector_is_run_in_each_framework_and_every_balancer_is_compiled_in_each() -> None:
    ran = {
        lane.name: {(group.balancer, label) for label in LABELS for group in chosen(lane, label)}
        for lane in find_lanes()
        if lane.name in PROMISED
    }
    for lane, its in ran.items():
        assert len({label for _, label in its}) >= 3, lane
        assert len({balancer for balancer, _ in its}) >= 6, lane
    assert ran["torch-cpu-eager"] == COLUMNS
    assert set().union(*(ran[lane] for lane in JAX)) == COLUMNS
    assert {balancer for lane in ("torch-cpu-compiled", "torch-cpu-step") for balancer, _ in ran[lane]} == set(SETTINGS)
    assert {balancer for lane in JAX if lane != "jax-cpu-eager" for balancer, _ in ran[lane]} == set(SETTINGS)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("lane", find_lanes(), ids=lambda lane: lane.name)
def test_golden_vectors_are_bit_identical(lane: Lane, label: str) -> None:
    if reason := lane.why_absent():
        pytest.skip(reason)
    groups = chosen(lane, label)
    cells = run_lane(lane, groups, [label])
    assert [cell.balancer for cell in cells] == list(dict.fromkeys(group.balancer for group in groups))
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
