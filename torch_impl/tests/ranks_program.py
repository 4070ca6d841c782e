"""What each of several ranks does, in a process of its own: `python ranks_program.py FOLDER` writes what each saw.

Two ranks, then four, then two that do what `ddp_program.py` says. PyTorch and its compiler are imported once; each rank is a fork
of this process, made before anything is computed.
"""

import copy
import datetime
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.torch import EMANormalizedLossBalancer, ScheduledLossBalancer, UncertaintyLossBalancer

NAMES = ("KL_0", "MSE_1", "student_loss")
BATCH, STEPS = 64, 5


def per_sample(step, exact):
    """The losses of each sample of a step's batch, shape (BATCH, 3): dyadic numbers whose sums are exact, or any."""
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randint(1, 256, (BATCH, len(NAMES)), generator=generator) * 0.125
    return drawn if exact else drawn * 0.1


def losses(rows) -> dict[str, torch.Tensor]:
    """The mean of each loss over some samples."""
    return dict(zip(NAMES, rows.mean(0).unbind(), strict=True))


def in_bits(state):
    """State as text that keeps every bit."""
    return {name: [float(x).hex() for x in value.flatten()] for name, value in state.items()}


def split(world, micro_batches, exact=True, group=None, rank=0):
    """The state after some steps, the batch split over ranks and micro-batches."""
    balancer = EMANormalizedLossBalancer(NAMES, process_group=group)
    for step in range(STEPS):
        mine = per_sample(step, exact).chunk(world)[rank]
        for rows in mine.chunk(micro_batches):
            balancer(losses(rows))
        balancer.step()
    return in_bits(balancer.state_dict())


class Model(nn.Module):
    """A student with a balancer inside, its losses dyadic: the last bits are no matter of the model's."""

    def __init__(self, balancer):
        super().__init__()
        self.scale = nn.Linear(1, 4, bias=False)
        nn.init.ones_(self.scale.weight)
        self.balancer = balancer

    def forward(self, rows):
        zero = (self.scale(torch.ones(1, 1)).sum() - 4.0) * 0.0  # so that the weights are used, and change nothing
        return self.balancer({name: x + zero for name, x in losses(rows).items()})


def wrapped(wrap, balancer, rank, world):
    """The state after some steps in a wrapper; every rank has other losses, four micro-batches a step."""
    model = wrap(Model(balancer))
    for step in range(STEPS):
        for rows in per_sample(step, exact=True).chunk(world)[rank].chunk(4):
            model(rows).backward()
        balancer.step()
    return model


def sharded(model):
    """FSDP2, as on a mesh of devices."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.scale, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def warnings_in_fsdp2(kind):
    """Warnings of `step()`, for each of three steps, of a learned balancer in FSDP2, and whether its parameter was trained."""
    model = sharded(Model(UncertaintyLossBalancer(NAMES)))
    parameters = list(model.parameters()) if "then" in kind or kind == "trained" else list(model.scale.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    seen = []
    for step in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.zero_grad()
            model(per_sample(step, exact=True)).backward()
            if not (kind.startswith("skipped") and step == 0):
                optimizer.step()
            model.balancer.step()
        seen.append(sum("did not change in a training step" in str(each.message) for each in caught))
    return seen, bool(model.balancer.parameter.full_tensor().ne(0).any())


def checkpointed(model):
    """The balancer of another model, after a distributed checkpoint read on rank 0 went to all."""
    everything = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = get_model_state_dict(model, options=everything)
    with torch.device("meta"):
        other = sharded(Model(EMANormalizedLossBalancer(NAMES)))
    other.to_empty(device="cpu")
    everything = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other, saved if dist.get_rank() == 0 else {}, options=everything)
    other(per_sample(0, exact=True))
    return other.balancer.state_dict()


class OutsideOfForward(Model):
    """A model whose balancer is called beside it, as ModelOpt's training loops do."""

    def forward(self, rows):
        return self.scale(torch.ones(1, 1)).sum(), losses(rows)


