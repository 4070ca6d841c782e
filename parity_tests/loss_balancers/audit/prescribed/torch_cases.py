"""What of `cases` is compiled with PyTorch too, and planted faults of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from loss_balancers.audit.prescribed.cases import ELEMENTARY, EMA, RATIO_NAMES, RATIOS, Balancer, Case, all_cases, balancers
from loss_balancers.audit.prescribed.planted import no_barrier, planted_cases, tree_sum
from loss_balancers.audit.prescribed.reference import COMMITS
from loss_balancers.audit.prescribed.state_cases import state_cases
from loss_balancers.spec import registry


@dataclass(frozen=True)
class TorchCase:
    """One function to compile with PyTorch.

    Args:
        case: The case of which it is the twin: its name, its DAG, its draws.
        function: Builds the forward, of as many scalars as there are ``losses``.
        losses: How many it takes.
        gradient: Whether its gradient is the case, or a part of it.
        buffers: Whether it reads buffers of a balancer.
        writes: Whether it overwrites state: a case of `state_cases`.
        fault: Plants its fault while it is compiled.
    """

    case: Case
    function: Callable[[], Callable[..., Any]]
    losses: int
    gradient: bool
    buffers: bool = False
    writes: bool = False
    fault: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def slug(self) -> str:
        return self.case.slug


def torch_cases() -> list[TorchCase]:
    """Every case that has a twin here, then those that PyTorch alone has."""
    forwards = {
        **{name: lambda each=each: _balancer(each) for name, each in balancers().items()},
        "div": _div,
        **{name: lambda name=name: _elementary(name) for name in ELEMENTARY},
        "softmax": _softmax,
        "planted: no barrier": lambda: no_barrier,
        "planted: tree sum": _tree_sum,
        "planted: native division": lambda: _natively(_div),
        **{f"planted: native {name}": lambda name=name: _native(name) for name in ELEMENTARY},
        f"planted: native division, {EMA.balancer}": lambda: _natively(lambda: _balancer(Balancer(EMA, EMA.names))),
        f"planted: native division, {RATIOS.balancer}": lambda: _natively(lambda: _balancer(Balancer(RATIOS, RATIO_NAMES))),
    }
    cases = []
    for case in (*all_cases(), *planted_cases()):
        gradient = case.name.endswith(" gradient")
        name = case.name.removesuffix(" gradient").removesuffix(" forward")
        if name in forwards:
            buffers = any(each.settings.state and each.settings.balancer in name for each in balancers().values())
            cases.append(TorchCase(case, forwards[name], case.arguments - gradient, gradient, buffers))
    return [*cases, *(TorchCase(*each[:3], each.losses > 0, writes=True, fault=each.fault) for each in state_cases())]


def _balancer(each: Balancer) -> Callable[..., Any]:
    """The aggregate, a function of the losses; the state is the balancer's own."""
    import loss_balancers.torch

    settings, names = each
    balancer = registry.make(settings, loss_balancers.torch).eval()
    if settings.state:
        balancer.steps.fill_(COMMITS)
    return lambda *losses: balancer(dict(zip(names, losses, strict=True)))


def _div() -> Callable[..., Any]:
    from loss_balancers.torch.portable import div

    return div


def _elementary(name: str) -> Callable[..., Any]:
    from loss_balancers.torch import portable

    return getattr(portable, name)


def _native(name: str) -> Callable[..., Any]:
    import torch

    from loss_balancers.torch.rounding import keep

    return lambda x: keep(getattr(torch, name)(keep(x)))


def _softmax() -> Callable[..., Any]:
    import torch

    from loss_balancers.torch.portable import softmax

    return lambda *numbers: softmax(torch.stack(numbers))


def _tree_sum() -> Callable[..., Any]:
    from loss_balancers.torch.rounding import keep

    return tree_sum(keep)


def _natively(build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """What ``build`` builds, with the device's own division wherever it divides."""
    from loss_balancers.torch.portable import division

    division._divides = lambda a: True  # the process sets it back before the next case
    return build()
