"""The planted faults: variants of what the cases compile, each of which the audit must find on every target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from loss_balancers.audit.expressions.comparison import (
    APPROXIMATE_DIVISION,
    APPROXIMATE_FUNCTION,
    FUSED_MULTIPLY_ADD,
    MISSING_BARRIER,
    OTHER_BITS,
    REASSOCIATED_SUM,
    UNREPAIRED_DIVISION,
)
from loss_balancers.audit.expressions.dag import Dag, Node
from loss_balancers.audit.expressions.words import Words
from loss_balancers.audit.prescribed import draws, reference
from loss_balancers.audit.prescribed.cases import (
    EMA,
    RATIO_NAMES,
    RATIOS,
    SOFTMAX,
    Balancer,
    Case,
    balancer_case,
    div_forward,
    forward,
)

WEIGHTS = (0.25, 0.3, 0.15, 0.3)


def planted_cases() -> list[Case]:
    """Every fault."""
    count = len(WEIGHTS)
    fused, native = (FUSED_MULTIPLY_ADD, MISSING_BARRIER), (APPROXIMATE_DIVISION, UNREPAIRED_DIVISION)
    return [
        Case("planted: no barrier", count, 1, _sum, lambda: no_barrier, planted=fused),
        Case("planted: tree sum", count, 1, _sum, _tree_sum, planted=(REASSOCIATED_SUM,)),
        Case(
            "planted: native division",
            2,
            1,
            reference.div,
            lambda: _natively(div_forward()),
            draws=lambda: draws.operands(2),
            planted=native,
        ),
        Case(
            "planted: estimate as quotient",
            2,
            1,
            reference.div,
            lambda: _estimated,
            draws=lambda: draws.operands(2),
            planted=(UNREPAIRED_DIVISION,),
        ),
        *_elementary_cases(),
        *(_natively_balanced(each, native) for each in (Balancer(EMA, EMA.names), Balancer(RATIOS, RATIO_NAMES))),
    ]


def _elementary_cases() -> list[Case]:
    """The device's own functions, which no device rounds correctly; then faults that only the hardest of our inputs show."""
    wrong = (APPROXIMATE_FUNCTION, OTHER_BITS, FUSED_MULTIPLY_ADD)
    cut_sum = Case(
        "planted: softmax by a sum that is cut",
        SOFTMAX,
        SOFTMAX,
        lambda dag: reference.softmax(dag, SOFTMAX),
        _cut_sum,
        draws=lambda: draws.exponents(SOFTMAX),
        planted=(OTHER_BITS, UNREPAIRED_DIVISION),
    )
    return [
        *(_elementary(f"planted: native {name}", name, lambda name=name: _native(name), wrong) for name in ("exp", "log", "sqrt")),
        _elementary("planted: exp by a series that is too short", "exp", _short_series, (OTHER_BITS,)),
        cut_sum,
    ]


def _elementary(name: str, function: str, build: Callable[[], Callable[..., Any]], kinds: tuple[str, ...]) -> Case:
    def operand() -> list[Words]:
        return draws.hard_operands(function)[:1]

    return Case(name, 1, 1, lambda dag: reference.elementary(dag, function), build, draws=operand, planted=kinds)


def _native(name: str) -> Callable[..., Any]:
    import jax.numpy as jnp

    from loss_balancers.jax.rounding import keep

    return lambda x: keep(getattr(jnp, name)(keep(x)))


def _short_series() -> Callable[..., Any]:
    """`exp`, but its series ends at 1 / 10!: 2^-42 of the result is missing at most."""
    from loss_balancers.jax.portable import integers

    complete = integers._series  # type: ignore[reportPrivateUsage]

    def short(x: Any) -> Any:
        with patch.object(integers, "_series", lambda z, divisors: complete(z, divisors[:11])):
            return integers.exp(x)

    return _lowered("exp", short).bind


