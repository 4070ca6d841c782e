"""What DistributedDataParallel does to a balancer in its model, and how it is kept from that.

By default it sends rank 0's buffers to all ranks at every forward: over what each has observed. DDP's own list of names to pass by
is kept on the wrapper, which a module inside does not know of; so a balancer looks for wrappers: at its first
forward, at the next `step()`, and where it finds itself in the forward of a wrapper that it does not know.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import ref

from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.spec import errors
from loss_balancers.torch.host import traced_as_constant

Wrappers = tuple[Callable[[], DistributedDataParallel | None], ...]


def distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def wrapped_anew(wrappers: Wrappers) -> bool:
    """Whether this forward is within that of a wrapper that is not among these."""
    active = DistributedDataParallel._get_active_ddp_module()
    return active is not None and all(wrapper() is not active for wrapper in wrappers)


def keep_from_broadcast(kind: type[nn.Module]) -> Wrappers:
    """Has every DistributedDataParallel of the process pass by the buffers of modules of this kind.

    Returns:
        Weak references to the wrappers.
    """
    found = [x for x in gc.get_objects() if issubclass(type(x), DistributedDataParallel)]
    for wrapper in found:
        for prefix, module in wrapper.module.named_modules():
            if isinstance(module, kind):
                names = (name for name, _ in module.named_buffers(prefix, recurse=False))
                wrapper.parameters_to_ignore.update(names)
        wrapper._assign_modules_buffers()  # it refuses to send none, and asks its last list whether there are any
    return tuple(map(ref, found))


@traced_as_constant
def keep_from_broadcast_while_tracing(kind: type[nn.Module]) -> None:
    """The same, done by Dynamo while it traces; it leaves nothing in the graph."""
    if distributed():
        keep_from_broadcast(kind)


def check_not_joining(wrappers: Wrappers) -> None:
    """Raises if ranks that are out of data shadow the collectives of DDP, and would take `step()`'s for one of them.

    Raises:
        RuntimeError: A wrapper is within `join()`.
    """
    for wrapper in wrappers:
        config = getattr(wrapper(), "_join_config", None)
        if config is not None and config.enable and not config.throw_on_early_termination:
            raise errors.within_join()
