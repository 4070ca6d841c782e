"""The one numeric primitive, public so that you can write balancers of your own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from loss_balancers import spec
from loss_balancers.spec import errors
from loss_balancers.torch.autograd import LinearMap, total_in_eager, total_in_graph, total_of_vector_in_eager
from loss_balancers.torch.host import host_constant
from loss_balancers.torch.rounding import FLOAT, TINY, can_keep_tensors, can_read, compute_dtype, keep, one_dtype, vector_of

FORMATS = {getattr(torch, fmt.dtype): fmt.name for fmt in spec.FORMATS.values()}

_CPU = torch.device("cpu")

#: From this number of scalar terms on, one kernel multiplies them as a vector, in place of a kernel for each term.
_STACK_FROM = 4
#: The same for terms of a narrow format, which are converted too.
_STACK_NARROW_FROM = 2


def weighted_sum(
    terms: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float] | Float[Tensor, " terms"],
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*shape"]:
    """The weighted sum of losses, with the same bits in both frameworks, eager or compiled.

    Use it to write a balancer of your own; :class:`~loss_balancers.torch.StaticLossBalancer` is this and a weight per name.
    With w_i rounded to the compute format: ``p_i = keep(RN(w_i * x_i))``, ``s = RN(RN(p_0 + p_1) + ...)`` in the order given,
    result ``RN(keep(s))``. ``keep`` is +0 at and below the smallest normal number.

    Args:
        terms: At least one tensor, all of one shape and on one device.
        weights: As many finite numbers on the host, or a vector on the device, rounded to the compute format and flushed; its
            values are not checked. Constants either way: no gradient reaches them, so a weight that requires grad or has a
            tangent is an error.
        dtype: The dtype of the result. Default: the common type of the terms (bfloat16 with float16 gives float32).

    Shape:
        Each term ``(*shape)``, often ``()``; the result too.

    Dtype:
        bfloat16, float16, float32, float64. Computed in float64 if a term or ``dtype`` is float64, else in float32.

    Returns:
        The sum. Its gradient to a term is ``keep(RN(w_i * g))`` in the term's dtype, to any order, forward and reverse.

    Raises:
        TypeError: A term is not a floating-point tensor, a weight is not a real number, ``dtype`` is not supported, or a weight
            requires grad or has a tangent: detach it.
        ValueError: There are no terms, weights and terms are not equally many, a weight is not finite, or shapes or devices differ.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.functional import weighted_sum
        >>> weighted_sum([torch.tensor(2.0), torch.tensor(4.0)], [0.25, 0.75])
        tensor(3.5000)

    Reference:
        docs/spec/2-arithmetic.md, A1 to A8.
    """
    terms = list(terms)
    if isinstance(weights, Tensor) and layout_of(weights):
        raise errors.weights_not_a_sequence(weights)
    vector = isinstance(weights, Tensor) and weights.dtype in FORMATS and weights.ndim == 1
    if is_dynamo_compiling() and not vector:
        _check_known(weights)
    checked = spec.constant_vector(weights, len(terms)) if vector else spec.finite_weights(weights, len(terms))
    dtypes = check_terms([f"terms[{i}]" for i in range(len(terms))], terms)
    if dtype is not None and dtype not in FORMATS:
        raise errors.dtype_not_supported(str(dtype).removeprefix("torch."))
    if isinstance(checked, Tensor):
        checked = keep(checked.detach().to(compute_dtype(dtype, *dtypes)))  # spec A3
    return sum_terms(terms, dtypes, checked, dtype)


def _check_known(weights: Any) -> None:
    """Raises if a weight is a tensor: in a graph it has no value yet, and to read it would break the graph."""
    for i, weight in enumerate(weights if hasattr(weights, "__iter__") else ()):
        if isinstance(weight, Tensor):
            raise errors.number_traced(f"weights[{i}]", weight)


def check_terms(names: Sequence[str], terms: Sequence[Any]) -> tuple[torch.dtype, ...]:
    """The dtypes. Raises unless all terms are floating-point tensors of one shape on one device (spec E4 to E6)."""
    first, dtypes = terms[0], []
    for x in terms:
        dense = isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested  # a nested tensor has no shape to ask for
        if not (dense and x.dtype in FORMATS and x.shape == first.shape and x.device == first.device):
            raise spec.bad_losses({name: _describe(loss) for name, loss in zip(names, terms, strict=True)})
        dtypes.append(x.dtype)
    return tuple(dtypes)


def layout_of(x: Tensor) -> str:
    """How a tensor lies that is not dense: sparse, nested, or as a library wants it; empty for a dense one."""
    return "nested" if x.is_nested else "" if x.layout is torch.strided else str(x.layout).removeprefix("torch.")


def _describe(loss: object) -> spec.LossInfo:
    if not isinstance(loss, Tensor):
        return spec.LossInfo(errors.kind_of(loss), is_loss=False)
    kind = f"an array of {str(loss.dtype).removeprefix('torch.')}"
    if layout := layout_of(loss):
        return spec.LossInfo(kind, is_loss=False, layout=layout)
    return spec.LossInfo(kind, loss.dtype in FORMATS, tuple(loss.shape), str(loss.device))


class KnownFactors:
    """A vector of factors on the CPU that will be used again: sums by it take the way of weights that are known on the host.

    Immutable but for the sums that were asked for, each of which any thread may work out again.
    """

    __slots__ = ("_at_most_one", "_sums", "vector")

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector
        self._at_most_one = all(abs(factor) <= 1.0 for factor in vector.tolist())
        self._sums: dict[tuple[Any, ...], LinearMap] = {}

    def __len__(self) -> int:
        return self.vector.shape[0]

    def sum_of(self, terms: tuple[torch.dtype, ...], result: torch.dtype | None, scalars: bool) -> LinearMap:
        """The weighted sum of terms of these dtypes."""
        key = terms, result, scalars
        linear = self._sums.get(key)
        if linear is None:
            linear = linear_map(None, terms, result)
            with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
                vector = self.vector.to(linear.compute)
                linear = placed(linear._replace(large=not self._at_most_one), vector, scalars)
            self._sums[key] = linear
        return linear


def balance(terms: Sequence[Tensor], dtypes: tuple[torch.dtype, ...], weights: tuple[float, ...] | Tensor | KnownFactors) -> Tensor:
    """A balancer's aggregate of checked terms in canonical order (spec A5).

    With fewer weights than terms, the leading terms share the first weight, and are added before it is applied.
    """
    shared = len(terms) - len(weights) + 1
    if shared == 1:
        return sum_terms(terms, dtypes, weights)
    dtype = common_dtype(dtypes)
    first = sum_terms(terms[:shared], dtypes[:shared], (1.0,) * shared, compute_dtype(dtype))
    return sum_terms([first, *terms[shared:]], (first.dtype, *dtypes[shared:]), weights, dtype)


def sum_terms(
    terms: Sequence[Tensor],
    dtypes: tuple[torch.dtype, ...],
    weights: tuple[float, ...] | Tensor | KnownFactors,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`weighted_sum` without its checks, of terms of these dtypes; a vector of weights must be flushed."""
    if is_dynamo_compiling():
        total = total_in_graph
        # Under the stance "eager_then_compile", PyTorch 2.11 compiles this function by itself, called by eager code.
        weights = weights.vector if isinstance(weights, KnownFactors) else weights
    else:
        total, x = total_in_eager, terms[0]
        if isinstance(weights, KnownFactors):
            return total(weights.sum_of(dtypes, dtype, x.ndim == 0), None, terms)
        # Tensors of other classes do not mix with plain ones.
        if type(weights) is tuple and (type(x) is Tensor or type(x) is Parameter) and can_keep_tensors(x.device):
            return total(weights_on_device(weights, dtypes, dtype, x.device, x.ndim == 0), None, terms)
    if isinstance(weights, Tensor):
        linear = linear_map(None, dtypes, dtype)
        if total is total_in_eager and _one_kernel_adds(terms):
            linear = linear._replace(adder=_adder(len(terms), linear.compute))
        return total(linear, weights.detach().to(linear.compute), terms)
    return total(linear_map(weights, dtypes, dtype), None, terms)  # type: ignore[reportArgumentType]


