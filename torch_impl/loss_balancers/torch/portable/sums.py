"""`softmax` and `logsumexp` of float32, with the same bits on any backend: their sum is of integers, hence exact in any order."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from loss_balancers.spec import errors
from loss_balancers.spec.elementary import MOST_NUMBERS, UNIT
from loss_balancers.torch.portable.division import div_of_kept
from loss_balancers.torch.portable.elementary import exp, log, operand
from loss_balancers.torch.rounding import compiling, filled, keep
from loss_balancers.torch.transforms import transformable, transformed


def softmax(x: Float[Tensor, "*shape k"]) -> Float[Tensor, "*shape k"]:
    """The softmax along the last axis, with the same bits in both frameworks and on every device. It is a constant.

    With m the greatest ``x_k``: ``e_k = exp(x_k - m)``, and the result is ``div(e_k, sum(e_k))``. The sum is of multiples of
    ``2 ** -40``, exact, and rounded once.

    Args:
        x: The numbers, detached: no derivative passes.

    Shape:
        ``(*shape, k)``, k from 1 to 4,194,303; the result too.

    Dtype:
        float32; the result too.

    Returns:
        The shares, all of them NaN where an ``x_k`` is NaN or infinity, or all are -infinity.

    Raises:
        TypeError: ``x`` is not an array of float32, or a derivative by it is taken.
        ValueError: There are no numbers or too many along the last axis, or there is no axis.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import softmax
        >>> softmax(torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.5000])

    Reference:
        docs/spec/2-arithmetic.md, A15.
    """
    _, powers, total = _powers(x)
    return div_of_kept(powers, total.expand(powers.shape))


def logsumexp(x: Float[Tensor, "*shape k"]) -> Float[Tensor, "*shape"]:
    """The logarithm of the sum of ``exp`` along the last axis, with the same bits everywhere. It is a constant.

    Computes ``m + log(sum(exp(x_k - m)))``, with m the greatest ``x_k`` and the sum of `softmax`.

    Args:
        x: The numbers, detached: no derivative passes.

    Shape:
        ``(*shape, k)``, k from 1 to 4,194,303; the result is ``(*shape)``.

    Dtype:
        float32; the result too.

    Returns:
        The logarithm, NaN where an ``x_k`` is NaN or infinity, or all are -infinity.

    Raises:
        TypeError: ``x`` is not an array of float32, or a derivative by it is taken.
        ValueError: There are no numbers or too many along the last axis, or there is no axis.

    Example:
        >>> import torch
        >>> from loss_balancers.torch.portable import logsumexp
        >>> logsumexp(torch.tensor([1.0, 1.0]))
        tensor(1.6931)

    Reference:
        docs/spec/2-arithmetic.md, A15.
    """
    most, _, total = _powers(x)
    return (keep(most) + log(total))[..., 0]


def powers_and_total(x: Tensor) -> tuple[Tensor, Tensor]:
    """The powers that `softmax` is made of, and their sum along the last axis, which is kept."""
    _, powers, total = _powers(x)
    return powers, total


def _powers(x: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The greatest number m, the powers e^(x - m), and their sum, which is NaN where the result is."""
    x = operand(x)
    if not (x.ndim and 1 <= x.shape[-1] <= MOST_NUMBERS):
        raise errors.softmax_shape(x.shape, MOST_NUMBERS)
    x = _constant(x)
    if not compiling():
        most = x.amax(-1, keepdim=True)  # in eager code NaN if a number is
        # Not flushed: a number that a flush makes zero changes x - m by less than a rounding, or e^(x - m) is 1 either way.
        powers = exp(x - most)
        return most, powers, _total(powers) + (most - most)
    x = keep(x)
    most = x.amax(-1, keepdim=True)
    powers = exp(x - most)
    # Asked of the numbers themselves: the maximum of a NaN is not the same everywhere.
    valid = (x < torch.inf).all(-1, keepdim=True) & (most > -torch.inf)
    return most, powers, torch.where(valid, _total(powers), torch.nan)


def _total(x: Tensor) -> Tensor:
    """RN(2^-40 times the sum of floor(2^40 x_k)) along the last axis, of numbers in [0, 1]: integers, so in any order."""
    if compiling():
        return (x * float(UNIT)).long().sum(-1, keepdim=True).float() * (1.0 / UNIT)
    n = (x * filled(float(UNIT), x)).sum(-1, keepdim=True, dtype=torch.int64)
    return n * filled(1.0 / UNIT, x)  # of an int64 vector and a float32 scalar, float32


def _constant(x: Tensor) -> Tensor:
    """``x``, by which no derivative may be taken."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise _derivative()
    return _transformable_constant(x) if transformed() else x


def _derivative() -> TypeError:
    return errors.softmax_derivative("x.detach()")


class _Constant(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        if ctx.needs_input_grad[0]:
            raise _derivative()

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        raise _derivative()


@transformable
def _transformable_constant(x: Tensor) -> Tensor:
    return _Constant.apply(x)
