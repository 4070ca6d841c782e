"""Whether a forward is one that activation checkpointing repeats: it must not observe again.

Compiled code knows that when it runs, not when it is traced. There the question is an operation on the device, which costs 10 us.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.compiler import is_dynamo_compiling
from torch.nn.functional import pad

from loss_balancers.torch.transforms import transformed


def recomputing() -> bool:
    """Whether this forward runs within a backward; False in a graph, where `unless_recomputing` decides."""
    return not is_dynamo_compiling() and torch._C._current_graph_task_id() != -1


def unless_recomputing(new: Tensor, old: Tensor) -> Tensor:
    """``new``; or ``old`` if a graph is running within a backward."""
    return torch.where(torch.ops.loss_balancers.recomputing(new.device), old, new) if is_dynamo_compiling() else new


def saved_for_backward(vector: Tensor) -> Tensor:
    """``vector``, made so that the backward of a graph takes it as it was in the forward.

    To save memory a compiled backward computes again whatever is cheap. If the graph has overwritten the state in the meantime, it
    silently computes from the wrong state (PyTorch's pull request 197039). By default it never computes a padding again, which
    costs nothing. Checkpointing within the graph, and settings for more recomputation, still do so (docs/state.md).
    """
    return pad(vector, (0, 1))[:-1] if is_dynamo_compiling() else vector


def saved_tensors_have_hooks() -> bool:
    """Whether hooks take what is saved for a backward, as checkpointing and offloading do: `torch.func` refuses to work there."""
    if is_dynamo_compiling() or transformed() or torch.is_inference_mode_enabled():
        return False
    try:
        with disable_saved_tensors_hooks("there are hooks"):
            return False
    except RuntimeError:
        return True


def derivatives_under_hooks(function: Callable[[tuple[Tensor, ...]], Tensor], terms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The derivative of a function by each term, detached, where hooks take what is saved for a backward.

    They are kept out: those of checkpointing would repeat the whole forward, those of offloading copy to the host.
    """
    with saved_tensors_hooks(_as_it_is, _as_it_is), torch.enable_grad():
        terms = tuple(x.detach().requires_grad_() for x in terms)
        return torch.autograd.grad(function(terms), terms, materialize_grads=True)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _on_device(device: torch.device) -> Tensor:
    return torch.full((), torch._C._current_graph_task_id() != -1, dtype=torch.bool, device=device)


# Not `torch.library.custom_op`, which takes 25 us. Its argument is a device and not a tensor: so a graph begins with it, all
# balancers in a graph can share it, and what follows is one kernel. It is unfit for a CUDA graph, which would replay the answer
# of its capture.
_library = torch.library.Library("loss_balancers", "FRAGMENT")
_library.define("recomputing(Device device) -> Tensor", tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe))
_library.impl("recomputing", _on_device, "CompositeExplicitAutograd")
torch.library.register_fake(
    "loss_balancers::recomputing", lambda device: torch.empty((), dtype=torch.bool, device=device), lib=_library
)
