"""Balancers that NVIDIA ModelOpt takes: `mtd.convert` checks that a balancer is one of its own class."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from torch import nn

from loss_balancers.spec import errors
from loss_balancers.torch.base import DistillationLossBalancer

try:
    from modelopt.torch.distill import DistillationLossBalancer as ModelOptBalancer
except ImportError as error:
    raise ImportError(errors.missing_package("`loss_balancers.torch.modelopt` needs", "ModelOpt", "modelopt")) from error

__all__ = ["as_modelopt"]

Balancer = TypeVar("Balancer", bound=DistillationLossBalancer)


def as_modelopt(balancer: Balancer) -> Balancer:
    """Makes a balancer an ``mtd.DistillationLossBalancer`` of ModelOpt too, and returns it.

    For ``mtd.convert``, which refuses other classes. It is the same object: aggregates, state, the names in ``state_dict()`` and
    ``repr`` stay as they are. ``deepcopy``, ``pickle`` and ``torch.save`` keep both classes.

    ModelOpt only ever calls the forward, and the balancer becomes part of the model. So call ``balancer.step()`` once per
    optimizer step, or build a balancer that changes over time with ``auto_step``. See docs/hosts/modelopt_kd.md.

    Args:
        balancer: A balancer of `loss_balancers.torch`, or one of your own with that base class.

    Returns:
        ``balancer``.

    Raises:
        TypeError: ``balancer`` is not an instance of `loss_balancers.torch.DistillationLossBalancer`, or has parameters, which
            ModelOpt refuses.

    Example:
        >>> from loss_balancers.torch import StaticLossBalancer
        >>> from loss_balancers.torch.modelopt import as_modelopt
        >>> as_modelopt(StaticLossBalancer([0.25, 0.5]))
        StaticLossBalancer(kd_loss_weight=[0.25, 0.5])

    Reference:
        The check is in ``modelopt.torch.distill.config``, `KDLossConfig` (NVIDIA ModelOpt 0.47).
    """
    if not isinstance(balancer, DistillationLossBalancer):
        raise errors.not_a_torch_balancer(balancer)
    if next(balancer.parameters(), None) is not None:
        raise errors.modelopt_parameters([name for name, _ in balancer.named_parameters()])
    if not isinstance(balancer, ModelOptBalancer):
        balancer.__class__ = _in_both(type(balancer))
    return balancer


@cache
def _in_both(own: type[Any]) -> type[Any]:
    """The class that is ``own`` and ModelOpt's: all that it does is in ``own``, which comes first."""
    names = {"__doc__": own.__doc__, "__module__": own.__module__, "__qualname__": own.__qualname__, "__reduce__": _reduced}
    metaclass: Any = type(own)
    return metaclass(own.__name__, (own, ModelOptBalancer), names)


def _reduced(balancer: nn.Module) -> Any:
    """How ``balancer`` is pickled: by its own class, since no module has the class that is both."""
    _, own, *_ = type(balancer).__mro__
    return _empty, (own,), balancer.__getstate__()


def _empty(own: type[nn.Module]) -> nn.Module:
    return object.__new__(_in_both(own))
