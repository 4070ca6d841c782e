"""`StaticLossBalancer`: fixed weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from loss_balancers import spec
from loss_balancers.torch.again import Again, LastPlan, repeatable
from loss_balancers.torch.amounts import on_device, presence, without_absent
from loss_balancers.torch.base import DistillationLossBalancer, broken_down, canonical_order
from loss_balancers.torch.functional import balance
from loss_balancers.torch.host import host_constant, warn_while_tracing
from loss_balancers.torch.rounding import compute_dtype


@host_constant
def static_plan(settings: str, names: tuple[str, ...]) -> spec.Plan:
    """`spec.static_plan` for settings as text, since Dynamo of PyTorch 2.11 and before makes no constant of a dataclass."""
    return spec.static_plan(spec.StaticLossBalancerSettings.from_json(settings), names)


class StaticLossBalancer(DistillationLossBalancer):
    """Balances KD losses and student loss with fixed weights.

    The first choice where the scales of the losses are known. With a number w: ``w * sum(KD losses) + (1 - w) * student``. With
    a weight per KD loss: ``sum(w_i * KD_i) + (1 - sum(w)) * student``.

    Args:
        kd_loss_weight: A number; a sequence, one weight per KD loss in canonical order (ascending ``idx``); or a mapping from
            name to weight, which may name ``student_loss`` if all then sum to 1. Each weight is in [0, 1] and their sum at
            most 1. Default 0.5, as in ModelOpt.

    Shape:
        Losses of any one shape ``(*shape)``, scalars mostly; the aggregate has it too.

    Dtype:
        bfloat16, float16, float32, float64 and mixtures; the aggregate has their common type. Computed in float32, in float64
        if a loss is float64.

    State:
        None. No parameters; ``state_dict()`` is empty.

    Raises:
        TypeError: A weight is not a real number, or ``kd_loss_weight`` has none of the three forms. At a call: see `canonical`.
        ValueError: A weight or their sum is out of bounds, or there is none. At a call: weights and KD losses do not match.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import StaticLossBalancer
        >>> balancer = StaticLossBalancer([0.25, 0.5])
        >>> balancer({"student_loss": torch.tensor(4.0), "KLDivLoss_1": torch.tensor(2.0), "MSELoss_0": torch.tensor(8.0)})
        tensor(4.)

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2 (a weighted
        average of two objectives); the interface is that of NVIDIA ModelOpt, ``modelopt.torch.distill.loss_balancers``.

    Deviations:
        From ModelOpt: any number of KD losses with one weight, weights by name, no negative weights, canonical order instead of
        the dict's, errors in words, a warning at the first call that drops the student's weight and not at construction.
    """

    def __init__(self, kd_loss_weight: float | Sequence[float] | Mapping[str, float] = 0.5) -> None:
        super().__init__()
        self._settings = spec.StaticLossBalancerSettings(kd_loss_weight)
        self._text = self._settings.to_json()
        self._warned = False
        # What the last call worked out. A call reads each once, since threads that share a balancer may replace it.
        self._last_plan: LastPlan | None = None
        self._again: Again | None = None

    @property
    def kd_loss_weight(self) -> Any:
        """The weights as given, a copy."""
        return self._settings.as_given

    @property
    def student_loss_weight(self) -> float:
        """The weight of the student loss: what the KD weights leave of 1."""
        return self._settings.student_loss_weight

    def forward(self, loss: Mapping[str, Float[Tensor, ...]], *, count: Any = None, share: Any = None) -> Float[Tensor, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``.

        Args:
            loss: The losses.
            count: The number of items that each loss is the mean of, as balancers with state take it: a number, or a mapping from
                name to number. Here only 0 matters: a loss with the count 0 is absent, and its weight is 0.
            share: The part of the step's mean that each loss is, in the same forms; 0 says the same.

        Raises:
            TypeError: Both ``count`` and ``share`` are given, or one is not made of numbers. Else: see `canonical`.
            ValueError: A number is negative or not finite, or the names are not those of the losses. Else: see `canonical`.
        """
        plain = count is None and share is None
        eager = plain and self._student_loss_reduction_fn is None and not is_dynamo_compiling()
        again = self._again if eager else None
        if again is not None and (aggregate := again.total(loss)) is not None:
            return aggregate
        names, terms, dtypes = self._ordered(loss)
        plan = self._plan(names)
        if plan.dropped:
            self._warn_once(spec.errors.dropped_student_weight(plan.dropped, names))
        elif eager:
            self._again = repeatable(loss, plan, terms, dtypes)
        if not plain:
            terms, _ = self._present(names, terms, count, share)
        return balance(terms, dtypes, plan.factors)

    def weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """The weight that `forward` would apply to each loss, in canonical order. Changes no state.

        Returns:
            Numbers on the host; with ``count`` or ``share`` scalars on the device, in the compute format.

        Raises:
            TypeError: ``loss`` is not a mapping, or a name is not a string.
            ValueError: There is no KD loss, or weights and KD losses do not match.
        """
        if count is not None or share is not None:
            parts = self.breakdown(loss, count=count, share=share)
            return {name: parts[f"{name}/weight"] for name in self.canonical(loss)}
        spec.check_mapping(loss)
        plan = self._plan(canonical_order(tuple(loss)))
        return dict(zip(plan.names, plan.weights, strict=True))

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Tensor]:
        """What `forward` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. For
            an absent loss all are 0.

        ``count``, ``share`` and what it raises: as `forward`.
        """
        names, terms, dtypes = self._ordered(loss)
        plan = self._plan(names)
        compute = compute_dtype(*dtypes)
        weights = [torch.full((), weight, dtype=compute, device=terms[0].device) for weight in plan.weights]
        terms, present = self._present(names, terms, count, share)
        if present is not None:
            weights = without_absent(weights, present)
        return broken_down(names, terms, dtypes, weights, balance(terms, dtypes, plan.factors))

    def extra_repr(self) -> str:
        """What ``repr`` shows of the settings."""
        return f"kd_loss_weight={self.kd_loss_weight}"

    @staticmethod
    def _present(names: tuple[str, ...], terms: list[Tensor], count: Any, share: Any) -> tuple[list[Tensor], Tensor | None]:
        """The losses, +0 for an absent one, and whether each is present; None if all are."""
        amounts = spec.checked_amounts(names, count, share)
        present = None if amounts is None else presence(amounts, on_device(amounts, terms[0].device))
        return terms if present is None else without_absent(terms, present), present

    def _plan(self, names: tuple[str, ...]) -> spec.Plan:
        if is_dynamo_compiling():
            return static_plan(self._text, names)  # keeping it on self would cause another compilation
        last = self._last_plan
        if last is None or last.plan.names != names:
            self._last_plan = last = LastPlan(spec.static_plan(self._settings, names))
        return last.plan

    def _warn_once(self, message: str) -> None:
        if is_dynamo_compiling():
            warn_while_tracing(message)  # once per compilation: a note on self would cause another
        elif not self._warned:
            self._warned = True
            warnings.warn(message, UserWarning, stacklevel=5)  # past two frames of nn.Module
