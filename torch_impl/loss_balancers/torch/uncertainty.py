"""`UncertaintyLossBalancer`: the uncertainty of each loss as a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from loss_balancers.spec.uncertainty import UncertaintyLossBalancerSettings
from loss_balancers.torch.learned import LearnedLossBalancer
from loss_balancers.torch.portable import div, exp, log, rmul


class UncertaintyLossBalancer(LearnedLossBalancer):
    """The uncertainty of each loss as a parameter: a loss that stays high is taken for a noisy one, and counts less.

    With ``form="kendall"``, ``aggregate = sum(0.5 * exp(-s_k) * L_k + 0.5 * s_k)``, where ``s_k`` is the logarithm of a variance.
    The derivative by ``s_k`` is ``0.5 - 0.5 * exp(-s_k) * L_k``: where it is zero, the weight is ``0.5 / L_k``. The aggregate may
    be negative. With ``form="regularized"``, ``aggregate = sum(L_k / (2 * s_k ** 2) + log(1 + s_k ** 2))``, where ``s_k`` is a
    deviation; the penalty is never negative.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        form: "kendall", the default, or "regularized".
        initial: The parameter at the beginning: a number, or name to number. With "kendall" from -80 to 80, default 0; with
            "regularized" from 2^-60 to 2^60, default 1. The default holds for each loss that is not named, too.
        total_weight: What the weights sum to at the beginning: "paper", the default, as the formula has it, "K" as much as there
            are losses, "one" 1. The penalty is multiplied by the same number.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32 and mixtures; the aggregate has their common type. What is between is float32.

    State:
        None that `step()` commits. ``log_variance``, or ``deviation`` with "regularized", float32 ``(K,)``, is a parameter: the
        ``s`` above, in canonical order.

    Raises:
        TypeError: An argument is of the wrong type. At a call: a loss is float64. Else: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import UncertaintyLossBalancer
        >>> student, balancer = torch.nn.Linear(4, 2), UncertaintyLossBalancer(("student_loss", "MSELoss_0"))
        >>> groups = [{"params": student.parameters()}, {"params": balancer.parameters(), "weight_decay": 0.0}]
        >>> balancer.is_optimized_by(torch.optim.AdamW(groups))
        True
        >>> balancer({"student_loss": torch.tensor(2.0), "MSELoss_0": torch.tensor(0.25)}).item()
        1.125

    Reference:
        "kendall": Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        CVPR 2018, arXiv:1705.07115. "regularized": Liebel, Körner, "Auxiliary Tasks in Multi-task Learning", arXiv:1805.06334.

    Deviations:
        The half of "kendall" is on all losses, classifications too, as the peers have it. A loss that is absent from a call leaves
        the aggregate with its parameter, whose gradient is 0 then. A loss that is zero or below lets a "kendall" parameter fall
        for ever, as in the paper: nothing is clipped.
    """

    log_variance: Parameter
    deviation: Parameter

    def __init__(
        self,
        names: Sequence[str],
        form: str = "kendall",
        initial: float | Mapping[str, float] | None = None,
        total_weight: str = "paper",
    ) -> None:
        super().__init__(UncertaintyLossBalancerSettings(names, form, initial, total_weight))

    @staticmethod
    def _weight_and_penalty(settings: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        if settings.form == "kendall":
            return exp(-s), s
        square = rmul(s, s)
        return div(torch.full_like(square, 0.5), square), log(square + 1.0)
