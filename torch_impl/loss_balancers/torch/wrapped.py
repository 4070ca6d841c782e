"""What DistributedDataParallel does to a balancer in its model, and how it is kept from that.

By default it sends rank 0's buffers to all ranks at every forward, over what each rank has observed. Each wrapper has a set of
names that it passes by, and asks it about each buffer whenever it lists what to send. Our set looks at whose buffer that is now, so
it does not matter when or how the model got its balancer, nor where else in the model the same buffer stands. A wrapper gets it
when it is made: PyTorch calls a hook whenever a module gets a submodule, and a wrapper's first is its model. No code of the
balancer has to run for it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from torch import distributed as dist
from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.distributed.algorithms.join import Join
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from loss_balancers.spec import errors
from loss_balancers.torch.carried import CarriesState, owner_of

#: The wrappers of the process.
_wrappers: WeakSet[DistributedDataParallel] = WeakSet()

#: The last `_join_config` seen on a wrapper, and the contexts that have set it.
_contexts: WeakKeyDictionary[DistributedDataParallel, tuple[object, tuple[ref[Join], ...]]] = WeakKeyDictionary()


class PassedBy(set[str]):
    """The names that a wrapper passes by: those that it was given, and the buffers of all balancers in its model.

    But for one moment: when a wrapper is made, it sends committed state to all ranks. It does so with everything in a model, since
    rank 0 may be the only one that has loaded it.
    """

    def __init__(self, names: Iterable[str], model: nn.Module, made: DistributedDataParallel | None = None) -> None:
        super().__init__(names)
        self._model = model
        #: The wrapper, while it is made.
        self._made = None if made is None else ref(made)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str):
            path, _, last = name.rpartition(".")
            module = _submodule(self._model, path)
            buffer = None if module is None else module._buffers.get(last)  # a parameter of a subclass has a gradient to reduce
            owned = None if buffer is None else owner_of(buffer)  # whoever else has it too, under whatever name
            if owned is not None:
                balancer, entry = owned
                return not (balancer._is_shared(entry) and self._sends_once())
        return super().__contains__(name)

    def _sends_once(self) -> bool:
        # A wrapper lists the buffers to send at a forward, then sends everything once, then makes its reducer.
        wrapper = None if self._made is None else self._made()
        if wrapper is None or hasattr(wrapper, "reducer"):
            self._made = None
            return False
        return hasattr(wrapper, "modules_buffers")

    def __deepcopy__(self, memo: dict[int, Any]) -> PassedBy:
        return PassedBy(self, deepcopy(self._model, memo))

    def __reduce__(self) -> Any:
        # What has no balancer can be unpickled where this library is not.
        has_one = any(isinstance(module, CarriesState) for module in self._model.modules())
        return (PassedBy, (list(self), self._model)) if has_one else (set, (list(self),))


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The submodule that `named_buffers` calls so; an attribute that `setattr` made may have dots in its own name."""
    if not path:
        return model
    found = (
        _submodule(child, path[len(name) + 1 :])
        for name, child in model._modules.items()
        if child is not None and (path == name or path.startswith(f"{name}."))
    )
    return next((module for module in found if module is not None), None)


def _watch(wrapper: DistributedDataParallel, model: nn.Module) -> None:
    _wrappers.add(wrapper)
    wrapper.parameters_to_ignore = PassedBy(wrapper.parameters_to_ignore, model, wrapper)


def _on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """What PyTorch calls when a module gets a submodule: whatever module, so here is nothing that could fail for one.

    Dynamo traces it for a module that it is making itself. No wrapper is made there, and such a module cannot be looked at yet.
    """
    if is_dynamo_compiling():
        return
    if name == "module" and child is not None and isinstance(parent, DistributedDataParallel):
        _watch(parent, child)


register_module_module_registration_hook(_on_registration)
if dist.is_available() and dist.is_initialized():  # else there is no wrapper yet
    for _wrapper in [x for x in gc.get_objects() if issubclass(type(x), DistributedDataParallel)]:
        _watch(_wrapper, _wrapper.module)


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
