"""The ways in which PyTorch computes `exp`, `log`, `sqrt` and `softmax`: for their tests, and for the kit that runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from loss_balancers.torch import portable

Elementary = Callable[[Any], Any]

#: From a function to how it is run on a vector, or `softmax` on rows.
LANES: dict[str, Callable[[Elementary], Elementary]] = {
    "eager": lambda f: f,
    "compiled": lambda f: torch.compile(f, fullgraph=True),
    "vmap": torch.func.vmap,
}


def function(name: str) -> Elementary:
    """The function of that name."""
    return getattr(portable, name)
