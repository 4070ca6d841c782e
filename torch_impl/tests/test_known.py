"""Factors of committed state are kept by its values: whoever writes a buffer, the next forward is that of a fresh balancer."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from with_state import EXAMPLES, train

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import functional
from loss_balancers.torch.known import LastFactors
from loss_balancers.torch.observing import without_losses


def other_values(balancer):
    """What is written: a state of more steps, with other numbers."""
    fresh = {name: x.clone() for name, x in balancer.state_dict().items() if name != "pending"}
    fresh["steps"] += 5
    return {name: x if name in ("steps", "skipped") else x * 0.75 + 1.0 for name, x in fresh.items()}


def each(write):
    """A way that writes one buffer, for all of them."""

    def way(balancer):
        for name, value in other_values(balancer).items():
            write(balancer, name, value)
        return balancer

    return way


def by_numpy(balancer, name, value):
    balancer._buffers[name].numpy()[...] = value.numpy()


def by_data(balancer, name, value):
    getattr(balancer, name).data.copy_(value)


def new_data(balancer, name, value):
    getattr(balancer, name).data = value


def in_inference_mode(balancer, name, value):
    with torch.inference_mode():
        getattr(balancer, name).copy_(value)


def without_grad(balancer, name, value):
    with torch.no_grad():
        getattr(balancer, name).copy_(value)


def swapped(balancer, name, value):
    torch.utils.swap_tensors(getattr(balancer, name), value)


def by_foreach(balancer, name, value):
    torch._foreach_copy_([getattr(balancer, name)], [value])  # type: ignore[reportPrivateImportUsage]


def by_set(balancer, name, value):
    getattr(balancer, name).set_(value)


def shared(balancer, name, value):
    getattr(balancer, name).share_memory_().data.copy_(value)


def averaged(balancer, name, value):
    """As models are averaged: by a collective, which PyTorch does not count as a write."""
    buffer = getattr(balancer, name)
    buffer.data.copy_(value)
    version = buffer._version
    dist.broadcast(buffer, 0)
    assert buffer._version == version


def loaded(balancer, **options):
    balancer.load_state_dict({"pending": balancer.pending.clone(), **other_values(balancer)}, **options)
    return balancer


def load_state(balancer):
    exported = balancer.export_state()
    exported["state"] |= {name: x.numpy() for name, x in other_values(balancer).items()}
    balancer.load_state(exported)
    return balancer


def compiled_step(balancer):
    torch.compile(balancer.step, fullgraph=True, backend="aot_eager")()
    return balancer


def with_another_in_between(balancer):
    """The other's state is the last that factors were made of."""
    buffers = {name: x.clone() for name, x in balancer.named_buffers()} | other_values(balancer)
    losses = {name: torch.ones(()) for name in balancer.names or ("LogitsKL_0", "MSE_1", "student_loss")}
    torch.func.functional_call(balancer, buffers, (losses,))
    return balancer


WAYS = {
    "step": lambda balancer: balancer.step() or balancer,
    "compiled-step": compiled_step,
    "discard": lambda balancer: balancer.discard() or balancer,
    "load_state": load_state,
    "load_state_dict": loaded,
    "assign": lambda balancer: loaded(balancer, assign=True),
    "to": lambda balancer: each(without_grad)(balancer.to("cpu", torch.float64)),
    "to-meta-and-back": lambda balancer: loaded(balancer.to("meta").to_empty(device="cpu")),
    "setattr": each(setattr),
    "no_grad": each(without_grad),
    "inference_mode": each(in_inference_mode),
    "detach": each(lambda balancer, name, value: getattr(balancer, name).detach().copy_(value)),
    "data": each(by_data),
    "new-data": each(new_data),
    "set_": each(by_set),
    "swap_tensors": each(swapped),
    "numpy": each(by_numpy),
    "share_memory": each(shared),
    "foreach": each(by_foreach),
    "broadcast": each(averaged),
    "functional_call": with_another_in_between,
    "deepcopy": lambda balancer: each(by_data)(copy.deepcopy(balancer)),
    "pickle": lambda balancer: each(by_data)(pickle.loads(pickle.dumps(balancer))),
}


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def bits(balancer, losses):
    leaves = {name: x.detach().requires_grad_() for name, x in losses.items()}
    aggregate = balancer(leaves)
    gradients = torch.autograd.grad(aggregate, list(leaves.values()), torch.tensor(1 / 3), allow_unused=True)
    return [aggregate.detach(), *(torch.zeros(()) if x is None else x for x in gradients)]


