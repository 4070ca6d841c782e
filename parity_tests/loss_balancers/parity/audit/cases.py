"""What is compiled: `div` and every balancer, forward and gradient, on float32.

Imports no framework: the process that compiles calls `Case.function`, the one that compares calls `Case.expected`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loss_balancers import spec
from loss_balancers.parity.audit import draws
from loss_balancers.parity.audit import expected_ratios as ratios
from loss_balancers.parity.audit.dag import Dag, Node
from loss_balancers.parity.audit.expected import static_forward, static_gradient
from loss_balancers.parity.audit.words import Words

KD_COUNTS = (1, 3, 12)
#: Two KD losses and the student's, in whose units they are brought; weights and decay with long significands.
EMA = spec.EMANormalizedLossBalancerSettings(
    ("MSELoss_0", "KLDivLoss_1", spec.STUDENT_LOSS_KEY),
    {"MSELoss_0": 0.3, "KLDivLoss_1": 0.7},
    beta=0.9,
    target=spec.STUDENT_LOSS_KEY,
)
#: Three intermediates: XLA would make their mean a product with 1/3.
RATIOS = spec.LogitsAndIntermediatesLossBalancerSettings(kd_loss_scale=0.3)
RATIO_NAMES = ("LogitsKLLoss_0", "MSELoss_1", "MSELoss_2", "MSELoss_3", spec.STUDENT_LOSS_KEY)


@dataclass(frozen=True)
class Case:
    """One function to compile.

    Args:
        name: For the table. ``slug``, made of it, names the function and its folder.
        arguments: How many float32 scalars it takes first.
        results: How many it returns.
        expected: The DAG that the spec prescribes.
        function: Builds the JAX function; None if there is none, since only PyTorch has the case.
        vectors: The lengths of the float32 vectors that it takes then.
        draws: Inputs on which steps are executed (`established`), one array for each scalar and each element.
        planted: The kinds of finding of which one must be made; empty if the case must be as specified.
    """

    name: str
    arguments: int
    results: int
    expected: Callable[[Dag], list[Node]]
    function: Callable[[], Callable[..., Any]] | None
    vectors: tuple[int, ...] = ()
    draws: Callable[[], list[Words]] = list
    planted: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


def all_cases() -> list[Case]:
    """Every case that must be as specified. A new balancer adds its own here."""
    return [*_static_cases(), *_div_cases(), *_ema_cases(), *_ratio_cases()]


def static_settings() -> dict[str, tuple[spec.StaticLossBalancerSettings, tuple[str, ...]]]:
    """The settings of each static case and the names of its losses, by its name without forward and gradient."""
    settings = {}
    for form, kd_loss_weight in (("one weight", lambda _: 0.7), ("weights", _weights)):
        for count in KD_COUNTS:
            names = (*(f"KDLoss_{i}" for i in range(count)), spec.STUDENT_LOSS_KEY)
            settings[f"StaticLossBalancer {form} K={count}"] = (spec.StaticLossBalancerSettings(kd_loss_weight(count)), names)
    return settings


def _static_cases() -> list[Case]:
    cases = []
    for name, (settings, names) in static_settings().items():
        for kind, expected, function, extra, results in (
            ("forward", static_forward, _static_forward, 0, 1),
            ("gradient", static_gradient, _static_gradient, 1, len(names)),
        ):
            cases.append(
                Case(
                    f"{name} {kind}",
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
    return _gradient(_static_forward(settings, names))


def _div_cases() -> list[Case]:
    from_operands, with_cotangent = (lambda count=count: draws.operands(count) for count in (2, 3))
    return [
        Case("div forward", 2, 1, ratios.div_forward, div_forward, draws=from_operands),
        Case("div gradient", 3, 2, ratios.div_gradient, lambda: _gradient(div_forward()), draws=with_cotangent),
    ]


def div_forward() -> Callable[..., Any]:
    """`portable.div`."""
    from loss_balancers.jax.portable import div

    return div


def _ema_cases() -> list[Case]:
    count = len(EMA.names)

    def inputs(cotangents: int) -> list[Words]:
        return [*draws.losses(count + cotangents), *draws.running_sums(count)]

    state = (count, count)
    return [
        Case(
            f"{EMA.balancer} K=2 forward", count, 1, lambda dag: ratios.ema_forward(dag, EMA), ema_forward, state, lambda: inputs(0)
        ),
        Case(
            f"{EMA.balancer} K=2 gradient",
            count + 1,
            count,
            lambda dag: ratios.ema_gradient(dag, EMA),
            _ema_gradient,
            state,
            lambda: inputs(1),
        ),
    ]


def ema_forward() -> Callable[..., Any]:
    """The aggregate, a function of the losses and the state."""
    from loss_balancers.jax import EMANormalizedLossBalancer

    def forward(*arguments: Any) -> Any:
        *losses, total, fix = arguments
        balancer = EMANormalizedLossBalancer(EMA.names, dict(EMA.weights), EMA.beta, EMA.eps, EMA.target)
        balancer.use_running_average = True
        balancer.total[...], balancer.fix[...] = total, fix
        return balancer(dict(zip(EMA.names, losses, strict=True)))

    return forward


def _ema_gradient() -> Callable[..., Any]:
    def gradient(*arguments: Any) -> Any:
        *losses, cotangent, total, fix = arguments
        return _gradient(lambda *given: ema_forward()(*given, total, fix))(*losses, cotangent)

    return gradient


def _ratio_cases() -> list[Case]:
    count = len(RATIO_NAMES)
    return [
        Case(
            f"{RATIOS.balancer} K=4 forward",
            count,
            1,
            lambda dag: ratios.ratios_forward(dag, RATIOS, RATIO_NAMES),
            ratios_forward,
            draws=lambda: draws.losses(count),
        ),
        Case(
            f"{RATIOS.balancer} K=4 gradient",
            count + 1,
            count,
            lambda dag: ratios.ratios_gradient(dag, RATIOS, RATIO_NAMES),
            lambda: _gradient(ratios_forward()),
            draws=lambda: draws.losses(count + 1),
        ),
    ]


def ratios_forward() -> Callable[..., Any]:
    """The aggregate, a function of the losses."""
    from loss_balancers.jax import LogitsAndIntermediatesLossBalancer

    def forward(*losses: Any) -> Any:
        balancer = LogitsAndIntermediatesLossBalancer(RATIOS.kd_loss_scale)
        balancer.use_running_average = True
        return balancer(dict(zip(RATIO_NAMES, losses, strict=True)))

    return forward


def _gradient(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient to each argument; the last argument is the cotangent, so that nothing can be folded."""
    import jax

    return lambda *arguments: jax.vjp(forward, *arguments[:-1])[1](arguments[-1])
