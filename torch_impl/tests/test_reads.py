"""No step asks for a value of a tensor: on a GPU the host would wait for it. `benchmarks/thousand_steps.py` makes a thousand."""

import pytest
import torch
from with_state import FIRST

import loss_balancers.torch
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

#: To ask a tensor of the device `meta` for a value is one of these errors, since it has none.
READ = (NotImplementedError, RuntimeError, TypeError)
ABSENT = {"count": {**dict.fromkeys(EXAMPLE_NAMES, 2), EXAMPLE_NAMES[0]: 0}}
EXAMPLES = registry.examples()
#: Every example as it is, and the first of each balancer with state with a loss that is absent.
CALLS = [pytest.param(settings, {}, id=name) for name, settings in EXAMPLES.items()] + [
    pytest.param(EXAMPLES[name], ABSENT, id=f"{name}-absent") for name in FIRST if EXAMPLES[name].state
]


def losses_on_meta(grad=True):
    return {name: torch.ones((), device="meta", requires_grad=grad) for name in EXAMPLE_NAMES}


def step(balancer, losses, **keywords):
    aggregate = balancer(losses, **keywords)
    torch.autograd.grad(aggregate, [*losses.values(), *getattr(balancer, "parameters", list)()], allow_unused=bool(keywords))
    if hasattr(balancer, "update"):
        balancer.update(losses_on_meta(grad=False), **keywords)
    balancer.step()


@pytest.mark.parametrize(("settings", "keywords"), CALLS)
def test_a_step_reads_no_value(settings, keywords):
    balancer = registry.make(settings, loss_balancers.torch).to("meta")
    for _ in range(3):
        step(balancer, losses_on_meta(), **keywords)
    balancer.breakdown(losses_on_meta())


@pytest.mark.parametrize("read", [bool, float, torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.nonzero])
def test_a_read_would_be_found(read):
    class Reads(torch.nn.Module):
        def forward(self, losses):
            read(losses[EXAMPLE_NAMES[0]].detach())
            return sum(losses.values())

    with pytest.raises(READ):
        step(Reads(), losses_on_meta())
