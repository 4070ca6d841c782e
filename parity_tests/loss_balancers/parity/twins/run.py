"""Runs somebody's balancer on a lane: one call for both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loss_balancers.parity.lanes.absent import NotCompiledError
from loss_balancers.parity.twins.cases import described, signature
from loss_balancers.parity.twins.lanes import TwinLane, absent
from loss_balancers.parity.twins.outcome import Outcome, Plan, Run, has_method


def run_twin(lane: TwinLane, balancer: Callable[..., Any], runs: Sequence[Run], plan: Plan) -> list[list[Outcome]]:
    """What the balancer gives on the lane, run by run and step by step.

    Runs of one signature run together: one compilation serves them, and they are what is stacked for `vmap` and `scan`.
    """
    if lane.framework == "torch":
        from loss_balancers.parity.twins.in_torch import run
    else:
        from loss_balancers.parity.twins.in_jax import run

    groups: dict[Any, list[int]] = {}
    for index, one in enumerate(runs):
        groups.setdefault((signature(one.steps[0]), len(one.steps), one.commits), []).append(index)
    outcomes: dict[int, list[Outcome]] = {}
    for indices in groups.values():
        try:
            results = run(balancer, lane, [runs[index] for index in indices], plan)
        except NotCompiledError as error:
            raise absent(lane, str(error)) from error
        except Exception as error:
            first = runs[indices[0]]
            error.add_note(f"In the lane {lane.name}, on losses {described(first.steps[0])}, the first of them {first.title}.")
            raise
        outcomes.update(zip(indices, results, strict=True))
    return [outcomes[index] for index in range(len(runs))]


def plan_of(torch_balancer: Any, jax_balancer: Any, cotangents: tuple[float, ...], second: bool) -> Plan:
    """What both twins can do, and so what is done in each step."""
    from loss_balancers.parity.twins.in_jax import names_of_state as names_in_jax
    from loss_balancers.parity.twins.in_torch import names_of_state as names_in_torch

    def both(name: str, *arguments: Any) -> bool:
        return all(has_method(balancer, name, *arguments) for balancer in (torch_balancer, jax_balancer))

    entries = sorted(names_in_torch(torch_balancer) & names_in_jax(jax_balancer))
    return Plan(cotangents, both("weights", {}), both("step"), both("export_state"), tuple(entries), second)
