"""What is compiled: `div` and every balancer of the registry, forward and gradient, on float32.

Imports no framework: the process that compiles calls `Case.function`, the one that compares calls `Case.expected`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple

from loss_balancers import spec
from loss_balancers.audit.expressions.dag import Dag, Node
from loss_balancers.audit.expressions.words import Words
from loss_balancers.audit.prescribed import draws, reference
from loss_balancers.audit.prescribed.reference import COMMITS, own_entries
from loss_balancers.spec import registry
from loss_balancers.spec.keys import EXAMPLE_NAMES

#: What is compiled of each.
KINDS = ("forward", "gradient")
ELEMENTARY = ("exp", "log", "sqrt")
#: Of how many numbers.
SOFTMAX = 3
KD_COUNTS = (1, 3, 12)
EMA_KD_COUNTS = (1, 2, 3, 12)


def ema(kd: int) -> spec.EMANormalizedLossBalancerSettings:
    """KD losses in the units of the student's; weights and decay with long significands."""
    names = tuple(f"KDLoss_{i}" for i in range(kd))
    weights = {name: 0.3 + 0.4 * i for i, name in enumerate(names)}
    return spec.EMANormalizedLossBalancerSettings((*names, spec.STUDENT_LOSS_KEY), weights, beta=0.9, target=spec.STUDENT_LOSS_KEY)


EMA = ema(2)
#: Three intermediates: XLA would make their mean a product with 1/3.
RATIOS = spec.LogitsAndIntermediatesLossBalancerSettings(kd_loss_scale=0.3)
RATIO_NAMES = ("LogitsKLLoss_0", "MSELoss_1", "MSELoss_2", "MSELoss_3", spec.STUDENT_LOSS_KEY)


class Balancer(NamedTuple):
    """A balancer that is audited: its settings, and the names of its losses in canonical order."""

    settings: Any
    names: tuple[str, ...]


def balancers() -> dict[str, Balancer]:
    """What is audited, by what it is called: every example of the registry, then other numbers of losses."""
    examples = {f"{each.balancer} {name}": Balancer(each, EXAMPLE_NAMES) for name, each in registry.examples().items()}
    return {**examples, **_more()}


def _more() -> dict[str, Balancer]:
    more = {}
    for form, kd_loss_weight in (("one weight", lambda _: 0.7), ("weights", _weights)):
        for kd in KD_COUNTS:
            names = (*(f"KDLoss_{i}" for i in range(kd)), spec.STUDENT_LOSS_KEY)
            more[f"StaticLossBalancer {form} K={kd}"] = Balancer(spec.StaticLossBalancerSettings(kd_loss_weight(kd)), names)
    for kd in EMA_KD_COUNTS:
        more[f"{EMA.balancer} K={kd}"] = Balancer(ema(kd), ema(kd).names)
    more[f"{RATIOS.balancer} K=4"] = Balancer(RATIOS, RATIO_NAMES)
    return more


def _weights(kd: int) -> list[float]:
    """Distinct weights with long significands, in sum below 1."""
    return [round(0.01 + 0.011 * i, 3) for i in range(kd)]


@dataclass(frozen=True)
class Case:
    """One function to compile.

    Args:
        name: For the table. ``slug``, made of it, names the function and its folder.
        arguments: How many float32 scalars it takes first.
        results: How many it returns.
        expected: The DAG that the spec prescribes.
        function: Builds the JAX function; None if there is none, since only PyTorch has the case.
        vectors: The lengths of the float32 vectors that it takes then, by name: a balancer's state.
        draws: Inputs on which steps are executed (`established`), one array for each scalar and each element.
        planted: The kinds of finding of which one must be made; empty if the case must be as specified.
    """

    name: str
    arguments: int
    results: int
    expected: Callable[[Dag], list[Node]]
    function: Callable[[], Callable[..., Any]] | None
    vectors: dict[str, int] = field(default_factory=dict)
    draws: Callable[[], list[Words]] = list
    planted: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)

    def state_inputs(self) -> dict[str, list[int]]:
        """The numbers of the inputs that the elements of the vectors are."""
        numbers = count(self.arguments)
        return {name: list(islice(numbers, length)) for name, length in self.vectors.items()}


