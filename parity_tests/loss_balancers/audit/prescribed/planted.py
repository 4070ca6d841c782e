"""The planted faults: variants of what the cases compile, each of which the audit must find on every target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loss_balancers.audit.expressions.comparison import (
    APPROXIMATE_DIVISION,
    FUSED_MULTIPLY_ADD,
    MISSING_BARRIER,
    REASSOCIATED_SUM,
    UNREPAIRED_DIVISION,
)
from loss_balancers.audit.expressions.dag import Dag, Node
from loss_balancers.audit.prescribed import draws, reference
from loss_balancers.audit.prescribed.cases import EMA, RATIO_NAMES, RATIOS, Balancer, Case, balancer_case, div_forward, forward

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
        *(_natively_balanced(each, native) for each in (Balancer(EMA, EMA.names), Balancer(RATIOS, RATIO_NAMES))),
    ]


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
