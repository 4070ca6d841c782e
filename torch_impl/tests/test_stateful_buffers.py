"""State is what PyTorch calls buffers: whoever replaces, stacks, exports or converts those of a model has those of its balancer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.utils._python_dispatch import TorchDispatchMode

from loss_balancers import spec
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import EMANormalizedLossBalancer

NAMES = ("LogitsKL_0", "MSE_1", "student_loss")


class Model(nn.Module):
    """A student with a balancer inside."""

    def __init__(self, balancer):
        super().__init__()
        self.scale = nn.Linear(1, 1)
        self.balancer = balancer

    def forward(self, x):
        y = self.scale(x).mean()
        return self.balancer({name: (y - i).square() for i, name in enumerate(NAMES)})


X = torch.ones(2, 1)


def test_functional_call_writes_the_buffers_that_it_was_given(make, values, assert_same_state):
    model = Model(make())
    before = values(model.balancer)
    expected = copy.deepcopy(model)
    expected(X)
    buffers = {name: x.clone() for name, x in model.named_buffers()}
    torch.func.functional_call(model, (dict(model.named_parameters()), buffers), (X,))
    assert_same_state(model.balancer, before)
    assert_same_bits(buffers["balancer.pending"], expected.balancer.pending)


def test_an_ensemble_by_stacked_buffers(make, draw):
    """PyTorch's recipe: the states of all models stacked, one of them on "meta" as the base."""
    models = [Model(make()) for _ in range(3)]
    for i, model in enumerate(models):
        for _ in range(i):
            model(X)
            model.balancer.step()
        model.eval()
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    together = torch.func.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (X,)))(parameters, buffers)
    for total, model in zip(together, models, strict=True):
        assert_same_bits(total, model(X))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_ensemble_cannot_be_used_as_one(make, training):
    parameters, buffers = torch.func.stack_module_state([Model(make()) for _ in range(3)])
    base = Model(make()).train(training)
    before = {name: x.clone() for name, x in buffers.items()}
    one = {name: x[0] for name, x in parameters.items()}
    words = r"`pending` must be of shape \(\d+,\); it is of shape \(3, \d+\).*`torch.func.vmap`"
    with pytest.raises(RuntimeError, match=words):
        torch.func.functional_call(base, (one, buffers), (X,))
    assert all(torch.equal(x, before[name]) for name, x in buffers.items())


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_torch_export(make, draw, training, strict, assert_same_state, values):
    balancer = make().train(training)
    fresh = values(balancer)
    exported = torch.export.export(balancer, (draw(0),), strict=strict)
    assert_same_state(balancer, fresh)  # to export is to observe nothing
    expected = copy.deepcopy(balancer)
    module = exported.module()
    for i in range(3):
        assert_same_bits(module(draw(i)), expected(draw(i)))
    if training:
        assert_same_bits(dict(module.named_buffers())["pending"], expected.pending)
    else:
        assert_same_state(expected, fresh)


@pytest.mark.parametrize("entry", ["pending", "total"])
def test_a_converted_buffer_is_an_error_that_says_what_to_set(entry, draw):
    """As FSDP does with `MixedPrecision(buffer_dtype=...)`, behind a module's back."""
    balancer = EMANormalizedLossBalancer(NAMES)
    buffer = getattr(balancer, entry)
    buffer.data = buffer.to(torch.bfloat16)
    for call in (lambda: balancer(draw()), balancer.step, balancer.export_state, lambda: balancer.weights(draw())):
        with pytest.raises(
            RuntimeError, match=rf"`{entry}` must be torch.float32; it was converted to torch.bfloat16.*buffer_dtype"
        ):
            call()


# --- loading --------------------------------------------------------------------------------------------------------

WRONG = {
    "steps-wide": torch.tensor(2**32),
    "steps-fraction": torch.tensor(2.5),
    "total-wide": torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64),
    "steps": torch.tensor(-1, dtype=torch.int32),
    "skipped": torch.tensor(-3, dtype=torch.int32),
    "pending": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 0.0]),
    "total": torch.tensor([1.0, float("nan"), 1.0]),
    "fix": torch.tensor([1.0, float("inf"), 1.0]),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("entry", WRONG)