def sum_of_vector(vector: Tensor, weights: tuple[float, ...] | Tensor | None = None) -> Tensor:
    """`sum_terms` of the elements of a float32 vector; without weights their sum."""
    count = vector.shape[0]
    if is_dynamo_compiling() or type(vector) is not Tensor or not can_read(vector.device):
        return sum_terms(list(vector.unbind(0)), (FLOAT,) * count, (1.0,) * count if weights is None else weights, FLOAT)
    if isinstance(weights, Tensor):
        return total_of_vector_in_eager(*_of_vector(None, count, vector.device), weights.detach(), vector)
    return total_of_vector_in_eager(*_of_vector(weights or (1.0,) * count, count, vector.device), None, vector)


@lru_cache(maxsize=1024)
def _of_vector(weights: tuple[float, ...] | None, count: int, device: torch.device) -> tuple[LinearMap, Any]:
    """The sum of a vector's elements, its weights on the device if the host knows them; and what adds in order (`placed`)."""
    linear = linear_map(weights, (FLOAT,) * count, FLOAT)
    if weights is not None:
        vector = vector_of(tuple((w, 1) for w in linear.weights), device)  # type: ignore[reportArgumentType]
        linear = linear._replace(weights=(None,) * count if all(w == 1.0 for w in weights) else vector)
    return linear, _adder(count, FLOAT) if device.type == "cpu" else None