def beside_ddp(balancer, rank, world):
    """The state after some steps in DDP, which never sees a call of the balancer in its model."""
    model = DistributedDataParallel(OutsideOfForward(balancer))
    for step in range(STEPS):
        for rows in per_sample(step, exact=True).chunk(world)[rank].chunk(4):
            output, given = model(rows)
            (balancer(given) + output * 0).backward()
        balancer.step()
    return balancer


def wrapped_twice(balancer, rank, world):
    """The state after steps outside of DDP, in one, and in another around the same model."""
    model = forward = Model(balancer)
    for step in range(STEPS):
        if step in (1, 3):
            forward = DistributedDataParallel(model)
        for rows in per_sample(step, exact=True).chunk(world)[rank].chunk(4):
            forward(rows).backward()
        balancer.step()
    return balancer


def compiled_in_ddp(balancer, rank, world):
    """The state after some steps in DDP, the model compiled."""
    model = DistributedDataParallel(Model(balancer))
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(STEPS):
        for rows in per_sample(step, exact=True).chunk(world)[rank].chunk(4):
            compiled(rows).backward()
        balancer.step()
    return balancer


def joined(rank):
    """What `step()` says within `join()`, and whether a balancer of each rank's own may be there."""
    said = []
    for group in (None, False):
        balancer = EMANormalizedLossBalancer(NAMES, process_group=group)
        model = DistributedDataParallel(Model(balancer))
        with model.join():
            for i in range(1 if group is None else 2 + rank):
                model(per_sample(i, exact=True)).backward()
                try:
                    balancer.step()
                except RuntimeError as error:
                    said.append(str(error))
        said.append(balancer.steps.item())
    return said


def without_items(rank):
    """Rank 1 has no item of one loss, the others have each another number."""
    balancer = EMANormalizedLossBalancer(NAMES)
    for step in range(2):
        rows = per_sample(step, exact=True)[: 8 * 2**rank]
        count = {**dict.fromkeys(NAMES, float(len(rows))), "MSE_1": 0.0 if rank == 1 else float(len(rows))}
        given = losses(rows)
        balancer({**given, "MSE_1": given["MSE_1"] * float("nan")} if rank == 1 else given, count=count)
        balancer.step()
    return in_bits(balancer.state_dict())


def converted_by_fsdp(dtype):
    """What a balancer says in FSDP (1) that converts buffers, and its state after two steps in one that does not."""
    balancer = EMANormalizedLossBalancer(NAMES)
    precision = MixedPrecision(buffer_dtype=dtype)
    model = FullyShardedDataParallel(Model(balancer), device_id=torch.device("cpu"), mixed_precision=precision)
    try:
        for step in range(2):
            model(per_sample(step, exact=True))
            balancer.step()
    except RuntimeError as error:
        return str(error)
    return balancer.fix.tolist()


class CountsReductions:
    """Counts the all-reduces of a block, and how large they are."""

    def __enter__(self):
        self.sizes, self.all_reduce = [], dist.all_reduce

        def counted(tensor, *args, **kwargs):
            self.sizes.append(tensor.numel())
            return self.all_reduce(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_):
        dist.all_reduce = self.all_reduce


def counted_reductions(rank):
    """What is reduced: in a step, in forwards, in forwards that commit by themselves."""
    balancer, seen = EMANormalizedLossBalancer(NAMES), {}
    with CountsReductions() as counts:
        for _ in range(3):
            balancer(losses(per_sample(rank, exact=True)))
        balancer.weights(losses(per_sample(rank, exact=True)))
    seen["forwards"] = counts.sizes
    with CountsReductions() as counts:
        balancer.step()
    seen["step"] = counts.sizes
    balancer = EMANormalizedLossBalancer(NAMES, auto_step=2)
    with CountsReductions() as counts:
        for step in range(4):
            balancer(losses(per_sample(step, exact=True)))
    seen["auto_step"], seen["auto_step state"] = counts.sizes, in_bits(balancer.state_dict())
    return seen


def uneven(rank):
    """Rank 0 has two micro-batches, rank 1 none, the others a NaN and one."""
    balancer = EMANormalizedLossBalancer(NAMES)
    if rank == 0:
        balancer(losses(per_sample(0, exact=True)[:32]))
        balancer(losses(per_sample(0, exact=True)[32:]))
    elif rank > 1:
        balancer({**losses(per_sample(0, exact=True)), "MSE_1": torch.tensor(float("nan"))})
        balancer(losses(per_sample(rank, exact=True)))
    balancer.step()
    return in_bits(balancer.state_dict())


