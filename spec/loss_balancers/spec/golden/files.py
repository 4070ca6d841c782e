"""Which files of golden vectors there are, and what writes each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from loss_balancers.spec import golden
from loss_balancers.spec.registry import SETTINGS, stem


def _writer(name: str) -> Callable[[], str]:
    return getattr(import_module(f"{golden.__name__}.{name}"), f"{name}_vectors")


#: By the name of the file, without its suffix: as the balancer's module is called.
FILES: dict[str, Callable[[], str]] = {name: _writer(name) for name in map(stem, SETTINGS)}


def unregistered() -> list[str]:
    """Modules that write vectors of no balancer of the registry."""
    modules = [module.name for module in iter_modules(golden.__path__) if module.name not in FILES and module.name != "__main__"]
    return [name for name in modules if hasattr(import_module(f"{golden.__name__}.{name}"), f"{name}_vectors")]
