"""The DAGs of `div` and of the balancers that divide, as the spec prescribes them (A10, A12, M2 to M4, L2 to L5), for float32."""

from __future__ import annotations

from collections.abc import Sequence

from loss_balancers import spec
from loss_balancers.parity.audit.dag import Dag, Node
from loss_balancers.parity.audit.expected import weighted_sum


def div_forward(dag: Dag) -> list[Node]:
    """The quotient of the two inputs."""
    return [_div(dag, dag.input(0), dag.input(1))]


def div_gradient(dag: Dag) -> list[Node]:
    """The gradient to both inputs (A12); the third is the cotangent."""
    a, b, g = (dag.input(i) for i in range(3))
    scaled = _div(dag, g, b)
    return [scaled, _rmul(dag, scaled, dag.step("-", _div(dag, a, b)))]


def ema_forward(dag: Dag, settings: spec.EMANormalizedLossBalancerSettings, cotangents: int = 0) -> list[Node]:
    """The aggregate; inputs are the losses in canonical order, the cotangents, then the state: totals, and fixes."""
    losses = [dag.input(i) for i in range(len(settings.names))]
    return [_sum_by(dag, losses, _ema_weights(dag, settings, losses, len(losses) + cotangents))]


def ema_gradient(dag: Dag, settings: spec.EMANormalizedLossBalancerSettings) -> list[Node]:
    """The gradient to each loss."""
    losses = [dag.input(i) for i in range(len(settings.names))]
    return [_rmul(dag, dag.input(len(losses)), weight) for weight in _ema_weights(dag, settings, losses, len(losses) + 1)]


def _ema_weights(dag: Dag, settings: spec.EMANormalizedLossBalancerSettings, losses: Sequence[Node], state: int) -> list[Node]:
    count = len(losses)
    old = {"total": [dag.input(state + k) for k in range(count)], "fix": [dag.input(state + count + k) for k in range(count)]}
    added = {"total": [dag.op("abs", dag.op("keep", x)) for x in losses], "fix": [dag.number(1.0)] * count}
    decayed = {name: [dag.op("keep", dag.op("mul", s, dag.number(settings.decay))) for s in old[name]] for name in old}
    new = {name: [dag.op("add", d, x) for d, x in zip(decayed[name], added[name], strict=True)] for name in old}
    ahead = {
        name: [dag.step("taken in", *new["total"], after, before) for after, before in zip(new[name], old[name], strict=True)]
        for name in old
    }
    means = [_div(dag, t, dag.step("positive or 1", f)) for t, f in zip(ahead["total"], ahead["fix"], strict=True)]
    eps, one = dag.number(settings.offset), dag.number(1.0)
    unit = one if settings.reference is None else means[settings.reference]
    weights = []
    for mean, weight in zip(means, settings.table[0].tolist(), strict=True):
        above, below = (dag.step("where known", mean, unit, eps, x) for x in (unit, dag.op("add", mean, eps)))
        weights.append(_rmul(dag, dag.number(weight), _div(dag, above, below)))
    return weights


def ratios_forward(dag: Dag, settings: spec.LogitsAndIntermediatesLossBalancerSettings, names: tuple[str, ...]) -> list[Node]:
    """The aggregate; inputs are the losses in canonical order."""
    student, distilled, _, phi, scale = _parts(dag, settings, names)
    return [_sum_by(dag, [_sum_by(dag, [distilled], [phi]), student], [scale, dag.number(1.0)])]


def ratios_gradient(dag: Dag, settings: spec.LogitsAndIntermediatesLossBalancerSettings, names: tuple[str, ...]) -> list[Node]:
    """The gradient to each loss; the last input is the cotangent."""
    roles = settings.roles(names)
    _, _, ratio, phi, scale = _parts(dag, settings, names)
    g = dag.input(len(names))
    to_reference = _rmul(dag, _rmul(dag, g, scale), phi)
    share = _div(dag, _rmul(dag, to_reference, ratio), dag.number(len(roles.intermediates)))
    results = dict.fromkeys(roles.intermediates, share) | {roles.reference: to_reference, roles.student: dag.op("keep", g)}
    return [results[i] for i in range(len(names))]


def _parts(
    dag: Dag, settings: spec.LogitsAndIntermediatesLossBalancerSettings, names: tuple[str, ...]
) -> tuple[Node, Node, Node, Node, Node]:
    """The student loss, D, the two ratios and the scale."""
    roles, scale = settings.roles(names), settings.constant_scale
    assert roles.student is not None  # the cases have both
    assert scale is not None
    reference, student = dag.input(roles.reference), dag.input(roles.student)
    total = weighted_sum(dag, [dag.input(i) for i in roles.intermediates], (1.0,) * len(roles.intermediates))
    mean = _div(dag, total, dag.number(len(roles.intermediates)))
    ratio = dag.step("ratio", _div(dag, dag.op("keep", reference), mean), mean)
    distilled = _sum_by(dag, [reference, mean], [dag.number(1.0), ratio])
    phi = dag.step("phi", _div(dag, dag.op("keep", student), distilled), distilled, dag.op("keep", student))
    return student, distilled, ratio, phi, dag.number(scale)


def _div(dag: Dag, a: Node, b: Node) -> Node:
    return dag.step("div", dag.op("keep", a), dag.op("keep", b))


def _rmul(dag: Dag, a: Node, b: Node) -> Node:
    return dag.op("keep", dag.op("mul", dag.op("keep", a), dag.op("keep", b)))


def _sum_by(dag: Dag, terms: Sequence[Node], weights: Sequence[Node]) -> Node:
    """A5 with weights that are computed."""
    total = None
    for term, weight in zip(terms, weights, strict=True):
        product = _rmul(dag, term, weight)
        total = product if total is None else dag.op("add", total, product)
    assert total is not None  # the callers have terms
    return dag.op("keep", total)
