"""What the spec prescribes for the code of a function: the expressions that its reference gives when it computes with nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from loss_balancers.audit.expressions.dag import Dag, Node, bits_float, walk
from loss_balancers.audit.expressions.steps import IN_64_BITS, STEP, STEPS
from loss_balancers.audit.expressions.words import floats, words
from loss_balancers.audit.prescribed.nodes import Nodes
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.call import Call
from loss_balancers.spec.state import StateEntry, base_entries

#: How many commits a balancer has made when it is audited: so many that weights by a schedule are neither its first nor its last.
COMMITS = 3


def own_entries(settings: Any) -> tuple[StateEntry, ...]:
    """The entries that weights are made of: a parameter, and all state but the counters and what is pending."""
    return (*settings.state[len(base_entries(0)) :], *settings.learned)


def balancer(dag: Dag, settings: Any, names: Sequence[str], gradient: bool) -> list[Node]:
    """The aggregate, or the gradient to each loss. The inputs are the losses, for the gradient the cotangent, and the state."""
    inputs, ops = map(dag.input, count()), Nodes(dag)
    losses = tuple(next(inputs) for _ in names)
    cotangent = next(inputs) if gradient else 1.0
    own = {entry.name: [next(inputs) for _ in range(entry.shape[0])] for entry in own_entries(settings)}
    call = Call(tuple(names), ("f32",) * len(names), losses, ops=ops)
    aggregate, gradients = settings.exact_aggregate(call, cotangent, {"steps": COMMITS, **own})
    return list(map(ops.node, gradients if gradient else [aggregate]))


def weighted_sum(dag: Dag, weights: Sequence[float]) -> list[Node]:
    """The weighted sum of as many inputs."""
    terms = [dag.input(i) for i in range(len(weights))]
    return [Nodes(dag).weighted_sum(terms, ("f32",) * len(terms), weights)]


def div(dag: Dag, gradient: bool = False) -> list[Node]:
    """The quotient of the first two inputs, or the gradient to both; the third is the cotangent."""
    a, b, ops = dag.input(0), dag.input(1), Nodes(dag)
    return list(ops.div_gradient(dag.input(2), a, b, "f32")) if gradient else [ops.div(a, b, "f32")]


def elementary(dag: Dag, name: str, gradient: bool = False) -> list[Node]:
    """`exp`, `log` or `sqrt` of the first input, or the gradient to it; the second is the cotangent."""
    ops = Nodes(dag)
    return [getattr(ops, f"{name}_gradient")(dag.input(1), dag.input(0)) if gradient else getattr(ops, name)(dag.input(0))]


def softmax(dag: Dag, count: int) -> list[Node]:
    """The softmax of as many inputs."""
    return Nodes(dag).softmax(list(map(dag.input, range(count))))


def evaluate(roots: Sequence[Node], inputs: Sequence[float]) -> list[float]:
    """The values of ``roots`` in the spec's exact arithmetic, for what the spec prescribes."""
    values: dict[int, float] = {}
    for node in walk(list(roots)):
        args = [values[id(arg)] for arg in node.args]
        if node.op == "input":
            value = inputs[int(node.value)]
        elif node.op == "const":
            value = bits_float(int(node.value))
        elif node.op == "mul":
            value = EXACT.multiply(args[0], args[1], "f32")
        elif node.op == "add":
            value = EXACT.add(args[0], args[1], "f32")
        elif node.op == "keep":
            value = EXACT.flush(args[0], "f32")
        elif node.op in {"abs", "neg"}:
            value = abs(args[0]) if node.op == "abs" else -args[0]
        elif node.op == STEP and node.value == "div":
            value = EXACT.div(args[0], args[1], "f32")
        elif node.op == STEP and node.value in IN_64_BITS:
            value = getattr(EXACT, str(node.value))(*([args] if node.value == "total" else args))
        elif node.op == STEP and node.value == "greatest":
            value = EXACT.greatest(args)
        elif node.op == STEP:
            value = float(floats(STEPS[str(node.value)](*(words(np.array([arg], np.float32)) for arg in args)))[0])
        else:
            raise ValueError(f"The spec prescribes no operation {node.op!r}.")
        values[id(node)] = value
    return [values[id(root)] for root in roots]
