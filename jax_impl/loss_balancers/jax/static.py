"""`StaticLossBalancer`: fixed weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.amounts import on_device, presence, without_absent
from loss_balancers.jax.base import DistillationLossBalancer, WarnedOnce, broken_down
from loss_balancers.jax.functional import balance
from loss_balancers.jax.rounding import compute_dtype


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
        None. No variables; ``nnx.state()`` is empty. The weights are static: balancers with equal weights share a compilation.

    Raises:
        TypeError: A weight is not a real number, or ``kd_loss_weight`` has none of the three forms. At a call: see `canonical`.
        ValueError: A weight or their sum is out of bounds, or there is none. At a call: weights and KD losses do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import StaticLossBalancer
        >>> balancer = StaticLossBalancer([0.25, 0.5])
        >>> balancer({"student_loss": jnp.float32(4.0), "KLDivLoss_1": jnp.float32(2.0), "MSELoss_0": jnp.float32(8.0)})
        Array(4., dtype=float32)

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
        self._warned = WarnedOnce()

    @property
    def kd_loss_weight(self) -> Any:
        """The weights as given, a copy."""
        return self._settings.as_given

    @property
    def student_loss_weight(self) -> float:
        """The weight of the student loss: what the KD weights leave of 1."""
        return self._settings.student_loss_weight

    def __call__(self, loss: Mapping[str, Float[Array, ...]], *, count: Any = None, share: Any = None) -> Float[Array, "*shape"]:
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
        names, terms, dtypes = self._ordered(loss)
        plan = self._plan(names)
        if plan.dropped:
            self._warn_once(spec.errors.dropped_student_weight(plan.dropped, names))
        terms, _ = self._present(names, terms, count, share)
        return balance(terms, dtypes, plan.factors)

    def weights(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Any]:
        """The weight that `__call__` would apply to each loss, in canonical order. Changes no state.

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
        plan = self._plan(spec.canonical_order(tuple(loss)))
        return dict(zip(plan.names, plan.weights, strict=True))

    def breakdown(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> dict[str, Array]:
        """What `__call__` makes of each loss, for logging: detached, on the device, the same names at every step.

        Returns:
            ``{name}/raw``, ``{name}/weight`` and ``{name}/weighted`` of each loss in canonical order, then ``total``. For
            an absent loss all are 0.

        ``count``, ``share`` and what it raises: as `__call__`.
        """
        names, terms, dtypes = self._ordered(loss)
        plan = self._plan(names)
        compute = compute_dtype(*dtypes)
        weights = [jnp.full((), weight, compute) for weight in plan.weights]
        terms, present = self._present(names, terms, count, share)
        if present is not None:
            weights = without_absent(weights, present)
        return broken_down(names, terms, dtypes, weights, balance(terms, dtypes, plan.factors))

    def __repr__(self) -> str:
        return f"StaticLossBalancer(kd_loss_weight={self.kd_loss_weight})"

    def __str__(self) -> str:
        return repr(self)  # nnx's own shows no static attribute

    @staticmethod
    def _present(names: tuple[str, ...], terms: list[Array], count: Any, share: Any) -> tuple[list[Array], Array | None]:
        """The losses, +0 for an absent one, and whether each is present; None if all are."""
        amounts = spec.checked_amounts(names, count, share)
        present = None if amounts is None else presence(amounts, on_device(amounts))
        return terms if present is None else without_absent(terms, present), present

    def _plan(self, names: tuple[str, ...]) -> spec.Plan:
        return spec.static_plan(self._settings, names)

    def _warn_once(self, message: str) -> None:
        if not self._warned.done:
            self._warned.done = True
            warnings.warn(message, UserWarning, stacklevel=3)
