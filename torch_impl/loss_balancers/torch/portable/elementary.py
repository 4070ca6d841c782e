"""`exp`, `log` and `sqrt` of float32, correctly rounded on any backend, with derivatives.

Each goes by way of float64. For every float32 number, e^x is at least 1.26 units in the last place (ulp) of float64 from the middle
of two float32 numbers, and a root is farther. So any exponential that is off by less, rounded to float32, is right; the libraries
that PyTorch calls are documented to be within 1 ulp. ln x is nearer for 14 numbers, whose results are listed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loss_balancers.spec import errors
from loss_balancers.spec.hard_inputs import NEAREST_LOG, number
from loss_balancers.torch.host import traced_as_constant
from loss_balancers.torch.portable.division import MAPS, Map, apply, div, div_of_kept, kind_of, rmul, rmul_of_kept
from loss_balancers.torch.rounding import can_keep_tensors, compiling, keep, kept, readable
from loss_balancers.torch.transforms import differentiated, sum_of_tangents

#: Devices that have no float64.
WITHOUT_FLOAT64 = ("mps",)
#: The 14 numbers, and their logarithms.
NEAREST = tuple((number(x), number(y)) for x, y in NEAREST_LOG.items())
_LOGARITHM_OF = dict(NEAREST)
#: So many numbers the host looks at sooner than kernels do.
_FEW = 256
_RUNS = tuple(tuple((number, 1) for number in column) for column in zip(*NEAREST, strict=True))
_NUMBERS, _LOGARITHMS = (torch.tensor(column, device="cpu") for column in zip(*NEAREST, strict=True))


def exp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The correctly rounded exponential, with the same bits in both frameworks and on every device.

    Computes ``keep(RN(e ** keep(x)))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The exponent.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The power y: infinity on overflow, +0 on underflow. For a cotangent g, the gradient to ``x`` is ``rmul(g, y)``.

    Raises:
        TypeError: ``x`` is not an array of float32, or its device has no float64.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import exp
        >>> exp(torch.tensor(1.0))
        tensor(2.7183)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return apply("exp", operand(x))


def log(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The correctly rounded natural logarithm, with the same bits in both frameworks and on every device.

    Computes ``RN(ln keep(x))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The number: its logarithm is -infinity if it counts as zero, NaN if it is below.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The logarithm, never -0. For a cotangent g, the gradient to ``x`` is ``div(g, x)``.

    Raises:
        TypeError: ``x`` is not an array of float32, or its device has no float64.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import log
        >>> log(torch.tensor(2.0))
        tensor(0.6931)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return apply("log", operand(x))


def sqrt(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The correctly rounded square root, with the same bits in both frameworks and on every device.

    Computes ``RN(sqrt(keep(x)))``, where ``keep`` is +0 at and below the smallest normal number.

    Args:
        x: The number: its root is NaN if it is below zero.

    Shape:
        ``(*shape)``, often ``()``; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The root y, never -0. For a cotangent g, the gradient to ``x`` is ``div(g, y + y)``.

    Raises:
        TypeError: ``x`` is not an array of float32, or its device has no float64.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import sqrt
        >>> sqrt(torch.tensor(2.0))
        tensor(1.4142)

    Reference:
        docs/spec/2-arithmetic.md, A13 and A14.
    """
    return apply("sqrt", operand(x))


def operand(x: Any) -> Tensor:
    """``x`` as a tensor of float32.

    Raises:
        TypeError: It is not one, or its device has no float64.
    """
    if not (isinstance(x, Tensor) and x.dtype == torch.float32):
        raise errors.float32_operand(kind_of(x))
    if not x.is_cpu and x.device.type in WITHOUT_FLOAT64:
        raise errors.no_float64_on(str(x.device))
    return x


def _exp(x: Tensor, _: None) -> Tensor:
    return keep(x.double().exp().float())  # what a flush of ``x`` would make zero gives 1 anyway


def _exp_gradient(g: Tensor, x: Tensor, _: None, y: Tensor, *__: Any) -> tuple[Tensor, None]:
    return rmul(g, y) if differentiated() else rmul_of_kept(keep(g), y), None


def _log(x: Tensor, _: None) -> Tensor:
    x = keep(x)
    y = x.double().log().float()
    if x.numel() <= _FEW and readable(x) and _LOGARITHM_OF.keys().isdisjoint(x.flatten().tolist()):  # 3 us; what follows, 20
        return y
    on_cpu = x.device.type == "cpu"
    # A compiler fuses the selects. A dispatch mode may refuse tensors that it did not make.
    if compiling() or torch._C._len_torch_dispatch_stack() or not (on_cpu or can_keep_tensors(x.device)):
        for near, logarithm in _nearest_in_graph():
            y = torch.where(x == near, logarithm, y)
        return y
    numbers, logarithms = (_NUMBERS, _LOGARITHMS) if on_cpu else (kept(runs, x.device) for runs in _RUNS)
    listed = torch.where(x.unsqueeze(-1) == numbers, logarithms, 0.0).sum(-1)  # 0 for a number that is not listed
    return torch.where(listed == 0, y, listed)


@traced_as_constant
def _nearest_in_graph() -> tuple[tuple[float, float], ...]:
    """`NEAREST`, of which Dynamo makes symbols under ``dynamic=True`` (`rounding.keep`)."""
    return NEAREST


def _log_gradient(g: Tensor, x: Tensor, _: None, y: Tensor, *__: Any) -> tuple[Tensor, None]:
    return div(g, x) if differentiated() else div_of_kept(keep(g), keep(x)), None


def _sqrt(x: Tensor, _: None) -> Tensor:
    return keep(x).double().sqrt().float()


#: Of one array: the second, its gradient and its tangent are None.
MAPS["exp"] = Map(_exp, _exp_gradient, lambda t, _, x, __, y: (rmul(t, y),))
MAPS["log"] = Map(_log, _log_gradient, lambda t, _, x, __, y: (div(t, x),))
MAPS["sqrt"] = Map(_sqrt, lambda g, x, _, y, *__: (div(g, y + y), None), lambda t, _, x, __, y: (div(t, sum_of_tangents(y, y)),))
