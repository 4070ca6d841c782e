"""`IMTLLossBalancer`: the scale of each loss as a parameter, by impartial multi-task learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from loss_balancers.spec.imtl import IMTLLossBalancerSettings
from loss_balancers.torch.learned import LearnedLossBalancer
from loss_balancers.torch.portable import exp


class IMTLLossBalancer(LearnedLossBalancer):
    """The scale of each loss as a parameter: weights that bring every loss to 1.

    ``aggregate = sum(exp(s_k) * L_k - s_k)``. The derivative by ``s_k`` is ``exp(s_k) * L_k - 1``: where it is zero, the weight
    ``exp(s_k)`` is ``1 / L_k``. It is `UncertaintyLossBalancer` with ``-s`` in place of ``s``, times 2.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        initial: The parameter at the beginning, from -80 to 80: a number, or name to number. Default: 0 for each, and for each that
            is not named.
        total_weight: What the weights sum to at the beginning: "paper", the default, as the formula has it, "K" as much as there
            are losses, "one" 1. The penalty is multiplied by the same number.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32 and mixtures; the aggregate has their common type. What is between is float32.

    State:
        None that `step()` commits. ``log_scale``, float32 ``(K,)``, is a parameter: the ``s`` above, in canonical order.

    Raises:
        TypeError: An argument is of the wrong type. At a call: a loss is float64. Else: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import IMTLLossBalancer
        >>> student, balancer = torch.nn.Linear(4, 2), IMTLLossBalancer(("student_loss", "MSELoss_0"))
        >>> groups = [{"params": student.parameters()}, {"params": balancer.parameters(), "weight_decay": 0.0}]
        >>> balancer.is_optimized_by(torch.optim.AdamW(groups))
        True
        >>> balancer({"student_loss": torch.tensor(2.0), "MSELoss_0": torch.tensor(0.25)}).item()
        2.25

    Reference:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021: the loss balance, IMTL-L, with the base e.

    Deviations:
        A loss that is absent from a call leaves the aggregate with its parameter, whose gradient is 0 then. A loss that is zero or
        below lets its parameter grow for ever, as in the paper: nothing is clipped.
    """

    log_scale: Parameter

    def __init__(
        self, names: Sequence[str], initial: float | Mapping[str, float] | None = None, total_weight: str = "paper"
    ) -> None:
        super().__init__(IMTLLossBalancerSettings(names, initial, total_weight))

    @staticmethod
    def _weight_and_penalty(settings: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        del settings
        return exp(s), s
