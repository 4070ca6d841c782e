"""Derivatives and batches by `torch.func` and by forward mode, in eager code and within compiled functions.

Dynamo has no form of an `autograd.Function` for them. It traces the forward, and forward mode then differentiates each operation
in it: a `hardshrink` has no tangent at a zero loss, and bits have none at all. The backward that it makes has no rule for `vmap`.
So Dynamo must not look inside: the function stands in its graph as it is, and AOTAutograd, which runs that graph under the
transforms, calls the function as eager code does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

from loss_balancers.spec import checks, errors
from loss_balancers.torch.host import traced_as_constant

R = TypeVar("R")


@traced_as_constant
def transformed() -> bool:
    """Whether a transform of `torch.func` or a dual level is active; in a graph, where it is traced."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiated() -> bool:
    """Whether derivatives are taken of what a backward computes: by ``create_graph=True``, or forward over reverse."""
    return torch.is_grad_enabled() or transformed()


@traced_as_constant
def under_torch_func() -> bool:
    """Whether a transform of `torch.func` is active, which may not change state; in a graph, where it is traced."""
    return torch._C._are_functorch_transforms_active() or _linearizing()


def _linearizing() -> bool:
    """Whether `torch.func.linearize` is tracing. PyTorch does not count it as a transform: it is a dual level in a traced function.

    The linear map that it returns would write what was observed in the trace, again at each call.
    """
    level = forward_ad._current_level
    return level >= 0 and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None  # type: ignore[reportAttributeAccessIssue]


def check_not_transformed(what: str) -> None:
    """Raises if a transform of `torch.func` is active, where state may neither be written nor read out.

    Some transforms raise errors of their own there, others run the function twice, or keep what they have wrapped.

    Raises:
        RuntimeError: A transform is active.
    """
    if under_torch_func():
        raise errors.state_under_a_transform(what)


def transformable(function: Callable[..., R]) -> Callable[..., R]:
    """``function``, not traced by Dynamo. It takes tensors and constants, and calls an `autograd.Function` that can be transformed.

    That has a rule for `vmap` and, unless what it takes is constant, a `jvp`.
    """

    @traced_as_constant
    def leave_untraced() -> None:
        torch.compiler.allow_in_graph(function)  # here and not at import, since it loads Dynamo

    def apply(*inputs: Any) -> R:
        if is_dynamo_compiling():
            refuse_dual_level_outside()
            leave_untraced()
        return function(*inputs)

    return apply


class _Linear(Function):
    """A linear operation within a `jvp`, of which an outer `jvp` gets a tangent too.

    PyTorch turns forward mode off within a `jvp`, for its own level and all around it; what a plain operation gives there has a
    second tangent of 0, without a word (PyTorch 2.8 to 2.13). A function of this kind turns it on again below its own level.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, *terms: Tensor) -> Tensor:
        return _LINEAR[name][0](*terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, *_LINEAR[ctx.name][1](*grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _Linear.apply(ctx.name, *grad_inputs[1:])


#: By name: the operation, and its gradients.
_LINEAR: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "sum": (torch.add, lambda g: (g, g)),
    "negative": (torch.neg, lambda g: (-g,)),
}


def sum_of_tangents(left: Tensor, right: Tensor) -> Tensor:
    """``left + right``, within a `jvp`."""
    return _Linear.apply("sum", left, right)


def negative_of_tangent(x: Tensor) -> Tensor:
    """``-x``, within a `jvp`."""
    return _Linear.apply("negative", x)


class _Constant(Function):
    """The identity for a value that no derivative may reach, from any level of nested transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, where: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.where = inputs[1]
        if ctx.needs_input_grad[0]:
            raise errors.learnable(ctx.where)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        raise errors.learnable(ctx.where, "has a tangent")


@transformable
def _constant(x: Tensor, where: str) -> Tensor:
    return _Constant.apply(x, where)


def refuse_derivatives(x: Any, where: str) -> None:
    """Raises if a transform of `torch.func` or forward mode differentiates by ``x``: the array itself does not say so.

    Raises:
        TypeError: A transform or forward mode does.
    """
    if transformed() and isinstance(x, Tensor) and x.is_floating_point():
        _constant(x, where)


checks.derivative_checks.append(refuse_derivatives)


def refuse_dual_level_outside() -> None:
    """Raises in a function that is compiled within a dual level: Inductor's code for it would return no tangents."""
    # If there is no level, Dynamo reads that from the module like any global number, and compiles again when there is one.
    level = forward_ad._current_level if _level() < 0 else _level_outside()
    if level >= 0:
        raise errors.compiled_within_a_dual_level()


@traced_as_constant
def _level() -> int:
    return forward_ad._current_level


@traced_as_constant
def _level_outside() -> int:
    """The level at which compilation began. A level that the function itself enters is above it."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output.dual_level
