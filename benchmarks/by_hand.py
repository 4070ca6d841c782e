"""Each balancer's method as one would write it in a training loop: the formula of its paper, and no more.

Written once, on a vector of losses, over what PyTorch and JAX have in common (`Ops`). Nothing guards against a zero or a NaN,
nothing has prescribed bits, nothing checks a name; weights are constants for the gradient. Where LibMTL, TorchJD or PhysicsNeMo has
the method, its formula is this one.

A method has a state (arrays by name), parameters (by name, learned), and three functions: ``aggregate`` from state, parameters and
losses to the aggregate and the state with the losses observed, ``update`` with the losses after the optimizer's step, ``commit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

State = dict[str, Any]


class Ops(NamedTuple):
    """The functions of a framework."""

    stack: Callable[[Any], Any]
    #: A vector of these numbers.
    vector: Callable[[list[float]], Any]
    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    softmax: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    #: The value without its gradient.
    constant: Callable[[Any], Any]
    #: A vector of standard normal numbers, and the state after they were drawn.
    normal: Callable[[State, int], tuple[Any, State]]
    #: What of a state draws them.
    draws: State


class Method(NamedTuple):
    """A method for so many losses, the student's last."""

    state: State
    parameters: State
    aggregate: Callable[[State, State, Any], tuple[Any, State]]
    commit: Callable[[State], State] = lambda state: state
    update: Callable[[State, Any], State] | None = None


def static(ops: Ops, count: int) -> Method:
    """The losses times constant weights."""
    weights = ops.vector(_shares(count))
    return Method({}, {}, lambda state, _, x: ((x * weights).sum(), state))


def scheduled(ops: Ops, count: int) -> Method:
    """Weights of KD losses that grow over 10,000 steps, the student's what is left."""
    ends = ops.vector([*_shares(count)[:-1], 0.0])
    last = ops.vector([0.0] * (count - 1) + [1.0])

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        share = state["steps"] / 10_000
        kd = ends * ops.where(share < 1, share, share * 0 + 1)
        return (x * (kd + last * (1 - kd.sum()))).sum(), state

    return Method({"steps": ops.vector([0.0])}, {}, aggregate, _next_step)


def weighted_sum(ops: Ops, count: int) -> Method:
    """As `static`."""
    return static(ops, count)


def ema_normalized(ops: Ops, count: int) -> Method:
    """Each loss over its running mean, which begins as Adam's moments do."""
    decay = 0.99

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        mean = decay * state["mean"] + (1 - decay) * ops.constant(x)
        unbiased = mean / (1 - decay ** (state["steps"] + 1))
        return (x / (unbiased + 1e-8)).sum(), {**state, "seen": mean}

    def commit(state: State) -> State:
        return {"mean": state["seen"], "seen": state["seen"], "steps": state["steps"] + 1}

    zeros = ops.vector([0.0] * count)
    return Method({"mean": zeros, "seen": zeros, "steps": ops.vector([0.0])}, {}, aggregate, commit)


def logits_and_intermediates(ops: Ops, count: int) -> Method:
    """ModelOpt's formula for Megatron: intermediate losses in units of that on the logits, the sum in units of the student's."""
    del count

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        logits, intermediates, student = x[0], x[1:-1].mean(), x[-1]
        kd = logits + ops.constant(logits / intermediates) * intermediates
        return student + ops.constant(student / kd) * kd, state

    return Method({}, {}, aggregate)


def dwa(ops: Ops, count: int) -> Method:
    """Dynamic weight average, an epoch being ten steps; equal weights until two have ended."""
    ones = ops.vector([1.0] * count)

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        weights = count * ops.softmax(state["last"] / state["before"] / 2.0)
        weights = ops.where(state["steps"] < 20, ones, weights)
        return (x * weights).sum(), {**state, "sum": state["sum"] + ops.constant(x)}

    def commit(state: State) -> State:
        steps = state["steps"] + 1
        ends = steps % 10 == 0
        last = ops.where(ends, state["sum"] / 10, state["last"])
        before = ops.where(ends, state["last"], state["before"])
        return {"sum": ops.where(ends, ones * 0, state["sum"]), "last": last, "before": before, "steps": steps}

    return Method({"sum": ones * 0, "last": ones, "before": ones, "steps": ops.vector([0.0])}, {}, aggregate, commit)


