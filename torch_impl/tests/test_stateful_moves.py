"""State goes where the model goes, and stays what it is."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from with_state import EXAMPLES, FIRST, train

from loss_balancers.parity.bits import assert_same_bits


def as_saved(balancer):
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CONVERSIONS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "float": lambda m: m.float(),
    "to-dtype": lambda m: m.to(torch.float16),
    "to-device-and-dtype": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
    "share_memory": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_formats_are_not_the_models(make, draw, convert, assert_same_state, values):
    balancer = train(make(), draw)
    model = nn.Sequential(nn.Linear(2, 2), balancer)
    before = values(balancer)
    convert(model)
    assert {x.dtype for x in balancer.state_dict().values()} <= {torch.int32, torch.float32}
    assert_same_state(balancer, before)
    other = train(make(), draw)
    assert_same_bits(balancer(draw(9)), other(draw(9)))
    balancer.step()
    other.step()
    assert_same_state(balancer, other)


def test_state_moves_to_a_device_and_back(make, draw, values, assert_same_state):
    balancer = make()
    fresh = values(balancer)
    balancer.to("meta")
    assert {x.device.type for x in balancer.state_dict().values()} == {"meta"}
    balancer(draw(device="meta"))
    balancer.step()
    assert {x.device.type for x in balancer.weights(draw(device="meta")).values()} == {"meta"}
    assert {x.device.type for x in balancer.breakdown(draw(device="meta")).values()} == {"meta"}
    balancer.to_empty(device="cpu")  # what was on "meta" was nothing: a fresh balancer
    assert_same_state(balancer, fresh)
    assert_same_state(train(balancer, draw), train(make(), draw))
    assert_same_bits(balancer(draw(9)), train(make(), draw)(draw(9)))


@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_a_balancer_made_on_meta(make, draw, way, assert_same_state):
    trained = train(make(), draw)
    with torch.device("meta"):
        model = nn.Sequential(nn.Identity(), make())
    if way == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(nn.Sequential(nn.Identity(), trained).state_dict(), assign=way == "assign")
    assert_same_state(model[1], trained)
    assert_same_bits(model[1](draw(9)), copy.deepcopy(trained)(draw(9)))


def test_a_state_cannot_be_loaded_in_place_on_meta(make, draw):
    """It would be lost, and the balancer begin at zero."""
    trained = train(make(), draw)
    with torch.device("meta"):
        balancer = make()
    words = r'A state must be loaded into a balancer that has values. This one is on the device "meta".*`to_empty\(device=...\)`'
    with pytest.raises(RuntimeError, match=words):
        balancer.load_state(trained.export_state())
    model = nn.Sequential(nn.Identity(), balancer)
    with pytest.raises(RuntimeError, match=rf"1.steps: {words}"):
        model.load_state_dict(nn.Sequential(nn.Identity(), trained).state_dict())
    balancer.load_state_dict(balancer.state_dict())  # there is nothing to lose


def test_a_state_cannot_be_exported_from_meta(make):
    with torch.device("meta"):
        balancer = make()
    words = r'A state must be exported from a balancer that has values. This one is on the device "meta".*`to_empty\(device=...\)`'
    with pytest.raises(RuntimeError, match=words):
        balancer.export_state()


@pytest.mark.parametrize("call", ["forward", "observe", "weights", "breakdown"])
@pytest.mark.parametrize("auto_step", [None, 1])
def test_losses_on_another_device_change_nothing(make, draw, call, auto_step, values, assert_same_state):
    balancer = make(auto_step=auto_step)
    balancer(draw())
    before = values(balancer)
    words = r"on the device of the balancer's state, cpu\. Received losses on meta\. Move the balancer there with `\.to\(device\)`"
    with pytest.raises(ValueError, match=words):
        getattr(balancer, call)(draw(device="meta"))
    assert_same_state(balancer, before)


def loaded(balancer, other, **options):
    balancer.load_state_dict(other.state_dict(), **options)
    return balancer


def used(balancer, draw):
    balancer(draw())
    balancer.step()
    balancer.load_state(
        balancer.export_state() | {"state": {name: np.zeros_like(x) for name, x in balancer.export_state()["state"].items()}}
    )
    return balancer


#: How a balancer can come into being, or come by new tensors.
ORIGINS = {
    "made": lambda make, draw: make(),
    "deepcopy": lambda make, draw: copy.deepcopy(make()),
    "pickle": lambda make, draw: pickle.loads(pickle.dumps(make())),
    "to_empty": lambda make, draw: make().to("meta").to_empty(device="cpu"),
    "half": lambda make, draw: make().half(),
    "type": lambda make, draw: make().type(torch.float16),
    "load_state_dict": lambda make, draw: loaded(make(), make()),
    "assign": lambda make, draw: loaded(make(), make(), assign=True),
    "used": lambda make, draw: used(make(), draw),
}


#: Compiled, of each balancer the first example, from every third origin, the next one from others: where the state came from is
#: nothing that settings change.
FROM_INFERENCE_MODE = [
    *((name, origin, "eager") for name in EXAMPLES for origin in ORIGINS),
    *((name, origin, "compiled") for i, name in enumerate(FIRST) if name in EXAMPLES for origin in list(ORIGINS)[i % 3 :: 3]),
]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("make", "origin", "mode"), FROM_INFERENCE_MODE, indirect=["make"])
def test_a_balancer_from_inference_mode_is_trained(make, draw, origin, mode, assert_same_state):
    with torch.inference_mode():
        balancer = ORIGINS[origin](make, draw)
    outside = train(make(), draw)
    assert not any(x.is_inference() for x in balancer.buffers())
    forward = torch.compile(balancer, fullgraph=True, backend="aot_eager") if mode == "compiled" else balancer
    for i in range(4):
        losses = draw(i, requires_grad=True)
        forward(losses).backward()
        assert all(x.grad is not None for x in losses.values())
        if i < 3:
            balancer.step()
    assert_same_state(balancer, outside)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda b: pickle.loads(pickle.dumps(b)),
    "state_dict": None,
    "torch.save": None,
    "export": None,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_goes_on_as_the_original_does(make, draw, way, assert_same_state):
    balancer = train(make(), draw)
    if COPIES[way] is not None:
        other = COPIES[way](balancer)
    else:
        other = make()
        if way == "export":
            other.load_state(balancer.export_state())
        else:
            other.load_state_dict(balancer.state_dict() if way == "state_dict" else as_saved(balancer))
    assert_same_state(other, balancer)
    before = balancer.pending.clone()
    train(other, draw, start=20)
    assert_same_bits(balancer.pending, before)  # a copy shares nothing
    other.load_state(balancer.export_state())
    for i in range(5):
        assert_same_bits(other(draw(i)), balancer(draw(i)))
        other.step()
        balancer.step()
    assert_same_state(other, balancer)


def test_a_whole_model_is_saved_with_its_balancer(make, draw, assert_same_state):
    model = nn.ModuleDict({"student": nn.Linear(2, 2), "balancer": train(make(), draw)})
    saved = as_saved(model)
    counters = ["balancer.steps", "balancer.skipped", "balancer.pending"]
    assert list(saved)[:5] == ["student.weight", "student.bias", *counters]
    assert all(type(x) is torch.Tensor for x in saved.values())
    other = nn.ModuleDict({"student": nn.Linear(2, 2), "balancer": make()})
    assert str(other.load_state_dict(saved)) == "<All keys matched successfully>"
    assert_same_state(other["balancer"], model["balancer"])


def test_loading_is_strict(make, draw, values, assert_same_state):
    balancer = train(make(), draw)
    saved = balancer.state_dict()
    for name in saved:
        with pytest.raises(RuntimeError, match=f'Missing key\\(s\\) in state_dict: "{name}"'):
            make().load_state_dict({other: x for other, x in saved.items() if other != name})
    with pytest.raises(RuntimeError, match='Unexpected key\\(s\\) in state_dict: "more"'):
        make().load_state_dict({**saved, "more": torch.ones(())})
    with pytest.raises(RuntimeError, match="size mismatch for pending"):
        make().load_state_dict({**saved, "pending": torch.ones(9)})
    partly = make()
    assert partly.load_state_dict({}, strict=False).missing_keys == list(saved)
    assert_same_state(partly, make())
    with pytest.raises(RuntimeError, match="size mismatch"):
        partly.load_state_dict({"pending": torch.ones(9)}, strict=False)
    assert_same_state(partly, make())
    train(partly, draw)  # and it still works


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_with_one_wrong_entry_changes_no_other(make, draw, assign, values, assert_same_state):
    """PyTorch's own loading writes what it finds before it says what is wrong."""
    trained, balancer = train(make(), draw), make()
    saved = trained.state_dict()
    balancer(draw(7))
    before, buffers = values(balancer), dict(balancer.named_buffers())
    for name in saved:
        missing = {other: x for other, x in saved.items() if other != name}
        for wrong in (missing, {**saved, name: torch.ones(9, 9)}, {**saved, name: "text"}, {**saved, "more": torch.ones(())}):
            with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
                balancer.load_state_dict(wrong, assign=assign)
            assert_same_state(balancer, before)
            assert all(x is buffers[other] for other, x in balancer.named_buffers())
    balancer.load_state_dict(saved, assign=assign)
    assert_same_state(balancer, trained)


