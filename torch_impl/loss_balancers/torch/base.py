"""The interface of all balancers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loss_balancers import spec
from loss_balancers.torch.functional import check_terms
from loss_balancers.torch.host import host_constant
from loss_balancers.torch.portable import rmul
from loss_balancers.torch.rounding import compute_dtype, widen

canonical_order = host_constant(spec.canonical_order.__wrapped__)


class DistillationLossBalancer(nn.Module, ABC):
    """Turns the losses of a distillation step into the one loss that is trained on.

    Subclass it to write a balancer of your own: implement ``forward``, and let :meth:`canonical` handle names, order,
    checks and the student's reduction. The interface is that of ``modelopt.torch.distill.loss_balancers``.

    State:
        None. No parameters; ``state_dict()`` is empty.

    Raises:
        TypeError: This class itself is instantiated, or a subclass without ``forward``.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import DistillationLossBalancer, functional
        >>> class MeanLossBalancer(DistillationLossBalancer):
        ...     def forward(self, loss):
        ...         losses = self.canonical(loss)
        ...         return functional.weighted_sum(list(losses.values()), [1 / len(losses)] * len(losses))
        >>> MeanLossBalancer()({"student_loss": torch.tensor(1.0), "MSELoss_0": torch.tensor(2.0)})
        tensor(1.5000)
    """

    def __init__(self) -> None:
        super().__init__()
        self._student_loss_reduction_fn: Callable[[Any], Tensor] | None = None

    def set_student_loss_reduction_fn(self, student_loss_reduction_fn: Callable[[Any], Tensor] | None) -> None:
        """Sets what is applied to the student loss, and to nothing else, before balancing.

        Args:
            student_loss_reduction_fn: From the student loss, whatever it is, to a tensor of the KD losses' shape. None removes it.

        Raises:
            TypeError: It is neither callable nor None.
        """
        spec.check_reduction_fn(student_loss_reduction_fn)
        self._student_loss_reduction_fn = student_loss_reduction_fn

    @abstractmethod
    def forward(self, loss: Mapping[str, Float[Tensor, ...]]) -> Float[Tensor, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``."""

    def observe(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses. Here it does nothing: this balancer has no state."""
        del loss, count, share

    def step(self) -> None:
        """Commits what was observed. Here it does nothing: this balancer has no state."""

    def discard(self) -> None:
        """Drops what was observed. Here it does nothing: this balancer has no state."""

    def canonical(self, loss: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses as a balancer wants them: checked, in canonical order, the student's loss reduced and last.

        KD losses come by ascending ``idx`` if all names end in a distinct ``_{idx}``, else by name. ``loss`` is not changed.

        Args:
            loss: The mapping that ``forward`` was given.

        Returns:
            A new dict from name to loss.

        Raises:
            TypeError: ``loss`` is not a mapping, a name is not a string, or a loss is not a floating-point tensor.
            ValueError: There is no KD loss, or shapes or devices differ.
        """
        names, terms, _ = self._ordered(loss)
        return dict(zip(names, terms, strict=True))

    def _ordered(self, loss: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Tensor], tuple[torch.dtype, ...]]:
        """`canonical`, as names, losses and their dtypes."""
        if type(loss) is not dict:  # a dict needs no check against the abstract base class
            spec.check_mapping(loss)
        names = canonical_order(tuple(loss))
        terms = list(map(loss.__getitem__, names))
        if self._student_loss_reduction_fn is not None and names[-1] == spec.STUDENT_LOSS_KEY:
            terms[-1] = self._student_loss_reduction_fn(terms[-1])
        return names, terms, check_terms(names, terms)


def broken_down(
    names: tuple[str, ...], terms: Sequence[Tensor], dtypes: Sequence[Any], weights: Iterable[Tensor], total: Tensor
) -> dict[str, Tensor]:
    """What ``breakdown`` returns: each loss, its weight and their product in the compute format, then the aggregate."""
    compute = compute_dtype(*dtypes)
    parts: dict[str, Tensor] = {}
    for name, x, weight in zip(names, terms, weights, strict=True):
        raw = x.detach()
        wide = widen(raw, compute)
        weighted = rmul(wide, weight.to(compute).expand_as(wide))
        parts |= {f"{name}/raw": raw, f"{name}/weight": weight, f"{name}/weighted": weighted}
    return {**parts, "total": total.detach()}
