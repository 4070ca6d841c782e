"""The one numeric primitive, for those who write their own balancers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loss_balancers import spec
from loss_balancers.spec import errors
from loss_balancers.torch.autograd import Weights, apply_total
from loss_balancers.torch.host import host_constant
from loss_balancers.torch.rounding import Dtypes, dtypes_of

FORMATS = {getattr(torch, fmt.dtype): fmt.name for fmt in spec.FORMATS.values()}

#: From how many scalar terms on they are multiplied as one vector.
_STACK_FROM = 4


def weighted_sum(
    terms: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], *, dtype: torch.dtype | None = None
) -> Float[Tensor, "*shape"]:
    """The weighted sum of losses, with the same bits in both frameworks, eager or compiled.

    Use it to write a balancer of your own; :class:`~loss_balancers.torch.StaticLossBalancer` is this and a weight per name.
    With w_i rounded to the compute format: ``p_i = keep(RN(w_i * x_i))``, ``s = RN(RN(p_0 + p_1) + ...)`` in the order given,
    result ``RN(keep(s))``. ``keep`` is +0 at and below the smallest normal number.

    Args:
        terms: At least one tensor, all of one shape and on one device.
        weights: As many finite numbers, on the host. They are constants: no gradient reaches them.
        dtype: The dtype of the result. Default: the common type of the terms (bfloat16 with float16 gives float32).

    Shape:
        Each term ``(*shape)``, often ``()``; the result too.

    Dtype:
        bfloat16, float16, float32, float64. Computed in float64 if a term or ``dtype`` is float64, else in float32.

    Returns:
        The sum. Its gradient to a term is ``keep(RN(w_i * g))`` in the term's dtype, to any order, forward and reverse.

    Raises:
        TypeError: A term is no floating-point tensor, a weight no real number, or ``dtype`` not supported.
        ValueError: No terms, not as many weights, a weight that is not finite, shapes or devices that differ.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.functional import weighted_sum
        >>> weighted_sum([torch.tensor(2.0), torch.tensor(4.0)], [0.25, 0.75])
        tensor(3.5000)

    Reference:
        docs/spec/2-arithmetic.md, A1 to A8.
    """
    checked = spec.finite_weights(weights, len(terms))
    terms = list(check_losses({f"terms[{i}]": x for i, x in enumerate(terms)}).values())
    if dtype is not None and dtype not in FORMATS:
        raise errors.dtype_not_supported(str(dtype).removeprefix("torch."))
    dtypes = dtypes_of_terms(terms, dtype)
    if max(abs(weight) for weight in checked) <= 1.0:
        return sum_terms(terms, checked, dtypes)
    # A larger weight can lift a subnormal term, or cotangent, out of the reach of the product's flush: flush both first. A
    # weighted sum with the one weight 1 is `keep`.
    flushed = [sum_terms([x], (1.0,), dtypes_of_terms([x], dtypes.compute)) for x in terms]
    total = sum_terms(flushed, checked, dtypes_of_terms(flushed, dtypes.compute))
    return sum_terms([total], (1.0,), dtypes_of_terms([total], dtypes.result))


def check_losses(losses: dict[str, Any]) -> dict[str, Tensor]:
    """The losses as they are. Refuses what is no floating-point tensor, and shapes or devices that differ (spec E4 to E6)."""
    first = next(iter(losses.values()))
    shape, device = getattr(first, "shape", None), getattr(first, "device", None)
    for x in losses.values():
        if not (isinstance(x, Tensor) and x.dtype in FORMATS and x.shape == shape and x.device == device):
            raise spec.bad_losses({name: _describe(loss) for name, loss in losses.items()})
    return losses


def _describe(loss: object) -> spec.LossInfo:
    if not isinstance(loss, Tensor):
        return spec.LossInfo(type(loss).__name__, is_loss=False)
    kind = f"an array of {str(loss.dtype).removeprefix('torch.')}"
    return spec.LossInfo(kind, loss.dtype in FORMATS, tuple(loss.shape), str(loss.device))


def sum_terms(terms: Sequence[Tensor], weights: tuple[float, ...], dtypes: Dtypes) -> Tensor:
    """`weighted_sum` without its checks, for weights of at most 1."""
    return apply_total(_multipliers(weights, dtypes.compute, terms), dtypes, terms)


def dtypes_of_terms(terms: Sequence[Tensor], dtype: torch.dtype | None = None) -> Dtypes:
    """The dtypes of a sum of these terms."""
    return dtypes_of(tuple([x.dtype for x in terms]), dtype)


def _multipliers(weights: tuple[float, ...], compute: torch.dtype, terms: Sequence[Tensor]) -> Weights:
    """The rounded weights in the form that is fastest here; the same values in all."""
    if torch.compiler.is_compiling():
        return _rounded(weights, FORMATS[compute])
    x = terms[0]
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return _rounded(weights, FORMATS[compute])  # fake or distributed tensors do not mix with plain ones
    vector, scalars = _on_device(weights, compute, x.device)
    return vector if len(terms) >= _STACK_FROM and x.ndim == 0 else scalars


@host_constant
def _rounded(weights: tuple[float, ...], compute: str) -> tuple[float, ...]:
    return tuple(spec.round_weight(weight, compute) for weight in weights)


@lru_cache(maxsize=1024)
def _on_device(weights: tuple[float, ...], compute: torch.dtype, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rounded weights on the device, copied once for each device and format."""
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        vector = torch.tensor(_rounded(weights, FORMATS[compute]), dtype=compute, device=device)
        return vector, vector.unbind(0)