def groups(rank, world):
    """A group of the even ranks; no group."""
    even = dist.new_group(list(range(0, world, 2)))
    balancer = EMANormalizedLossBalancer(NAMES, process_group=even)
    alone = EMANormalizedLossBalancer(NAMES, process_group=False)
    copied = copy.deepcopy(balancer)
    for each in (balancer, alone, copied):
        each(losses(per_sample(rank, exact=True)))
        each.step()
    return {"even": in_bits(balancer.state_dict()), "copied": in_bits(copied.state_dict()), "False": in_bits(alone.state_dict())}


def compiled(rank):
    """The step as one graph, its all-reduce in it."""
    balancer = EMANormalizedLossBalancer(NAMES)
    step = torch.compile(balancer.step, fullgraph=True, backend="aot_eager")
    for i in range(3):
        balancer(losses(per_sample(10 * i + rank, exact=False)))
        step()
    return in_bits(balancer.state_dict())


def main(folder, rank, world):
    """All of it, on this rank."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=600))
    seen: dict[str, Any] = {f"exact, {n}": split(world, n, rank=rank) for n in (1, 4, 16)}
    seen["inexact"] = split(world, 4, exact=False, rank=rank)
    seen["reductions"] = counted_reductions(rank)
    seen["uneven"] = uneven(rank)
    seen |= groups(rank, world)
    if world == 2:  # to compile takes a second on each rank, and four ranks would compile the same
        seen["compiled"] = compiled(rank)
        seen["DDP, compiled"] = in_bits(compiled_in_ddp(EMANormalizedLossBalancer(NAMES), rank, world).state_dict())
    balancer = EMANormalizedLossBalancer(NAMES)
    seen["DDP"] = in_bits(wrapped(DistributedDataParallel, balancer, rank, world).module.balancer.state_dict())
    seen["DDP, beside"] = in_bits(beside_ddp(EMANormalizedLossBalancer(NAMES), rank, world).state_dict())
    seen["DDP, twice"] = in_bits(wrapped_twice(EMANormalizedLossBalancer(NAMES), rank, world).state_dict())
    seen["without items"], seen["joined"] = without_items(rank), joined(rank)
    seen["FSDP"] = {str(dtype): converted_by_fsdp(dtype) for dtype in (torch.bfloat16, torch.float32)}
    balancer = ScheduledLossBalancer([0.25, 0.5], names=NAMES)
    seen["DDP, scheduled"] = in_bits(wrapped(DistributedDataParallel, balancer, rank, world).module.balancer.state_dict())
    model = wrapped(sharded, EMANormalizedLossBalancer(NAMES), rank, world)
    seen["FSDP2"] = in_bits(model.balancer.state_dict())
    seen["checkpoint"] = in_bits(checkpointed(model))
    seen["FSDP2, learned"] = {kind: warnings_in_fsdp2(kind) for kind in ("trained", "skipped, then trained", "never trained")}
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(seen))


#: What a rank would else import as it compiles, among it what Dynamo needs to split the graph of a model in DDP.
COMPILER = ("torch._dynamo", "torch._functorch.aot_autograd", "torch._inductor.compile_fx")


def fork(run: Callable[[int], None], rank: int) -> int:
    """Starts a rank."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(rank)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def on_ranks(run: Callable[[int], None], world: int) -> None:
    """Runs all ranks, each in a process of its own. Exits with the number of those that failed, if any."""
    for name in COMPILER:
        import_module(name)
    children = [fork(run, rank) for rank in range(world)]
    if failed := sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children):
        sys.exit(failed)


if __name__ == "__main__":
    folder = sys.argv[1]
    for world in (2, 4):
        on_ranks(lambda rank, world=world: main(folder, rank, world), world)
    ddp_program: Any = import_module("ddp_program")
    on_ranks(lambda rank: ddp_program.main(folder, rank), ddp_program.WORLD)
