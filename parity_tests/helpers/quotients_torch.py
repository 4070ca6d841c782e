"""The ways in which PyTorch computes drawn quotients: for the tests of `div`, and for the kit that runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import loss_balancers.torch.portable.division as in_torch

#: From vectors of dividends and divisors to their quotients; made when it is needed, since some compile.
LANES: dict[str, Callable[[], Callable[[Any, Any], Any]]] = {
    "eager": lambda: in_torch.div,
    "repaired": lambda: in_torch.quotient,  # what a compiled graph on a GPU does
    "compiled": lambda: torch.compile(in_torch.div, fullgraph=True),
    "compiled-repaired": lambda: torch.compile(in_torch.quotient, fullgraph=True),
    "vmap": lambda: torch.func.vmap(in_torch.div),
}
