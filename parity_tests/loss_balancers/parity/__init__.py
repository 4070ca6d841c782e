"""The parity kit: shows that two implementations of a balancer give the same bits, and where they do not.

Names are loaded when they are first used, so that to import this package costs nothing.

Its rooms, from the ground up. A file imports from its own room and from those above it in this list, and from none below:

- `bits`, `text`, `files`, `streams`, `jax_versions`: the ground, files that import nothing of the kit.
- `golden`: what a balancer gave in a step, the golden vectors, and what differs.
- `lanes`: framework x device x mode, the modes of each framework, and why a lane is absent.
- `run`: which columns run together, and in which process.
- `certificates`: what the lanes of a host gave, as data that other hosts check and merge.
- `report`: the matrix on the terminal, as Markdown, and as one HTML page.
- `twins`: other people's twins.
- `cli`: the command line.

One word for one idea:

- *Vector*: one step of a balancer, as `loss_balancers.spec` writes it. A *group* has the vectors of one setting and one choice of
  formats, in *sequences* of *steps*: each step finds the state that the step before left.
- *Case*: a vector under its name, with the *values* that it must give. For twins of one's own: the losses of one call.
- *Batch*: what goes into one step of several groups: losses, cotangents, and counts or shares.
- *Label*: a number format, or "mixed". *Column*: the groups of one balancer under one label.
- *Lane*: framework x device x mode. *Cell*: one lane in one column. *Row*: the cells of one lane.
- *Lot*: the columns that one call of a lane's `run` serves. *Job*: the lots that a worker does of a lane before it turns to others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loss_balancers.parity.bits import assert_same_bits, ulp_distance
    from loss_balancers.parity.certificates.certificate import make_certificate
    from loss_balancers.parity.certificates.merge import merge
    from loss_balancers.parity.certificates.reading import read_certificate
    from loss_balancers.parity.golden.comparison import Cell, Difference
    from loss_balancers.parity.golden.result import Result
    from loss_balancers.parity.golden.vectors import Vectors, installed_vectors
    from loss_balancers.parity.lanes.jax_modes import run_in_jax
    from loss_balancers.parity.lanes.known import find_lanes
    from loss_balancers.parity.lanes.lane import Lane
    from loss_balancers.parity.lanes.own_process import in_own_process
    from loss_balancers.parity.lanes.torch_modes import run_in_torch
    from loss_balancers.parity.run import run_lane
    from loss_balancers.parity.twins.assert_twins import Parity, assert_twins
    from loss_balancers.parity.twins.cases import drawn_cases
    from loss_balancers.parity.twins.lanes import LaneAbsentError
    from loss_balancers.parity.twins.strategies import loss_dicts

__all__ = [
    "Cell",
    "Difference",
    "Lane",
    "LaneAbsentError",
    "Parity",
    "Result",
    "Vectors",
    "assert_same_bits",
    "assert_twins",
    "drawn_cases",
    "find_lanes",
    "in_own_process",
    "installed_vectors",
    "loss_dicts",
    "make_certificate",
    "merge",
    "read_certificate",
    "run_in_jax",
    "run_in_torch",
    "run_lane",
    "ulp_distance",
]

_MODULE_OF = {
    "Cell": "golden.comparison",
    "Difference": "golden.comparison",
    "Lane": "lanes.lane",
    "LaneAbsentError": "twins.lanes",
    "Parity": "twins.assert_twins",
    "Result": "golden.result",
    "Vectors": "golden.vectors",
    "assert_same_bits": "bits",
    "assert_twins": "twins.assert_twins",
    "drawn_cases": "twins.cases",
    "find_lanes": "lanes.known",
    "in_own_process": "lanes.own_process",
    "installed_vectors": "golden.vectors",
    "loss_dicts": "twins.strategies",
    "make_certificate": "certificates.certificate",
    "merge": "certificates.merge",
    "read_certificate": "certificates.reading",
    "run_in_jax": "lanes.jax_modes",
    "run_in_torch": "lanes.torch_modes",
    "run_lane": "run",
    "ulp_distance": "bits",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
