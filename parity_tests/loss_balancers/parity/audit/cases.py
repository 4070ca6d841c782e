"""What is compiled: every balancer, forward and gradient, on float32 scalars, and three planted faults that must be found.

Imports no framework: the process that compiles calls `Case.function`, the one that compares calls `Case.expected`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loss_balancers import spec
from loss_balancers.parity.audit.comparison import APPROXIMATE_DIVISION, FUSED_MULTIPLY_ADD, MISSING_BARRIER, REASSOCIATED_SUM
from loss_balancers.parity.audit.dag import Dag, Node
from loss_balancers.parity.audit.expected import static_forward, static_gradient, weighted_sum

KD_COUNTS = (1, 3, 12)
PLANTED_WEIGHTS = (0.25, 0.3, 0.15, 0.3)


@dataclass(frozen=True)
class Case:
    """One function to compile.

    Args:
        name: For the table. ``slug``, made of it, names the function and its folder.
        arguments: How many float32 scalars it takes.
        results: How many it returns.
        expected: The DAG that the spec prescribes.
        function: Builds the JAX function.
        planted: The kinds of finding of which one must be made; empty if the case must be as specified.
    """

    name: str
    arguments: int
    results: int
    expected: Callable[[Dag], list[Node]]
    function: Callable[[], Callable[..., Any]]
    planted: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


def all_cases() -> list[Case]:
    """Every case. A new balancer adds its own here."""
    return [*_static_cases(), *_planted_cases()]


def _static_cases() -> list[Case]:
    cases = []
    for form, kd_loss_weight in (("one weight", lambda _: 0.7), ("weights", _weights)):
        for count in KD_COUNTS:
            names = (*(f"KDLoss_{i}" for i in range(count)), spec.STUDENT_LOSS_KEY)
            settings = spec.StaticLossBalancerSettings(kd_loss_weight(count))
            for kind, expected, function, extra, results in (
                ("forward", static_forward, _static_forward, 0, 1),
                ("gradient", static_gradient, _static_gradient, 1, len(names)),
            ):
                cases.append(
                    Case(
                        f"StaticLossBalancer {form} K={count} {kind}",
                        len(names) + extra,
                        results,
                        lambda dag, expected=expected, settings=settings, names=names: expected(dag, settings, names),
                        lambda function=function, settings=settings, names=names: function(settings, names),
                    )
                )
    return cases


def _weights(count: int) -> list[float]:
    """Distinct weights with long significands, in sum below 1."""
    return [round(0.01 + 0.011 * i, 3) for i in range(count)]


def _static_forward(settings: spec.StaticLossBalancerSettings, names: tuple[str, ...]) -> Callable[..., Any]:
    from loss_balancers.jax import StaticLossBalancer

    balancer = StaticLossBalancer(settings.as_given)
    return lambda *losses: balancer(dict(zip(names, losses, strict=True)))


def _static_gradient(settings: spec.StaticLossBalancerSettings, names: tuple[str, ...]) -> Callable[..., Any]:
    """The gradient to each loss; the last argument is the cotangent, so that nothing can be folded."""
    import jax

    forward = _static_forward(settings, names)
    return lambda *arguments: jax.vjp(forward, *arguments[:-1])[1](arguments[-1])


def _planted_cases() -> list[Case]:
    count = len(PLANTED_WEIGHTS)
    fused = (FUSED_MULTIPLY_ADD, MISSING_BARRIER)
    return [
        Case("planted: no barrier", count, 1, _planted_sum, lambda: _no_barrier, fused),
        Case("planted: native division", count, 1, _planted_quotient, lambda: _native_division, (APPROXIMATE_DIVISION,)),
        Case("planted: tree sum", count, 1, _planted_sum, lambda: _tree_sum, (REASSOCIATED_SUM,)),
    ]


def _planted_sum(dag: Dag) -> list[Node]:
    return [weighted_sum(dag, [dag.input(i) for i in range(len(PLANTED_WEIGHTS))], PLANTED_WEIGHTS)]


def _planted_quotient(dag: Dag) -> list[Node]:
    """Correctly rounded quotients by the last input and by 3."""
    quotient = dag.op("div", *_planted_sum(dag), dag.input(len(PLANTED_WEIGHTS) - 1))
    return [dag.op("keep", dag.op("div", quotient, dag.number(3.0)))]


def _no_barrier(*losses: Any) -> Any:
    s = losses[0] * PLANTED_WEIGHTS[0]
    for weight, x in zip(PLANTED_WEIGHTS[1:], losses[1:], strict=True):
        s = s + weight * x
    return s


def _native_division(*losses: Any) -> Any:
    from loss_balancers.jax.functional import weighted_sum
    from loss_balancers.jax.rounding import keep

    return keep(weighted_sum(losses, PLANTED_WEIGHTS) / losses[-1] / 3.0)


def _tree_sum(*losses: Any) -> Any:
    from loss_balancers.jax.rounding import keep

    p = [keep(keep(x) * weight) for weight, x in zip(PLANTED_WEIGHTS, losses, strict=True)]
    return keep((p[0] + p[1]) + (p[2] + p[3]))