def all_cases() -> list[Case]:
    """Every case that must be as specified."""
    return [
        *_div_cases(),
        *_elementary_cases(),
        *(balancer_case(name, each, kind == "gradient") for name, each in balancers().items() for kind in KINDS),
    ]


def balancer_case(name: str, each: Balancer, gradient: bool) -> Case:
    """The case of a balancer's forward, or of its gradient."""
    settings, names = each
    own, arguments = own_entries(settings), len(names) + gradient
    return Case(
        f"{name} {KINDS[gradient]}",
        arguments,
        len(names) if gradient else 1,
        lambda dag: reference.balancer(dag, settings, names, gradient),
        lambda: (_gradient if gradient else forward)(each),
        {entry.name: entry.shape[0] for entry in own},
        lambda: [*draws.losses(arguments), *draws.state(own)],
    )


def _div_cases() -> list[Case]:
    from_operands, with_cotangent = (lambda number=number: draws.operands(number) for number in (2, 3))
    return [
        Case("div forward", 2, 1, reference.div, div_forward, draws=from_operands),
        Case("div gradient", 3, 2, lambda dag: reference.div(dag, gradient=True), _div_gradient, draws=with_cotangent),
    ]


def _elementary_cases() -> list[Case]:
    """`exp`, `log` and `sqrt`, forward and gradient, and `softmax`, which has no gradient."""
    cases = []
    for name in ELEMENTARY:
        for gradient in (False, True):
            cases.append(
                Case(
                    f"{name} {KINDS[gradient]}",
                    1 + gradient,
                    1,
                    lambda dag, name=name, gradient=gradient: reference.elementary(dag, name, gradient),
                    lambda name=name, gradient=gradient: (_elementary_gradient if gradient else elementary)(name),
                    draws=lambda name=name, gradient=gradient: draws.hard_operands(name)[: 1 + gradient],
                )
            )
    softmax = Case(
        "softmax forward",
        SOFTMAX,
        SOFTMAX,
        lambda dag: reference.softmax(dag, SOFTMAX),
        _softmax,
        draws=lambda: draws.exponents(SOFTMAX),
    )
    return [*cases, softmax]


def elementary(name: str) -> Callable[..., Any]:
    """`portable.exp`, `log` or `sqrt`."""
    from loss_balancers.jax import portable

    return getattr(portable, name)


def _elementary_gradient(name: str) -> Callable[..., Any]:
    import jax

    return lambda x, cotangent: jax.vjp(elementary(name), x)[1](cotangent)[0]


def _softmax() -> Callable[..., Any]:
    import jax.numpy as jnp

    from loss_balancers.jax.portable import softmax

    return lambda *numbers: tuple(softmax(jnp.stack(numbers)))


def div_forward() -> Callable[..., Any]:
    """`portable.div`."""
    from loss_balancers.jax.portable import div

    return div


def _div_gradient() -> Callable[..., Any]:
    import jax

    return lambda a, b, cotangent: jax.vjp(div_forward(), a, b)[1](cotangent)


def forward(each: Balancer) -> Callable[..., Any]:
    """The aggregate, a function of the losses and the state."""
    import loss_balancers.jax

    settings, names = each

    def run(*arguments: Any) -> Any:
        losses, own = arguments[: len(names)], arguments[len(names) :]
        balancer = registry.make(settings, loss_balancers.jax)
        balancer.eval()
        if settings.state:
            balancer.steps[...] = COMMITS
        for entry, value in zip(own_entries(settings), own, strict=True):
            getattr(balancer, entry.name)[...] = value
        return balancer(dict(zip(names, losses, strict=True)))

    return run


def _gradient(each: Balancer) -> Callable[..., Any]:
    """The gradient to each loss. The cotangent is an argument, so that nothing can be folded."""
    import jax

    number = len(each.names)

    def run(*arguments: Any) -> Any:
        losses, cotangent, own = arguments[:number], arguments[number], arguments[number + 1 :]
        return jax.vjp(lambda *given: forward(each)(*given, *own), *losses)[1](cotangent)

    return run