def assert_as_fresh(balancer, make, losses):
    fresh = make()
    fresh.load_state(balancer.export_state())
    for result, wanted in zip(bits(balancer, losses), bits(fresh, losses), strict=True):
        assert_same_bits(result, wanted)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_written_state_gives_its_own_factors(way, make, draw):
    balancer = train(make(), draw)
    before = bits(balancer, draw(7))  # factors are kept now
    kept = values(balancer)
    written = way(balancer)
    assert_as_fresh(written, make, draw(7))
    if way not in (WAYS["discard"], WAYS["functional_call"]):
        assert kept != values(written)  # so the way writes
    else:
        assert all(torch.equal(a, b) for a, b in zip(before, bits(balancer, draw(7)), strict=True))


def values(balancer):
    return {name: x.numpy().tobytes() for name, x in balancer.state_dict().items() if name != "pending"}


@pytest.fixture
def made(monkeypatch):
    """How often factors are made to be kept."""
    calls = []
    get = LastFactors.get
    monkeypatch.setattr(
        LastFactors, "get", lambda self, state, table, make: get(self, state, table, lambda: calls.append(1) or make())
    )
    return calls


def test_factors_are_made_once_a_commit(make, draw, made):
    balancer = train(make(), draw)
    made.clear()
    for i in range(3):
        balancer(draw(i))
    assert not made
    balancer.step()
    assert len(made) == (not balancer._settings.sees_losses)


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_say_whether_factors_see_the_losses(name, draw):
    """What does not see them has the same weights for other losses; what does has others."""
    from loss_balancers import torch as in_torch
    from loss_balancers.spec import registry

    balancer = train(registry.make(EXAMPLES[name], in_torch), draw)
    first, second = (torch.stack(list(balancer.weights(draw(seed)).values())) for seed in (1, 2))
    assert torch.equal(first, second) != EXAMPLES[name].sees_losses


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_factors_that_were_made_under_a_context_serve_in_training(context, make, draw):
    balancer = make()
    losses = draw(0)
    with context():
        balancer(losses)
        balancer.step()
        balancer(losses)
    assert_as_fresh(balancer, make, draw(1))


def test_transforms_make_their_own(make, draw):
    balancer = train(make(), draw).eval()
    losses = draw(7)
    aggregate, *gradients = bits(balancer, losses)
    found = torch.func.grad(balancer)(losses)
    rows = torch.func.vmap(balancer)({name: torch.stack([x, x]) for name, x in losses.items()})
    assert_same_bits(rows[0], aggregate)
    _, tangent = torch.func.jvp(balancer, (losses,), ({name: torch.ones(()) for name in losses},))  # type: ignore[reportAssignmentType]
    weights = torch.stack([x.to(torch.float64) for x in found.values()])
    assert torch.allclose(tangent.double(), weights.sum(), rtol=1e-5)
    again = bits(balancer, losses)
    for first, second in zip((aggregate, *gradients), again, strict=True):
        assert_same_bits(first, second)