def soft_adapt(ops: Ops, count: int) -> Method:
    """A softmax of how much each loss has changed since the step before."""
    ones = ops.vector([1.0] * count)

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        seen = ops.constant(x)
        return (x * ops.softmax(0.1 * (seen - state["last"]))).sum(), {**state, "seen": seen}

    return Method({"last": ones, "seen": ones}, {}, aggregate, lambda state: {"last": state["seen"], "seen": state["seen"]})


def geometric(ops: Ops, count: int) -> Method:
    """The geometric mean."""
    del count
    return Method({}, {}, lambda state, _, x: (ops.exp(ops.log(x).mean()), state))


def stch(ops: Ops, count: int) -> Method:
    """The smooth maximum, of losses each a K-th."""

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        y = x / count
        greatest = ops.constant(y).max()
        return ops.log(ops.exp(y - greatest).sum()) + greatest, state

    return Method({}, {}, aggregate)


def random(ops: Ops, count: int) -> Method:
    """A softmax of normal numbers, drawn at each step."""

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        drawn, state = ops.normal(state, count)
        return (x * ops.softmax(drawn)).sum(), state

    return Method(ops.draws, {}, aggregate)


def relobralo(ops: Ops, count: int) -> Method:
    """Relative loss balancing: what the ratios to the last losses say, and now and then those to the first."""
    ones = ops.vector([1.0] * count)

    def balance(x: Any, other: Any) -> Any:
        return count * ops.softmax(x / other)

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        seen, begins = ops.constant(x), state["steps"] == 0
        first = ops.where(begins, seen, state["first"])
        drawn, state = ops.normal(state, 1)
        history = ops.where(drawn > 2.326, balance(seen, first), state["weights"])  # one step in a hundred looks back
        weights = ops.where(begins, ones, 0.95 * history + 0.05 * balance(seen, state["last"]))
        return (x * weights).sum(), {**state, "first": first, "seen": seen, "new": weights}

    def commit(state: State) -> State:
        return {**state, "last": state["seen"], "weights": state["new"], "steps": state["steps"] + 1}

    state = dict.fromkeys(("first", "last", "seen", "weights", "new"), ones)
    return Method({**state, "steps": ops.vector([0.0]), **ops.draws}, {}, aggregate, commit)


def uncertainty(ops: Ops, count: int) -> Method:
    """Losses times learned precisions, and their logarithms."""

    def aggregate(state: State, learned: State, x: Any) -> tuple[Any, State]:
        s = learned["log_variance"]
        return ((ops.exp(-s) * x + s) / 2).sum(), state

    return Method({}, {"log_variance": ops.vector([0.0] * count)}, aggregate)


def imtl(ops: Ops, count: int) -> Method:
    """Losses times learned scales, less the logarithms of these."""

    def aggregate(state: State, learned: State, x: Any) -> tuple[Any, State]:
        s = learned["log_scale"]
        return (ops.exp(s) * x - s).sum(), state

    return Method({}, {"log_scale": ops.vector([0.0] * count)}, aggregate)


def famo(ops: Ops, count: int) -> Method:
    """The logarithms of the losses, weighted by logits that Adam moves after a second evaluation."""

    def aggregate(state: State, _: State, x: Any) -> tuple[Any, State]:
        z = ops.softmax(state["logits"])
        n = ops.constant((z / (x + 1e-8)).sum())
        return (z / n * ops.log(x + 1e-8)).sum(), {**state, "seen": ops.constant(x)}

    def update(state: State, after: Any) -> State:
        z = ops.softmax(state["logits"])
        falls = ops.log(state["seen"] + 1e-8) - ops.log(after + 1e-8)
        gradient = z * (falls - (z * falls).sum()) + 0.001 * state["logits"]
        first = 0.9 * state["first"] + 0.1 * gradient
        second = 0.999 * state["second"] + 0.001 * gradient * gradient
        steps = state["steps"] + 1
        move = first / (1 - 0.9**steps) / (ops.sqrt(second / (1 - 0.999**steps)) + 1e-8)
        return {**state, "logits": state["logits"] - 0.025 * move, "first": first, "second": second, "steps": steps}

    ones = ops.vector([1.0] * count)
    state = {"logits": ones * 0, "first": ones * 0, "second": ones * 0, "seen": ones, "steps": ops.vector([0.0])}
    return Method(state, {}, aggregate, lambda state: state, update)


def _shares(count: int) -> list[float]:
    return [1 / count] * count


def _next_step(state: State) -> State:
    return {**state, "steps": state["steps"] + 1}