def test_load_state_dict_refuses_what_load_state_does(entry, assign, draw, values, assert_same_state):
    model = nn.ModuleDict({"balancer": EMANormalizedLossBalancer(NAMES)})
    model["balancer"](draw())
    before = values(model["balancer"])
    good = {f"balancer.{name}": x.clone() for name, x in EMANormalizedLossBalancer(NAMES).state_dict().items()}
    name = entry.split("-")[0]
    with pytest.raises(
        RuntimeError, match=rf"balancer.{name}: The entry '{name}' of the state must hold finite numbers, and counts"
    ):
        model.load_state_dict({**good, f"balancer.{name}": WRONG[entry]}, assign=assign)
    assert_same_state(model["balancer"], before)
    model.load_state_dict(good, assign=assign)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_of_before_there_were_counts(assign, draw):
    """Its ``pending`` has one count, of calls, for all losses."""
    balancer = EMANormalizedLossBalancer(NAMES)
    for i in range(2):
        balancer(draw(i))
    saved = balancer.state_dict()
    old = {**saved, "pending": torch.cat([saved["pending"][:3], saved["pending"][-2:]])}
    kept = old["pending"].clone()
    other = EMANormalizedLossBalancer(NAMES)
    other.load_state_dict(old, assign=assign)
    assert_same_bits(other.pending, balancer.pending)
    assert_same_bits(old["pending"], kept)


# --- commits --------------------------------------------------------------------------------------------------------


class Interrupted(TorchDispatchMode):
    """Ctrl-C before the nth operation."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return function(*args, **kwargs or {})


def test_an_interrupted_step_is_all_or_nothing(make, draw, values):
    balancer = make()
    balancer(draw())
    before = copy.deepcopy(balancer)
    balancer.step()
    after = values(balancer)
    whole = copy.deepcopy(before)
    with Interrupted(at=-1) as counting:
        whole.step()
    seen = set()
    for at in range(1, counting.count + 1):
        stopped = copy.deepcopy(before)
        with pytest.raises(KeyboardInterrupt), Interrupted(at):
            stopped.step()
        state = values(stopped)
        committed = [state[name].tobytes() == after[name].tobytes() for name in state]
        as_before = [state[name].tobytes() == values(before)[name].tobytes() for name in state]
        assert all(as_before) or all(committed), at
        seen.add(all(committed))
        if all(as_before):
            stopped.step()
            assert values(stopped)["steps"] == after["steps"]
    assert seen == {False}  # the one write is the last operation


def test_discard_drops_what_is_pending_and_moves_no_counter(make, draw, values, assert_same_state):
    balancer = make()
    balancer(draw(0))
    balancer.step()
    before = values(balancer)
    balancer(draw(1))
    balancer({name: x * float("nan") for name, x in draw(2).items()})
    balancer.discard()
    assert_same_state(balancer, before)
    balancer.step()
    assert (balancer.steps, balancer.skipped) == (2, 0)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_counters_stay_at_their_ends(make, draw, mode):
    """Of int32 the largest; and what float32 cannot count any more is left out."""
    balancer = make()
    exported = balancer.export_state()
    observed = len(exported["state"]["pending"]) // 2 - 1
    full = [1.0] * observed + [float(spec.MOST_CALLS)] * observed
    step = torch.compile(balancer.step, fullgraph=True, backend="aot_eager") if mode == "compiled" else balancer.step
    for steps, skipped, calls, left_out, more in [
        (spec.MOST_STEPS - 1, 0, 1.0, 0.0, 0),
        (spec.MOST_STEPS, spec.MOST_STEPS - 1, 1.0, 3.0, 1),
        (5, 0, 1.0, 3e9, spec.MOST_LEFT_OUT),
        (5, 200, 1.0, 3e9, spec.MOST_STEPS - 200),
        (5, 0, float(spec.MOST_CALLS), 2.0, spec.MOST_CALLS + 2),
    ]:
        exported["state"] |= {
            "steps": np.asarray(steps, np.int32),
            "skipped": np.asarray(skipped, np.int32),
            "pending": torch.tensor([*full, calls, left_out]).numpy(),
        }
        balancer.load_state(exported)
        step()
        assert (balancer.steps, balancer.skipped) == (min(steps + 1, spec.MOST_STEPS), skipped + more)
        if observed:
            own = [getattr(balancer, name) for name in exported["state"] if name not in ("steps", "skipped", "pending")]
            heeded = left_out > 0 and balancer._settings.updates  # means that may be of different data are not compared
            assert any(x.any() for x in own) == (calls < spec.MOST_CALLS and not heeded)
        balancer.load_state({**exported, "state": {name: np.zeros_like(x) for name, x in exported["state"].items()}})


# --- losses ---------------------------------------------------------------------------------------------------------


def test_a_dtensor_is_refused_by_name(make, draw, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        losses = draw()
        losses["MSE_1"] = DTensor.from_local(losses["MSE_1"], mesh, [Replicate()])
        with pytest.raises(
            TypeError, match=r"The loss 'MSE_1' must be a plain tensor.*Received a DTensor. Pass `loss.full_tensor\(\)`"
        ):
            make()(losses)
        make()({**losses, "MSE_1": losses["MSE_1"].full_tensor()})
    finally:
        torch.distributed.destroy_process_group()
