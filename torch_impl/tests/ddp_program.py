"""What DistributedDataParallel does to balancers, on each of two ranks. `ranks_program.py` runs it and says how."""

import copy
import datetime
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from ranks_program import NAMES, STEPS, Model, OutsideOfForward, in_bits, per_sample  # type: ignore[reportMissingImports]
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.torch import EMANormalizedLossBalancer

WORLD = 2


def train(forward, balancer, rank, steps=range(STEPS), step=None):
    """The state after some steps; every rank has other losses, four micro-batches a step."""
    for i in steps:
        for rows in per_sample(i, exact=True).chunk(WORLD)[rank].chunk(4):
            forward(rows).backward()
        (step or balancer.step)()
    return in_bits(balancer.state_dict())


def folds(rank, compile_step):
    """The states of models that are trained one after another, all by the code that the first was compiled to."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    states, counts = [], []
    for _ in range(3):
        balancer = EMANormalizedLossBalancer(NAMES)
        forward = torch.compile(DistributedDataParallel(Model(balancer)), backend=backend)
        step = torch.compile(balancer.step, backend=backend, fullgraph=True) if compile_step else None
        states.append(train(forward, balancer, rank, step=step))
        counts.append(len(graphs))
    return {"states": states, "graphs": counts}


def beside(wrapper, balancer):
    """A call of a balancer that is in the wrapper's model, beside the wrapper's forward."""

    def forward(rows):
        output, given = wrapper(rows)
        return balancer(given) + output * 0

    return forward


def wrapped_again_beside(rank):
    """The balancer is called beside a wrapper, later beside another one around the same model."""
    balancer = EMANormalizedLossBalancer(NAMES)
    model = OutsideOfForward(balancer)
    for steps in (range(3), range(3, STEPS)):
        state = train(beside(DistributedDataParallel(model), balancer), balancer, rank, steps)
    return state


class Inside(nn.Module):
    """A balancer in a part of the model."""

    def __init__(self, balancer):
        super().__init__()
        self.parts = nn.ModuleDict({"balancer": balancer})

    def forward(self, given):
        return self.parts["balancer"](given)


def put_in_later(rank, part):
    """The model gets its balancer when it is wrapped already."""
    balancer = EMANormalizedLossBalancer(NAMES)
    wrapper = DistributedDataParallel(Model(None))
    setattr(wrapper.module, "balancer", part(balancer))  # noqa: B010 -- as `wrapper.module.balancer = ...` does
    return train(wrapper, balancer, rank)


class InAList(nn.Module):
    """A list of parts, one of which may be a balancer: the model calls that."""

    def __init__(self, parts):
        super().__init__()
        self.parts: Any = parts

    def forward(self, given):
        return next(part for part in self.parts if isinstance(part, EMANormalizedLossBalancer))(given)


class Counts(nn.Module):
    """Another's module, with a buffer named as one of ours."""

    def __init__(self, value):
        super().__init__()
        self.pending = nn.Buffer(torch.tensor(float(value)))


def in_a_list(rank, container, change):
    """The state, where a list in a wrapped model changes by what PyTorch calls no hook for; and buffers of others in the list."""
    balancer = EMANormalizedLossBalancer(NAMES)
    wrapper = DistributedDataParallel(Model(InAList(container([Counts(1), Counts(2)]))))
    parts: Any = wrapper.module.balancer.parts
    change(parts, balancer)
    for part in parts:
        if isinstance(part, Counts):
            part.pending.add_(rank)  # theirs is sent, whatever ours is called
    state = train(wrapper, balancer, rank)
    return [state, [part.pending.item() for part in parts if isinstance(part, Counts)]]


def deleted_before(parts, balancer):
    """A balancer moves up in the list, to where another's buffers were."""
    parts.append(balancer)
    del parts[0]


def put_in_a_copy(rank):
    """A copy of a wrapper gets its balancer later, and the copy of that copy another."""
    wrapper = copy.deepcopy(copy.deepcopy(DistributedDataParallel(Model(None))))
    wrapper.module.balancer = EMANormalizedLossBalancer(NAMES)
    return train(wrapper, wrapper.module.balancer, rank)


def wrapped_after_an_observation(rank):
    """What a rank has observed before it wraps its model is its own."""
    balancer = EMANormalizedLossBalancer(NAMES)
    model = Model(balancer)
    for rows in per_sample(0, exact=True).chunk(WORLD)[rank].chunk(4):
        model(rows)
    wrapper = DistributedDataParallel(model)
    balancer.step()
    return train(wrapper, balancer, rank, range(1, STEPS))


def loaded_on_each_rank(rank, group):
    """The steps of a state that each rank loaded for itself, once the model is wrapped."""
    balancer = EMANormalizedLossBalancer(NAMES, process_group=group)
    for _ in range(3 + rank):
        balancer.steps.add_(1)
    DistributedDataParallel(Model(balancer))
    return balancer.steps.item()