def _cut_sum() -> Callable[..., Any]:
    """`softmax`, but the sum of the powers is cut, not rounded."""
    import jax.numpy as jnp
    from jax import lax

    from loss_balancers.jax.portable import div, exp, integers
    from loss_balancers.jax.rounding import keep

    def cut(x: Any) -> Any:
        bits = integers._bits(x)  # type: ignore[reportPrivateUsage]
        m, shift = (bits & 0x7FFFFF) | 0x800000, ((bits >> 23) & 255) - 110
        n = jnp.sum(jnp.where(shift >= 0, m << jnp.maximum(shift, 0), m >> jnp.clip(-shift, 0, 63)), -1, keepdims=True)
        leading = lax.clz(n) - 2
        return integers._number(((61 - leading - 40 + 126) << 23) + ((n << leading) >> 38))  # type: ignore[reportPrivateUsage]

    total = _lowered("total", cut)
    total.def_abstract_eval(lambda x: x.update(shape=(*x.shape[:-1], 1), weak_type=False))

    def softmax(*numbers: Any) -> Any:
        x = keep(jnp.stack(numbers))
        most = jnp.max(x, -1, keepdims=True)
        powers = exp(x - most)
        valid = jnp.all(x < jnp.inf, -1, keepdims=True) & (most > -jnp.inf)
        return tuple(div(powers, jnp.broadcast_to(jnp.where(valid, total.bind(powers), jnp.float32(jnp.nan)), powers.shape)))

    return softmax


def _lowered(name: str, compute: Callable[..., Any]) -> Any:
    """A primitive of 64-bit integers."""
    from jax.extend.core import Primitive
    from jax.interpreters import mlir

    from loss_balancers.jax.portable import integers

    primitive = Primitive(f"loss_balancers_planted_{name}")
    primitive.def_abstract_eval(lambda x: x.update(weak_type=False))
    mlir.register_lowering(primitive, integers.lowering(compute))
    return primitive


def _natively_balanced(each: Balancer, kinds: tuple[str, ...]) -> Case:
    case = balancer_case(each.settings.balancer, each, gradient=False)
    name = f"planted: native division, {each.settings.balancer}"
    return replace(case, name=name, function=lambda: _natively(forward(each)), planted=kinds)


def _sum(dag: Dag) -> list[Node]:
    return reference.weighted_sum(dag, WEIGHTS)


def no_barrier(*losses: Any) -> Any:
    """A weighted sum that a compiler may contract, of arrays of either framework."""
    s = losses[0] * WEIGHTS[0]
    for weight, x in zip(WEIGHTS[1:], losses[1:], strict=True):
        s = s + weight * x
    return s


def tree_sum(keep: Callable[[Any], Any]) -> Callable[..., Any]:
    """A weighted sum in another order, by the `keep` of either framework."""

    def run(*losses: Any) -> Any:
        p = [keep(keep(x) * weight) for weight, x in zip(WEIGHTS, losses, strict=True)]
        return keep((p[0] + p[1]) + (p[2] + p[3]))

    return run


def _tree_sum() -> Callable[..., Any]:
    from loss_balancers.jax.rounding import keep

    return tree_sum(keep)


def _natively(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the device's own division wherever it uses `div`."""
    import jax
    from jax.extend.core import ClosedJaxpr, Literal

    from loss_balancers.jax.portable.division import quotient_p
    from loss_balancers.jax.rounding import keep

    def run(closed: ClosedJaxpr, arguments: Any) -> list[Any]:
        values = dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*closed.consts, *arguments], strict=True))
        for equation in closed.jaxpr.eqns:
            given = [each.val if isinstance(each, Literal) else values[each] for each in equation.invars]
            if equation.primitive is quotient_p:
                results = [keep(keep(given[0]) / keep(given[1]))]
            elif isinstance(inner := equation.params.get("jaxpr"), ClosedJaxpr):
                results = run(inner, given)
            else:
                results = equation.primitive.bind(*given, **equation.params)
            results = results if isinstance(results, (list, tuple)) else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [each.val if isinstance(each, Literal) else values[each] for each in closed.jaxpr.outvars]

    return lambda *arguments: run(jax.make_jaxpr(function)(*arguments), arguments)[0]


def _estimated(a: Any, b: Any) -> Any:
    """`div` without its repair: the estimate becomes an integer, and that the quotient's bits."""
    import jax.numpy as jnp
    from jax import lax

    from loss_balancers.jax.rounding import keep

    a, b = keep(a), keep(b)
    bits_a, bits_b = (lax.bitcast_convert_type(x, jnp.int32) for x in (a, b))
    m, n = ((bits & 0x7FFFFF) | 0x800000 for bits in (bits_a, bits_b))
    smaller = (m < n).astype(jnp.int32)
    exponent = ((bits_a >> 23) & 255) - ((bits_b >> 23) & 255) + 126 - smaller
    q = ((m << smaller).astype(jnp.float32) / n.astype(jnp.float32) * 2.0**23).astype(jnp.int32)
    ratio = lax.bitcast_convert_type((jnp.clip(exponent, 0, 254) << 23) + q, jnp.float32)
    return keep(jnp.where((bits_a ^ bits_b) < 0, -ratio, ratio))