@pytest.mark.parametrize("assign", [False, True])
def test_formats_are_not_the_checkpoints(make_ema, draw, assign):
    saved = {name: x.half() for name, x in train(make_ema(), draw).state_dict().items()}
    balancer = make_ema()
    balancer.load_state_dict(saved, assign=assign)
    assert [x.dtype for x in balancer.state_dict().values()] == [torch.int32] * 2 + [torch.float32] * 3
    assert_same_bits(balancer.total, saved["total"].float())
    assert_same_bits(balancer.pending, saved["pending"].float())


def test_assign_takes_the_tensors(make, draw):
    saved = as_saved(train(make(), draw))
    balancer = make()
    balancer.load_state_dict(saved, assign=True)
    assert {name: x.data_ptr() for name, x in balancer.state_dict().items()} == {name: x.data_ptr() for name, x in saved.items()}


def test_hooks_of_state_dicts_see_all_of_it(make, draw, assert_same_state):
    balancer, seen = train(make(), draw), []
    balancer.register_state_dict_post_hook(lambda module, state, prefix, metadata: seen.extend(state))
    saved = balancer.state_dict()
    assert seen == list(saved)
    other = make()
    other.register_load_state_dict_pre_hook(lambda module, state, *rest: state.update(pending=state.pop("observations")))
    other.load_state_dict({"observations" if name == "pending" else name: x for name, x in saved.items()})
    assert_same_state(other, balancer)


def test_keep_vars_gives_the_tensors_themselves(make):
    balancer = make()
    assert balancer.state_dict(keep_vars=True)["pending"] is balancer.pending


def test_state_and_table_are_buffers(make):
    """All of it, for whoever asks, the balancer or a model; the table is not saved."""
    balancer = make()
    table = [] if balancer._table is None else ["_table"]
    assert list(dict(balancer.named_buffers())) == [*balancer.state_dict(), *table]
    model = nn.Sequential(balancer)
    assert list(dict(model.named_buffers())) == [*model.state_dict(), *(f"0.{name}" for name in table)]
    assert not list(balancer.parameters())


def test_a_reduction_that_is_a_module_moves_too(make, draw):
    balancer = make()
    balancer.set_student_loss_reduction_fn(nn.Linear(3, 1))
    balancer.double()
    assert {x.dtype for x in balancer.parameters()} == {torch.float64}
    assert "_student_loss_reduction_fn.weight" in balancer.state_dict()
    assert balancer.pending.dtype == torch.float32
