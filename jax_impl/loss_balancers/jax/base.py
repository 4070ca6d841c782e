"""The interface of all balancers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from loss_balancers import spec
from loss_balancers.jax.functional import check_terms
from loss_balancers.jax.portable import rmul
from loss_balancers.jax.rounding import compute_dtype, widen


class DistillationLossBalancer(nnx.Module):
    """Turns the losses of a distillation step into the one loss that is trained on.

    Subclass it to write a balancer of your own: implement ``__call__``, and let :meth:`canonical` handle names, order,
    checks and the student's reduction. The interface is that of ``modelopt.torch.distill.loss_balancers``.

    State:
        None. No variables; ``nnx.state()`` is empty.

    Raises:
        TypeError: This class itself is instantiated, or a subclass without ``__call__``.

    Example:
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import DistillationLossBalancer, functional
        >>> class MeanLossBalancer(DistillationLossBalancer):
        ...     def __call__(self, loss):
        ...         losses = self.canonical(loss)
        ...         return functional.weighted_sum(list(losses.values()), [1 / len(losses)] * len(losses))
        >>> MeanLossBalancer()({"student_loss": jnp.float32(1.0), "MSELoss_0": jnp.float32(2.0)})
        Array(1.5, dtype=float32)
    """

    def __init__(self) -> None:
        self._student_loss_reduction_fn: Callable[[Any], Array] | None = None

    def set_student_loss_reduction_fn(self, student_loss_reduction_fn: Callable[[Any], Array] | None) -> None:
        """Sets what is applied to the student loss, and to nothing else, before balancing.

        Args:
            student_loss_reduction_fn: From the student loss, whatever it is, to an array of the KD losses' shape. None removes it.

        Raises:
            TypeError: It is neither callable nor None.
        """
        spec.check_reduction_fn(student_loss_reduction_fn)
        self._student_loss_reduction_fn = student_loss_reduction_fn

    @abstractmethod
    def __call__(self, loss: Mapping[str, Float[Array, ...]]) -> Float[Array, "*shape"]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``."""

    def observe(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses. Here it does nothing: this balancer has no state."""
        del loss, count, share

    def step(self) -> None:
        """Commits what was observed. Here it does nothing: this balancer has no state."""

    def discard(self) -> None:
        """Drops what was observed. Here it does nothing: this balancer has no state."""

    def canonical(self, loss: Mapping[str, Any]) -> dict[str, Array]:
        """The losses as a balancer wants them: checked, in canonical order, the student's loss reduced and last.

        KD losses come by ascending ``idx`` if all names end in a distinct ``_{idx}``, else by name. ``loss`` is not changed.

        Args:
            loss: The mapping that ``__call__`` was given.

        Returns:
            A new dict from name to loss.

        Raises:
            TypeError: ``loss`` is not a mapping, a name is not a string, or a loss is not a floating-point array.
            ValueError: There is no KD loss, or shapes differ.
        """
        names, terms, _ = self._ordered(loss)
        return dict(zip(names, terms, strict=True))

    def _ordered(self, loss: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Array], tuple[Any, ...]]:
        """`canonical`, as names, losses and their dtypes."""
        spec.check_mapping(loss)
        names = spec.canonical_order(tuple(loss))
        terms = list(map(loss.__getitem__, names))
        if self._student_loss_reduction_fn is not None and names[-1] == spec.STUDENT_LOSS_KEY:
            terms[-1] = self._student_loss_reduction_fn(terms[-1])
        return names, *check_terms(names, terms)


def broken_down(
    names: tuple[str, ...], terms: Sequence[Array], dtypes: Sequence[Any], weights: Iterable[Array], total: Array
) -> dict[str, Array]:
    """What ``breakdown`` returns: each loss, its weight and their product in the compute format, then the aggregate."""
    compute = compute_dtype(*dtypes)
    parts: dict[str, Array] = {}
    for name, x, weight in zip(names, terms, weights, strict=True):
        raw = lax.stop_gradient(x)
        wide = widen(raw, compute)
        weighted = rmul(wide, jnp.broadcast_to(weight.astype(compute), wide.shape))
        parts |= {f"{name}/raw": raw, f"{name}/weight": weight, f"{name}/weighted": weighted}
    return {**parts, "total": lax.stop_gradient(total)}


class WarnedOnce:
    """Whether an instance has warned, kept out of what JAX compares.

    All instances are equal and hash alike: two balancers with equal weights share a compilation, and setting the flag while
    tracing causes no second trace. `nnx.split` and `nnx.merge` hand on the object itself, so a copy made for a trace shares it.
    """

    def __init__(self) -> None:
        self.done = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WarnedOnce)

    def __hash__(self) -> int:
        return hash(WarnedOnce)
