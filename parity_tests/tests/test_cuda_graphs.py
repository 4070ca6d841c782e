"""A training step of a balancer can be captured and replayed: on a CPU as a tape of its operations, on a GPU as a CUDA graph."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from captured import Losses, Recorded, as_cuda_graph, differing, on_tape, same, state_of, training_step

import loss_balancers.torch
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

#: No optimizer takes part here.
pytestmark = pytest.mark.filterwarnings("ignore:`.*` of this balancer did not change in a training step:UserWarning")
NAMES = EXAMPLE_NAMES
BALANCERS: dict[str, Callable[[], Any]] = {
    **{name: partial(registry.make, settings, loss_balancers.torch) for name, settings in registry.examples().items()},
    "ema-auto-step": lambda: loss_balancers.torch.EMANormalizedLossBalancer(NAMES, beta=0.5, auto_step=2),
}
STATEFUL = [name for name, make in BALANCERS.items() if make()._settings.state]
HAS_CUDA = torch.cuda.is_available()
#: Ways to record a step, with the device of each.
WAYS = [
    pytest.param((on_tape, "cpu"), id="tape"),
    pytest.param(
        (as_cuda_graph, "cuda"), id="cuda-graph", marks=pytest.mark.skipif(not HAS_CUDA, reason="PyTorch reports no cuda device")
    ),
]
COMPILED_GRAPHS = pytest.mark.skipif(not HAS_CUDA, reason='torch.compile(mode="reduce-overhead") makes CUDA graphs on CUDA alone')

each_balancer = pytest.mark.parametrize("name", BALANCERS)
each_way = pytest.mark.parametrize("way", WAYS)


def drawn(seed: int, device: str) -> Losses:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(NAMES), generator=generator) * 4 + 0.1
    if seed % 5 == 3:
        values[1] = torch.inf  # a call that is left out, and counted
    return {name: x.clone().to(device) for name, x in zip(NAMES, values, strict=True)}


def recorded_pair(name: str, way: Any, step: Any = training_step) -> tuple[Recorded, Any, Any]:
    """A recorded step, its balancer as new, and a twin."""
    record, device = way
    balancer = BALANCERS[name]().to(device)
    twin = copy.deepcopy(balancer)
    recorded = record(lambda losses: step(balancer, losses), drawn(0, device))
    if hasattr(balancer, "load_state"):  # to record it has run: the guide says this is how to begin
        balancer.load_state(twin.export_state())
    return recorded, balancer, twin


@each_way
@each_balancer
def test_replays_have_the_bits_of_steps_that_run(name: str, way: Any) -> None:
    recorded, balancer, twin = recorded_pair(name, way)
    runs = [drawn(seed, way[1]) for seed in range(1, 12)]
    assert differing(recorded, balancer, twin, runs, training_step) == 0
    if name in STATEFUL:
        assert int(balancer.steps) >= (11 if "auto" not in name else 5)
        assert int(balancer.skipped) == int(twin.skipped)


@each_way
@each_balancer
def test_micro_batches_are_replayed_too(name: str, way: Any) -> None:
    """Two forwards a commit."""

    def step(balancer: Any, losses: Losses) -> list[torch.Tensor]:
        first = balancer(losses)
        half = {key: x * 0.5 for key, x in losses.items()}
        gradients = torch.autograd.grad(first + balancer(half), list(losses.values()))
        balancer.step()
        return [first.detach(), *gradients]

    recorded, balancer, twin = recorded_pair(name, way, step)
    assert differing(recorded, balancer, twin, [drawn(seed, way[1]) for seed in range(1, 6)], step) == 0


@each_way
@pytest.mark.parametrize("name", STATEFUL)
def test_state_loaded_between_replays_is_what_they_go_on_from(name: str, way: Any) -> None:
    """`load_state` and `load_state_dict` write in place, where the recording reads."""
    recorded, balancer, twin = recorded_pair(name, way)
    for seed in (1, 2):
        recorded.on(drawn(seed, way[1]))
    addresses = [x.data_ptr() for x in balancer.buffers()]
    for load in (lambda: balancer.load_state(twin.export_state()), lambda: balancer.load_state_dict(twin.state_dict())):
        load()
        assert [x.data_ptr() for x in balancer.buffers()] == addresses
        assert differing(recorded, balancer, copy.deepcopy(twin), [drawn(seed, way[1]) for seed in (3, 4)], training_step) == 0
    balancer.to(way[1]).train()
    assert [x.data_ptr() for x in balancer.buffers()] == addresses


@each_way
@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("keyword", ["count", "share"])
def test_amounts_on_the_device_are_read_at_each_replay(name: str, keyword: str, way: Any) -> None:
    """A tensor on the device is memory that the recording reads; write into it what the next step is to have."""
    amounts = {key: torch.tensor(2.0, device=way[1]) for key in NAMES}

    def step(balancer: Any, losses: Losses) -> list[torch.Tensor]:
        return training_step(balancer, losses, **{keyword: amounts})

    recorded, balancer, twin = recorded_pair(name, way, step)
    for seed, amount in enumerate([1.0, 3.0, 0.0, 5.0], start=1):
        amounts["MSE_1"].fill_(amount)
        assert differing(recorded, balancer, twin, [drawn(seed, way[1])], step) == 0


@each_way
def test_a_number_on_the_host_is_that_of_the_capture(way: Any) -> None:
    """Which no library can change: docs/gpu.md says so. The test shows that the comparison sees what is frozen."""
    count = 2

    def step(balancer: Any, losses: Losses) -> list[torch.Tensor]:
        return training_step(balancer, losses, count={"LogitsKL_0": count, "MSE_1": 1, "student_loss": 1})

    recorded, balancer, twin = recorded_pair("ema", way, step)
    assert differing(recorded, balancer, twin, [drawn(1, way[1])], step) == 0
    balancer.load_state(twin.export_state())
    for number in (2, 0):
        count = number
        found = differing(recorded, balancer, twin, [drawn(2, way[1])], step)
        assert found == (count != 2)


def test_a_tape_freezes_what_the_host_decides() -> None:
    """The tape can fail: a balancer that counts on the host is replayed with the count of its capture."""

    class Counts(torch.nn.Module):
        calls = 0

        def forward(self, losses: Losses) -> torch.Tensor:
            self.calls += 1
            return losses["MSE_1"] * float(self.calls)

        def step(self) -> None:
            """It commits nothing."""

    balancer, twin = Counts(), Counts()
    recorded = on_tape(lambda losses: training_step(balancer, losses), {"MSE_1": torch.tensor(1.0)})
    assert differing(recorded, balancer, twin, [{"MSE_1": torch.tensor(2.0)}], training_step) == 0
    assert differing(recorded, balancer, twin, [{"MSE_1": torch.tensor(2.0)}], training_step) == 1


@COMPILED_GRAPHS
@each_balancer
def test_reduce_overhead_has_the_bits_of_steps_that_run(name: str) -> None:
    balancer = BALANCERS[name]().to("cuda")
    twin = copy.deepcopy(balancer)
    forward = torch.compile(balancer, fullgraph=True, mode="reduce-overhead")
    for seed in range(8):
        losses = {key: x.requires_grad_() for key, x in drawn(seed, "cuda").items()}
        torch.compiler.cudagraph_mark_step_begin()
        aggregate = forward(losses)
        given = [aggregate.detach().clone(), *(x.clone() for x in torch.autograd.grad(aggregate, list(losses.values())))]
        balancer.step()
        wanted = training_step(twin, losses)
        for a, b in zip([*given, *state_of(balancer)], [*wanted, *state_of(twin)], strict=True):
            assert same(a, b)
