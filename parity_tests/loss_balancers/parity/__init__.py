"""The parity kit: shows that two implementations of a balancer give the same bits, and where they do not.

Names are loaded when they are first used, so that to import this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loss_balancers.parity.bits import assert_same_bits, ulp_distance
    from loss_balancers.parity.lanes import Lane, find_lanes
    from loss_balancers.parity.run import Cell, Difference, run_lane
    from loss_balancers.parity.strategies import loss_dicts
    from loss_balancers.parity.twin_cases import drawn_cases
    from loss_balancers.parity.twin_lanes import LaneAbsentError
    from loss_balancers.parity.twins import Parity, assert_twins

__all__ = [
    "Cell",
    "Difference",
    "Lane",
    "LaneAbsentError",
    "Parity",
    "assert_same_bits",
    "assert_twins",
    "drawn_cases",
    "find_lanes",
    "loss_dicts",
    "run_lane",
    "ulp_distance",
]

_MODULE_OF = {
    "Cell": "run",
    "Difference": "run",
    "Lane": "lanes",
    "LaneAbsentError": "twin_lanes",
    "Parity": "twins",
    "assert_same_bits": "bits",
    "assert_twins": "twins",
    "drawn_cases": "twin_cases",
    "find_lanes": "lanes",
    "loss_dicts": "strategies",
    "run_lane": "run",
    "ulp_distance": "bits",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