def sum_by(
    terms: Sequence[Tensor], dtypes: tuple[torch.dtype, ...], weights: Sequence[Tensor | None], dtype: torch.dtype | None = None
) -> Tensor:
    """`sum_terms` by weights on the device, each a flushed scalar in the compute format; None is 1."""
    given = [w for w in weights if w is not None]
    if not given:
        return sum_terms(terms, dtypes, (1.0,) * len(terms), dtype)
    if is_dynamo_compiling() or not can_keep_tensors(terms[0].device):
        vector = torch.stack([torch.ones_like(given[0]) if w is None else w for w in weights])
        return sum_terms(terms, dtypes, vector, dtype)
    linear = linear_map(None, dtypes, dtype)
    return total_in_eager(linear._replace(weights=tuple(weights)), None, terms)


def _one_kernel_adds(terms: Sequence[Tensor]) -> bool:
    x = terms[0]
    return len(terms) >= _STACK_FROM and type(x) is Tensor and x.is_cpu and x.ndim == 0 and can_keep_tensors(_CPU)


def common_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype of the aggregate of losses of these dtypes (spec A2)."""
    return dtypes[0] if one_dtype(dtypes) else compute_dtype(*dtypes)


@host_constant
def linear_map(weights: tuple[float, ...] | None, terms: tuple[torch.dtype, ...], result: torch.dtype | None = None) -> LinearMap:
    """The weighted sum of terms of these dtypes; the result's is their common one unless given (spec A1 to A3).

    ``weights`` is None if they are not known on the host.
    """
    result = result or common_dtype(terms)
    compute = compute_dtype(result, *terms)
    large = weights is None or max(map(abs, weights)) > 1.0
    rounded = tuple(spec.round_weight(weight, FORMATS[compute]) for weight in weights or ())
    return LinearMap(rounded, terms, result, compute, {*terms, result} == {compute}, TINY[compute], large)


@lru_cache(maxsize=1024)
def weights_on_device(
    weights: tuple[float, ...], terms: tuple[torch.dtype, ...], result: torch.dtype | None, device: torch.device, scalars: bool
) -> LinearMap:
    """`linear_map` with its weights on the device, copied once, in the form that is fastest there; each form has the same values.

    Only where `can_keep_tensors` is true: they are kept for the life of the process.
    """
    linear = linear_map(weights, terms, result)
    # An inference tensor could not be used in training later. And a torch function mode must not replace these tensors.
    with torch.inference_mode(False), torch._C.DisableTorchFunction():
        vector = torch.tensor(linear.weights, dtype=linear.compute, device=device)
        return placed(linear, vector, scalars, linear.weights)  # type: ignore[reportArgumentType]


def placed(linear: LinearMap, vector: Tensor, scalars: bool, known: Sequence[Any] = ()) -> LinearMap:
    """``linear`` with the weights of ``vector``, in the form that is fastest on its device; ``known`` are they as numbers."""
    alike = one_dtype(linear.terms)
    if not scalars or len(vector) < (_STACK_NARROW_FROM if alike and not linear.plain else _STACK_FROM):
        one_by_one = vector.unbind(0)
        return linear._replace(weights=tuple(None if w == 1.0 else x for w, x in zip_longest(known, one_by_one)))
    if not vector.is_cpu:
        return linear._replace(weights=vector)
    # It adds "in the order given in index", except on CUDA, say its docs. In place of a view and an add a term, forward and
    # backward of 17 losses take 104 us instead of 129, of 65 losses 261 instead of 371.
    zero, index = _adder(len(vector), linear.compute)
    scalar = (vector, linear.tiny, zero, index) if alike else None
    return linear._replace(weights=vector, adder=(zero, index), scalar=scalar)


@lru_cache(maxsize=1024)
def _adder(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """On the CPU, a zero to add to, and the place of each of ``count`` terms in it."""
    with torch.inference_mode(False), torch._C.DisableTorchFunction():
        return torch.zeros(1, dtype=dtype, device=_CPU), torch.zeros(count, dtype=torch.int64, device=_CPU)
