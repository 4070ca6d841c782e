"""What DistributedDataParallel does to a balancer in its model, and how it is kept from that.

By default it sends rank 0's buffers to all ranks at every forward, over what each rank has observed. Each wrapper has a set of
names that it passes by. PyTorch calls a hook whenever a module gets a submodule; there the names of a balancer's buffers are added
to that set, while the wrapper is made, or when a wrapped model gets its balancer later. No code of the balancer has to run for it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from torch import distributed as dist
from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.distributed.algorithms.join import Join
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.spec import errors
from loss_balancers.torch.carried import CarriesState

#: The wrappers of the process.
_wrappers: WeakSet[DistributedDataParallel] = WeakSet()

#: The last `_join_config` seen on a wrapper, and the contexts that have set it.
_contexts: WeakKeyDictionary[DistributedDataParallel, tuple[object, tuple[ref[Join], ...]]] = WeakKeyDictionary()


class PassedBy(set[str]):
    """The names that a wrapper passes by, but for one moment: when it is made, it sends committed state to all ranks.

    It does so with everything in a model, since rank 0 may be the only one that has loaded it.
    """

    def __init__(self, names: Iterable[str], sent_once: Iterable[str], wrapper: DistributedDataParallel) -> None:
        super().__init__(names)
        self._sent_once = frozenset(sent_once)
        self._wrapper = ref(wrapper)

    def __contains__(self, name: object) -> bool:
        # A wrapper lists the buffers to send at a forward, then sends everything once, then makes its reducer.
        wrapper = self._wrapper()
        if hasattr(wrapper, "reducer"):
            wrapper.parameters_to_ignore = set(self)  # type: ignore[reportOptionalMemberAccess] -- which answers faster
        elif hasattr(wrapper, "modules_buffers") and name in self._sent_once:
            return False
        return super().__contains__(name)

    def __reduce__(self) -> Any:
        return set, (list(self),)


def _pass_by(wrapper: DistributedDataParallel, tree: nn.Module, prefix: str) -> None:
    """Has ``wrapper`` pass by the buffers of all balancers in ``tree``, which is, or will be, at ``prefix`` in its model."""
    passed_by, sent_once = set(), set()
    for path, module in tree.named_modules(prefix=prefix, remove_duplicate=False):
        if isinstance(module, CarriesState):
            names = {name for name, _ in module.named_buffers(path, recurse=False)}
            passed_by |= names
            sent_once |= {name for name in names if module._is_shared(name.rpartition(".")[2])}
    if passed_by:
        wrapper.parameters_to_ignore = PassedBy(wrapper.parameters_to_ignore | passed_by, sent_once, wrapper)


def _on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """What PyTorch calls when a module gets a submodule."""
    if child is None or is_dynamo_compiling():  # traced, it would have guards on the wrappers of the process
        return
    if name == "module" and isinstance(parent, DistributedDataParallel):
        _wrappers.add(parent)
        _pass_by(parent, child, "")
    elif _wrappers and any(isinstance(module, CarriesState) for module in child.modules()):
        for wrapper in _wrappers:
            for prefix, module in wrapper.module.named_modules(remove_duplicate=False):
                if module is parent:
                    _pass_by(wrapper, child, f"{prefix}.{name}" if prefix else name)


register_module_module_registration_hook(_on_registration)
if dist.is_available() and dist.is_initialized():  # else there is no wrapper yet
    _wrappers.update(x for x in gc.get_objects() if issubclass(type(x), DistributedDataParallel))


def check_not_joining(balancer: nn.Module) -> None:
    """Raises if ranks that are out of data shadow the collectives of DDP, and would take `step()`'s for one of them.

    Raises:
        RuntimeError: A wrapper of the balancer is within `join()`, or any wrapper if the balancer is in none.
    """
    joining = [wrapper for wrapper in _wrappers if _joining(wrapper)]
    if joining:
        around = [wrapper for wrapper in _wrappers if any(module is balancer for module in wrapper.module.modules())]
        if not around or any(wrapper in joining for wrapper in around):
            raise errors.within_join()


def _joining(wrapper: DistributedDataParallel) -> bool:
    """Whether ``wrapper`` is within `join()`.

    The wrapper itself does not say: PyTorch sets `enable` and never takes it back. But the context lives as long as the `with`.
    """
    config = wrapper._join_config
    if not config.enable or config.throw_on_early_termination:
        return False
    seen, contexts = _contexts.get(wrapper, (None, ()))
    if seen is not config:  # look for the contexts among all objects, once for each `join()`
        found = [x for x in gc.get_objects() if issubclass(type(x), Join)]
        contexts = tuple(ref(x) for x in found if any(joinable is wrapper for joinable in x._joinables))
        _contexts[wrapper] = config, contexts
    return any(context() is not None for context in contexts)