def copied(rank, copy_of):
    """A copy of the wrapper, with the balancer in it."""
    wrapper = copy_of(DistributedDataParallel(Model(EMANormalizedLossBalancer(NAMES))))
    return train(wrapper, wrapper.module.balancer, rank)


def aliased(rank, kind):
    """The state, where the model has a balancer's buffer under a name of its own too, which it lists first."""
    balancer = EMANormalizedLossBalancer(NAMES)
    model = Model(None)
    model.register_buffer("seen", {"itself": balancer.pending, "a view": balancer.pending[:3]}[kind])
    model.balancer = balancer
    return train(DistributedDataParallel(model), balancer, rank)


def aliased_and_loaded(rank):
    """The steps that each rank loaded for itself, where the model has the buffer under a name of its own too."""
    balancer = EMANormalizedLossBalancer(NAMES)
    balancer.steps.add_(3 + rank)
    model = Model(None)
    model.register_buffer("done", balancer.steps)
    model.balancer = balancer
    DistributedDataParallel(model)
    return balancer.steps.item()


def sent():
    """What a wrapper sends at every forward, and what a user's own set of names makes of it."""
    seen = []
    for ignored in ((), ("mine",)):
        model = Model(EMANormalizedLossBalancer(NAMES))
        for name in ("mine", "ours"):
            model.register_buffer(name, torch.zeros(3))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        wrapper = DistributedDataParallel(model)
        for _ in range(2):
            wrapper(per_sample(0, exact=True)).backward()
            seen.append(list(wrapper.named_module_buffers))
    return seen


def needs_us(balancer):
    """Whether the set of names in the pickle of a wrapper is of this library."""
    return b"loss_balancers" in pickle.dumps(DistributedDataParallel(Model(balancer)).parameters_to_ignore)


def half_made():
    """What comes of registering a module whose `__init__` has not run, where a wrapper lives."""
    _kept, parent = DistributedDataParallel(Model(None)), nn.Module()
    return says(lambda: setattr(parent, "child", nn.Linear.__new__(nn.Linear)))


def says(call):
    """The error of a call, or "nothing"."""
    try:
        call()
    except (AttributeError, RuntimeError) as error:
        return str(error)
    return "nothing"


def joined(rank):
    """What `step()` says within `join()`, of a wrapper of its own and of another's, and after it."""
    mine, other, outside = (EMANormalizedLossBalancer(NAMES) for _ in range(3))
    wrapper, _kept = DistributedDataParallel(Model(mine)), DistributedDataParallel(Model(other))
    seen: dict[str, Any] = {}
    for i in range(2):
        with wrapper.join():
            for batch in range(1 + rank):
                wrapper(per_sample(batch, exact=True)).backward()
                seen[f"within, {i}"] = says(mine.step)
                seen[f"of no wrapper, {i}"] = says(outside.step)
                if batch == 0:  # where all ranks still are
                    seen[f"of another wrapper, {i}"] = says(other.step)
        seen[f"after, {i}"] = says(mine.step)
    try:
        with wrapper.join():
            raise KeyError
    except KeyError:
        seen["after an error"] = says(mine.step)
    seen["another afterwards"] = says(outside.step)
    mine.load_state(EMANormalizedLossBalancer(NAMES).export_state())
    seen["state"] = train(wrapper, mine, rank)
    return seen


def main(folder, rank):
    """All of it, on this rank."""
    torch.set_num_threads(1)
    meeting, timeout = f"file://{folder}/store", datetime.timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timeout)
    seen: dict[str, Any] = {
        "folds": folds(rank, compile_step=False),
        "folds, compiled step": folds(rank, compile_step=True),
        "wrapped again beside": wrapped_again_beside(rank),
        "put in later": put_in_later(rank, lambda balancer: balancer),
        "put in later, within a part": put_in_later(rank, Inside),
        "inserted into a list": in_a_list(rank, nn.ModuleList, lambda parts, balancer: parts.insert(0, balancer)),
        "inserted into a sequence": in_a_list(rank, lambda parts: nn.Sequential(*parts), lambda parts, b: parts.insert(1, b)),
        "moved up in a list": in_a_list(rank, nn.ModuleList, deleted_before),
        "put in a copy later": put_in_a_copy(rank),
        "wrapped after an observation": wrapped_after_an_observation(rank),
        "loaded": loaded_on_each_rank(rank, None),
        "loaded, each its own": loaded_on_each_rank(rank, False),
        "deepcopy": copied(rank, copy.deepcopy),
        "pickle": copied(rank, lambda wrapper: pickle.loads(pickle.dumps(wrapper))),
        "aliased": aliased(rank, "itself"),
        "aliased by a view": aliased(rank, "a view"),
        "loaded, aliased": aliased_and_loaded(rank),
        "a pickle names": [needs_us(None), needs_us(EMANormalizedLossBalancer(NAMES))],
        "sent": sent(),
        "half made": half_made(),
        "joined": joined(rank),
    }
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f"ddp-{rank}.json").write_text(json.dumps(seen))