def test_an_ensemble_of_stacked_states_has_the_factors_of_each(make, draw):
    models = [train(make(), draw, steps).eval() for steps in (1, 2, 3)]
    losses = draw(7)
    expected = [model(losses) for model in models]
    _, buffers = torch.func.stack_module_state(models)
    base = models[0]
    rows = torch.func.vmap(lambda buffers: torch.func.functional_call(base, buffers, (losses,)))(buffers)
    for row, wanted in zip(rows, expected, strict=True):
        assert_same_bits(row, wanted)


def test_weights_may_be_written_to(make, draw):
    balancer = train(make(), draw)
    before = bits(balancer, draw(7))
    for weight in balancer.weights(draw(7)).values():
        if not weight._is_view() or weight._base is not balancer._table:
            weight.detach().mul_(7.0)
    for first, second in zip(before, bits(balancer, draw(7)), strict=True):
        assert_same_bits(first, second)


def test_nothing_is_kept_where_the_host_cannot_read(make, draw):
    balancer = make().to("meta")
    balancer._process_group = False  # a collective has no form on "meta" in PyTorch 2.8 and 2.9
    balancer(draw(device="meta"))
    balancer.step()
    assert balancer._last_factors._last is None


def test_what_is_kept_is_in_no_copy_and_no_state_dict(make, draw):
    balancer = train(make(), draw)
    assert (balancer._last_factors._last is not None) != balancer._settings.sees_losses
    for copied in (copy.deepcopy(balancer), pickle.loads(pickle.dumps(balancer))):
        assert copied._last_factors._last is None
    assert not [name for name in nn.Module.state_dict(balancer) if "factors" in name]


def test_threads_that_write_and_read(make, draw):
    """Each thread has a balancer of its own state; they share what was kept."""
    models = [train(make(), draw, steps).eval() for steps in (1, 2, 3)]
    losses = draw(7)
    expected = [model(losses) for model in models]
    for model in models:
        model._last_factors = models[0]._last_factors
    wrong = []

    def work(model, wanted):
        wrong.extend(1 for _ in range(100) if not torch.equal(model(losses), wanted))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_minus_zero_is_another_value(draw):
    """Kept by bytes, and not by what compares equal."""
    last = LastFactors()
    x = torch.zeros(2)
    makes = []
    for value in (0.0, -0.0, 0.0):
        x.fill_(value)
        last.get([x], None, lambda: makes.append(1) or torch.ones(2))
    assert len(makes) == 3
    assert np.signbit(-0.0)


@pytest.mark.parametrize("function", [functional.sum_terms, functional.balance])
def test_known_factors_in_a_function_that_is_compiled_by_itself(function):
    """PyTorch 2.11 does so under the stance "eager_then_compile": it begins in the middle of an eager call."""
    losses = [torch.tensor(x, requires_grad=True) for x in (1.5, 2.25, 0.3)]
    known, dtypes = functional.KnownFactors(torch.tensor([0.3, 1.7, 0.9])), (torch.float32,) * 3
    total = torch.compile(lambda *terms: function(list(terms), dtypes, known), backend="eager", fullgraph=True)(*losses)
    expected = function(losses, dtypes, known)
    assert_same_bits(total, expected)
    for got, wanted in zip(torch.autograd.grad(total, losses), torch.autograd.grad(expected, losses), strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("name", EXAMPLES)
def test_factors_follow_from_what_is_declared(name):
    """Or they would be kept when what they are made of changes."""
    from loss_balancers import torch as in_torch
    from loss_balancers.spec import registry

    balancer = registry.make(EXAMPLES[name], in_torch)
    if balancer._settings.sees_losses:
        pytest.skip("its factors are made of the losses too")
    state = {entry: torch.rand_like(x.float()).mul(3).to(x.dtype) for entry, x in balancer._values().items()}
    before = balancer._factors(state, without_losses(balancer.names))
    for entry in state.keys() - set(balancer._factors_follow_from(state)):
        for value in (1, 7, 61):
            others = state | {entry: torch.full_like(state[entry], value)}
            assert_same_bits(balancer._factors(others, without_losses(balancer.names)), before)
