"""The DAG that the spec prescribes: its reference steps (spec A3 to A8), written over nodes instead of numbers, for float32.

A test evaluates these DAGs with the spec's own arithmetic and holds the results against the spec's reference, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loss_balancers import spec
from loss_balancers.parity.audit.dag import Dag, Node, bits_float, walk
from loss_balancers.parity.audit.steps import STEP, STEPS
from loss_balancers.parity.audit.words import floats, words
from loss_balancers.spec import arithmetic
from loss_balancers.spec.formats import flush


def weighted_sum(dag: Dag, terms: Sequence[Node], weights: Sequence[float]) -> Node:
    """A3 to A6: each operand flushed, each product kept apart, the sum in order, flushed once."""
    total = None
    for term, weight in zip(terms, weights, strict=True):
        product = dag.op("keep", dag.op("mul", dag.op("keep", term), _weight(dag, weight)))
        total = product if total is None else dag.op("add", total, product)
    assert total is not None  # the callers have terms
    return dag.op("keep", total)


def weighted_sum_gradient(dag: Dag, cotangent: Node, weights: Sequence[float]) -> list[Node]:
    """A8: keep(RN(w * g)) for each term."""
    return [dag.op("keep", dag.op("mul", dag.op("keep", cotangent), _weight(dag, weight))) for weight in weights]


def static_forward(dag: Dag, settings: spec.StaticLossBalancerSettings, names: tuple[str, ...]) -> list[Node]:
    """The aggregate; input i is the i-th loss in canonical order."""
    plan = spec.static_plan(settings, names)
    terms = [dag.input(i) for i in range(len(names))]
    shared = len(terms) - len(plan.factors) + 1
    if shared > 1:
        terms = [weighted_sum(dag, terms[:shared], (1.0,) * shared), *terms[shared:]]
    return [weighted_sum(dag, terms, plan.factors)]


def static_gradient(dag: Dag, settings: spec.StaticLossBalancerSettings, names: tuple[str, ...]) -> list[Node]:
    """The gradient to each loss; the last input is the cotangent."""
    plan = spec.static_plan(settings, names)
    cotangent = dag.input(len(names))
    shared = len(names) - len(plan.factors) + 1
    outer = weighted_sum_gradient(dag, cotangent, plan.factors)
    if shared == 1:
        return outer
    return [*weighted_sum_gradient(dag, outer[0], (1.0,) * shared), *outer[1:]]


def _weight(dag: Dag, weight: float) -> Node:
    return dag.number(spec.round_weight(weight, "f32"))


def evaluate(roots: Sequence[Node], inputs: Sequence[float]) -> list[float]:
    """The values of ``roots`` in the spec's exact arithmetic, for what the spec prescribes: multiply, add, divide, keep, choose."""
    values: dict[int, float] = {}
    for node in walk(list(roots)):
        args = [values[id(arg)] for arg in node.args]
        if node.op == "input":
            value = inputs[int(node.value)]
        elif node.op == "const":
            value = bits_float(int(node.value))
        elif node.op == "mul":
            value = arithmetic.multiply(args[0], args[1], "f32")
        elif node.op == "add":
            value = arithmetic.add(args[0], args[1], "f32")
        elif node.op == "keep":
            value = flush(args[0], "f32")
        elif node.op == "abs":
            value = abs(args[0])
        elif node.op == STEP and node.value == "div":
            value = arithmetic.div(args[0], args[1], "f32")
        elif node.op == STEP:
            value = float(floats(STEPS[str(node.value)](*(words(np.array([arg], np.float32)) for arg in args)))[0])
        else:
            raise ValueError(f"The spec prescribes no operation {node.op!r}.")
        values[id(node)] = value
    return [values[id(root)] for root in roots]
