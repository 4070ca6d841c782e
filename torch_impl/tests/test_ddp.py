"""DistributedDataParallel leaves each rank what its balancer has observed, and `step()` is refused within `join()`."""

import copy
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from loss_balancers.torch import EMANormalizedLossBalancer
from loss_balancers.torch.wrapped import PassedBy

TESTS = Path(__file__).parent
program = SimpleNamespace(**runpy.run_path(str(TESTS / "ranks_program.py")))
EXPECTED = program.split(1, 1)


@pytest.fixture(scope="module")
def ranks(seen_by_ranks):
    """What each of two ranks saw."""
    return [json.loads((seen_by_ranks / f"ddp-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("mode", ["folds", "folds, compiled step"])
def test_models_that_share_compiled_code(ranks, mode):
    """No Python of the library runs for the second model and the third, and nothing is compiled anew for them."""
    for seen in ranks:
        assert seen[mode]["states"] == [EXPECTED] * 3
        assert len(set(seen[mode]["graphs"])) == 1


@pytest.mark.parametrize(
    "case",
    [
        "wrapped again beside",
        "put in later",
        "put in later, within a part",
        "put in a copy later",
        "wrapped after an observation",
        "deepcopy",
        "pickle",
        "aliased",
        "aliased by a view",
    ],
)
def test_each_rank_keeps_what_it_observed(ranks, case):
    for seen in ranks:
        assert seen[case] == EXPECTED


@pytest.mark.parametrize("case", ["inserted into a list", "inserted into a sequence", "moved up in a list"])
def test_a_list_that_changes_without_a_hook(ranks, case):
    """And others' buffers are sent as ever, also where ours are called the same, or were in their place."""
    for seen in ranks:
        state, others = seen[case]
        assert state == EXPECTED
        assert others == ([1.0, 2.0] if "inserted" in case else [2.0])


def test_what_others_do_works_as_without_us(ranks):
    for seen in ranks:
        assert seen["half made"] == "nothing"
        assert seen["a pickle names"] == [False, True]


def test_committed_state_goes_to_all_ranks_when_the_model_is_wrapped(ranks):
    """As DDP does with all of a model, since rank 0 may be the one that has loaded it; but not what each rank has for itself."""
    assert [seen["loaded"] for seen in ranks] == [3, 3]
    assert [seen["loaded, each its own"] for seen in ranks] == [3, 4]
    assert [seen["loaded, aliased"] for seen in ranks] == [3, 3]


def test_nothing_of_a_balancer_is_sent_at_a_forward(ranks):
    for seen in ranks:
        assert seen["sent"] == [["mine", "ours"]] * 2 + [["ours"]] * 2


def test_step_is_refused_within_join_and_not_after_it(ranks):
    for seen in (seen["joined"] for seen in ranks):
        for i in range(2):
            for where in ("within", "of no wrapper"):
                assert "must not be called within `join()`" in seen[f"{where}, {i}"]
            assert seen[f"of another wrapper, {i}"] == seen[f"after, {i}"] == "nothing"
        assert seen["after an error"] == seen["another afterwards"] == "nothing"
        assert seen["state"] == EXPECTED


def test_a_parameter_of_a_balancer_is_not_passed_by():
    balancer = EMANormalizedLossBalancer(program.NAMES)
    balancer.learned = nn.Parameter(torch.ones(()))
    balancer.register_buffer("kept", torch.ones(()))
    passed_by = PassedBy(("a.b",), nn.Sequential(nn.BatchNorm1d(1), balancer))
    assert all(name in passed_by for name in ("1.pending", "1._table", "1.kept", "a.b"))
    assert not any(name in passed_by for name in ("1.learned", "0.running_mean", "0.weight", "2.pending", "pending"))


def test_a_name_with_dots_of_its_own_is_found():
    model = nn.Sequential(nn.Linear(1, 1))
    setattr(model, "kd.loss", EMANormalizedLossBalancer(program.NAMES))  # which `add_module` refuses
    setattr(model[0], "of.the.part", EMANormalizedLossBalancer(program.NAMES))
    names = [name for name, _ in model.named_buffers()]
    assert {"kd.loss.pending", "0.of.the.part.pending"} <= set(names)
    assert all(name in PassedBy((), model) for name in names)


def test_a_buffer_of_a_balancer_is_known_by_any_name():
    """Also of a copy of the model, of one that was pickled, and after a conversion that changes nothing."""
    balancer = EMANormalizedLossBalancer(program.NAMES)
    model = nn.Module()
    model.register_buffer("same", balancer.pending)
    model.register_buffer("part", balancer.total[1:])
    model.register_buffer("other", torch.zeros(8))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("nothing", torch.zeros(0))
    whole = nn.ModuleList([balancer, model])
    for change in (lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: x.float()):
        changed: Any = change(whole)
        assert all(name in PassedBy((), changed) for name in ("1.same", "0.pending"))
        shared = changed[1].part.data_ptr() == changed[0].total[1:].data_ptr()  # a pickle makes two tensors of a view and its base
        assert ("1.part" in PassedBy((), changed)) == shared
        assert not any(name in PassedBy((), changed) for name in ("1.other", "1.sparse", "1.nothing"))


def test_a_buffer_beside_one_of_a_balancer_in_memory_is_not_passed_by():
    balancer, memory = EMANormalizedLossBalancer(program.NAMES), torch.zeros(16)
    balancer.pending, model = memory[:8], nn.BatchNorm1d(8)
    model.running_mean = memory[8:]
    assert "running_mean" not in PassedBy((), model)
    model.running_mean = memory[7:15]
    assert "running_mean" in PassedBy((), model)


IMPORTED_LATE = """
import sys, torch
from torch import distributed as dist, nn
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
wrapper = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
from loss_balancers.torch import EMANormalizedLossBalancer
wrapper.module.balancer = EMANormalizedLossBalancer(("student_loss", "MSE_0"))
for _ in range(2):
    wrapper._assign_modules_buffers()
    assert wrapper.modules_buffers == [], wrapper.named_module_buffers
dist.destroy_process_group()
"""


def test_a_wrapper_from_before_the_import(tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTED_LATE, str(tmp_path)], check=True, timeout=600)
