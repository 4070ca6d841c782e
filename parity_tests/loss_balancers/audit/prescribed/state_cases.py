"""What overwrites state, compiled with PyTorch: every balancer that has any, its training forward and its `step()`.

Of these the audit reads no arithmetic, only which thread of which launch reads and writes what (`races`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

from loss_balancers import spec
from loss_balancers.audit.expressions.comparison import FUSED_MULTIPLY_ADD, OVERWRITTEN, RACE
from loss_balancers.audit.prescribed.cases import EMA, Case
from loss_balancers.spec import schedules

NAMES = ("LogitsKLLoss_0", "MSELoss_1", spec.STUDENT_LOSS_KEY)
#: So short that a compiler would rather keep the table for the backward than the weights.
RAMP = schedules.linear(0.0, 0.4, 1)

#: Balancers whose `step()` alone is compiled. Their training forward writes what every forward writes, by the same code as that of
#: the others, and takes exponentials or draws, of which Inductor makes code for minutes.
STEP_ALONE = ("DWALossBalancer", "SoftAdaptLossBalancer", "RandomLossBalancer", "ReLoBRaLoLossBalancer", "FAMOLossBalancer")


class StateCase(NamedTuple):
    """One function to compile: the case, what builds the function, how many losses it takes, and the fault that is planted."""

    case: Case
    function: Callable[[], Callable[..., Any]]
    losses: int
    fault: Callable[[], AbstractContextManager[Any]] = nullcontext


def state_cases() -> list[StateCase]:
    """Every case, planted faults last."""
    cases = []
    for name, (build, losses) in _balancers().items():
        cases.append(_case(f"{name} step()", lambda build=build: build(None).step, 0))
        if name.split(" ")[0] in STEP_ALONE:
            continue
        cases += [
            _case(f"{name} training", lambda build=build, losses=losses: _training(build(None), losses), len(losses)),
            _case(f"{name} training, auto_step", lambda build=build, losses=losses: _training(build(2), losses), len(losses)),
        ]
    ema, _ = _balancers()[EMA.balancer]
    scheduled, losses = _balancers()["ScheduledLossBalancer"]
    beside = _case("planted: a constant beside keep", lambda: ema(None).step, 0, (FUSED_MULTIPLY_ADD,))
    again = _case("planted: weights computed again", lambda: _training(scheduled(2), losses), len(losses), (OVERWRITTEN,))
    return [
        *cases,
        _case("planted: fused write of state", lambda: ema(None).step, 0, (RACE,))._replace(fault=_fused_write),
        beside._replace(fault=_constant_beside_keep),
        again._replace(fault=_computed_again),
    ]


def _case(name: str, function: Callable[[], Callable[..., Any]], losses: int, planted: tuple[str, ...] = ()) -> StateCase:
    return StateCase(Case(name, losses, 0, lambda dag: [], None, planted=planted), function, losses)


def _balancers() -> dict[str, tuple[Callable[[int | None], Any], tuple[str, ...]]]:
    """By name: what makes the balancer, with ``auto_step``, and the names of its losses."""

    def ema(auto_step: int | None, lagged: bool = False) -> Any:
        from loss_balancers.torch import EMANormalizedLossBalancer

        weights = dict(EMA.weights) | {EMA.names[0]: RAMP}
        return EMANormalizedLossBalancer(EMA.names, weights, EMA.beta, EMA.eps, EMA.target, lagged, auto_step=auto_step)

    def scheduled(auto_step: int | None) -> Any:
        from loss_balancers.torch import ScheduledLossBalancer

        return ScheduledLossBalancer(RAMP, NAMES, auto_step=auto_step)

    def weighted_sum(auto_step: int | None) -> Any:
        from loss_balancers.torch import WeightedSumLossBalancer

        return WeightedSumLossBalancer({"LogitsKLLoss_0": RAMP, "MSELoss_1": 3.0}, 0.5, auto_step=auto_step)

    def ratios(auto_step: int | None) -> Any:
        from loss_balancers.torch import LogitsAndIntermediatesLossBalancer

        return LogitsAndIntermediatesLossBalancer(RAMP, auto_step=auto_step)

    def dwa(auto_step: int | None) -> Any:
        from loss_balancers.torch import DWALossBalancer

        return DWALossBalancer(NAMES, {NAMES[0]: RAMP}, epoch_steps=2, auto_step=auto_step)

    def soft_adapt(auto_step: int | None) -> Any:
        from loss_balancers.torch import SoftAdaptLossBalancer

        return SoftAdaptLossBalancer(NAMES, {NAMES[0]: RAMP}, "loss_weighted", order=2, auto_step=auto_step)

    def drawn(auto_step: int | None) -> Any:
        from loss_balancers.torch import RandomLossBalancer

        return RandomLossBalancer(NAMES, {NAMES[0]: RAMP}, seed=1, auto_step=auto_step)

    def relobralo(auto_step: int | None) -> Any:
        from loss_balancers.torch import ReLoBRaLoLossBalancer

        return ReLoBRaLoLossBalancer(NAMES, {NAMES[0]: RAMP}, beta=0.5, auto_step=auto_step)

    def famo(auto_step: int | None) -> Any:
        from loss_balancers.torch import FAMOLossBalancer

        return FAMOLossBalancer(NAMES, min_losses={NAMES[0]: -1.0}, auto_step=auto_step)

    return {
        "ScheduledLossBalancer": (scheduled, NAMES),
        "WeightedSumLossBalancer": (weighted_sum, NAMES),
        EMA.balancer: (ema, EMA.names),
        f"{EMA.balancer} lagged": (lambda auto_step: ema(auto_step, lagged=True), EMA.names),
        "LogitsAndIntermediatesLossBalancer": (ratios, NAMES),
        "DWALossBalancer": (dwa, NAMES),
        "SoftAdaptLossBalancer": (soft_adapt, NAMES),
        "RandomLossBalancer": (drawn, NAMES),
        "ReLoBRaLoLossBalancer": (relobralo, NAMES),
        "FAMOLossBalancer": (famo, NAMES),
    }


def _training(balancer: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    return lambda *losses: balancer(dict(zip(names, losses, strict=True)))


def _fused_write() -> AbstractContextManager[Any]:
    """All state written by one operation, of which Inductor makes one kernel."""
    import torch

    from loss_balancers.torch import stateful

    return patch.object(stateful, "copy_all", torch._foreach_copy_)  # type: ignore[reportPrivateImportUsage]


def _constant_beside_keep() -> AbstractContextManager[Any]:
    """A constant added to what is kept: LLVM moves it into the select that `keep` is, and the product is added without rounding."""
    import torch

    from loss_balancers.torch import ema_normalized
    from loss_balancers.torch.rounding import keep

    def averaged(state: Any, losses: Any, present: Any, beta: float) -> Any:
        return {
            "total": keep(state["total"] * beta) + losses.abs(),
            "fix": torch.where(present, keep(state["fix"] * beta) + 1.0, 0.0),
        }

    return patch.object(ema_normalized, "averaged", averaged)


def _computed_again() -> AbstractContextManager[Any]:
    """Weights that a backward may compute again."""
    from loss_balancers.torch import weighed

    return patch.object(weighed, "saved_for_backward", lambda vector: vector)
