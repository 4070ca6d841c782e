"""Whether a forward is one that activation checkpointing repeats: it must not observe again.

In compiled code that is known when it runs, not when it is traced; so there it is an operation, on the device, which costs 10 us.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling


def recomputing() -> bool:
    """Whether this forward runs within a backward; False in a graph, where `unless_recomputing` says it."""
    return not is_dynamo_compiling() and torch._C._current_graph_task_id() != -1


def unless_recomputing(new: Tensor, old: Tensor) -> Tensor:
    """``new``, but ``old`` where a graph runs within a backward."""
    return torch.where(torch.ops.loss_balancers.recomputing(new), old, new) if is_dynamo_compiling() else new


def _on_device(like: Tensor) -> Tensor:
    return torch.full((), torch._C._current_graph_task_id() != -1, dtype=torch.bool, device=like.device)


# Not `torch.library.custom_op`, which takes 25 us.
_library = torch.library.Library("loss_balancers", "FRAGMENT")
_library.define("recomputing(Tensor like) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("recomputing", _on_device, "CompositeExplicitAutograd")
torch.library.register_fake("loss_balancers::recomputing", lambda like: like.new_empty((), dtype=torch.bool), lib=_library)
