"""What `bench.py` compares: a step of one of our balancers, of a peer, of the method written by hand, and of the floor.

The floor is what any balancer costs: the losses stacked, times weights, summed. It has no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import by_hand
import jax
import jax.numpy as jnp
import torch
from by_hand import Method, Ops, State
from kernels import committed

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec import schedules
from loss_balancers.spec.registry import stem

OURS, FLOOR, BY_HAND = "ours", "floor", "by hand"
WHATS = ("forward", "forward, backward", "step")

TORCH = Ops(
    stack=torch.stack,
    vector=torch.tensor,
    exp=torch.exp,
    log=torch.log,
    sqrt=torch.sqrt,
    softmax=lambda x: torch.softmax(x, 0),
    where=torch.where,
    constant=torch.Tensor.detach,
    normal=lambda state, count: (torch.randn(count), state),
    draws={},
)


def _drawn_in_jax(state: State, count: int) -> tuple[Any, State]:
    key, own = jax.random.split(state["key"])
    return jax.random.normal(own, (count,)), {**state, "key": key}


def jax_ops() -> Ops:
    """Those of JAX. A function, since a key is an array, and to make one starts JAX."""
    return Ops(
        stack=jnp.stack,
        vector=lambda values: jnp.asarray(values, jnp.float32),
        exp=jnp.exp,
        log=jnp.log,
        sqrt=jnp.sqrt,
        softmax=jax.nn.softmax,
        where=jnp.where,
        constant=jax.lax.stop_gradient,
        normal=_drawn_in_jax,
        draws={"key": jax.random.key(0)},
    )


def names_of(kd: int) -> list[str]:
    """The names of so many KD losses and the student's."""
    return ["LogitsKL_0", *(f"MSELoss_{i}" for i in range(1, kd)), "student_loss"]


def values_of(kd: int) -> list[float]:
    """Losses that differ."""
    return [0.5 + (i * 7919 % 1000) / 1000 for i in range(kd + 1)]


def made(balancer: str, framework: Any, kd: int) -> Any:
    """A balancer of ours."""
    names, share = names_of(kd), 1 / (kd + 1)
    arguments: dict[str, tuple[Any, dict[str, Any]]] = {
        "StaticLossBalancer": (([share] * kd,), {}),
        "ScheduledLossBalancer": (([schedules.linear(0.0, share, 10_000)] * kd, names), {}),
        "WeightedSumLossBalancer": ((dict.fromkeys(names[:-1], share), share), {}),
        "LogitsAndIntermediatesLossBalancer": ((), {}),
        "DWALossBalancer": ((names,), {"epoch_steps": 10}),
    }
    given, more = arguments.get(balancer, ((names,), {}))
    return getattr(framework, balancer)(*given, **more)


class Side(NamedTuple):
    """A training step without a model, in its parts: each call goes on where the last one ended."""

    forward: Callable[[], Any]
    backward: Callable[[Any], object]
    commit: Callable[[], object]

    def call(self, what: str) -> Callable[[], object]:
        """One of `WHATS`."""
        if what == "forward":
            return self.forward
        if what == "step":
            return lambda: (self.backward(self.forward()), self.commit())
        return lambda: self.backward(self.forward())


# --- PyTorch --------------------------------------------------------------------------------------------------------


def torch_sides(balancer: str, kd: int, dtype: str, compiled: bool) -> dict[str, Callable[[], Side]]:
    """A step of each side in PyTorch, eager or compiled, by its name: ours, the peers that have the method, the floor."""
    compile_ = (lambda fn: torch.compile(fn, fullgraph=True)) if compiled else (lambda fn: fn)

    def losses() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        before = [torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True) for x in values_of(kd)]
        return before, [x.detach() * 0.9 for x in before]

    def ours() -> Side:
        made_ = made(balancer, loss_balancers.torch, kd)
        before, after = (dict(zip(names_of(kd), each, strict=True)) for each in losses())
        leaves = [*before.values(), *made_.parameters()]
        forward, commit = compile_(made_.forward), compile_(committed(made_, after))
        return Side(lambda: forward(before), lambda aggregate: torch.autograd.grad(aggregate, leaves), commit)

    def method() -> Side:
        return _written(getattr(by_hand, stem(balancer))(TORCH, kd + 1), *losses(), compile_)

    def floor() -> Side:
        before, _ = losses()
        weights = torch.full((kd + 1,), 1 / (kd + 1), dtype=before[0].dtype)
        forward = compile_(lambda given: torch.stack(given).dot(weights))
        return Side(lambda: forward(before), lambda aggregate: torch.autograd.grad(aggregate, before), lambda: None)

    peers = {} if compiled else _peers(balancer, kd, dtype, losses)
    return {OURS: ours, FLOOR: floor, BY_HAND: method, **peers}


def _written(method: Method, before: list[torch.Tensor], after: list[torch.Tensor], compile_: Any) -> Side:
    state, learned = method.state, {name: x.requires_grad_() for name, x in method.parameters.items()}
    leaves = [*before, *learned.values()]

    @torch.no_grad()
    def advanced(state: State, given: list[torch.Tensor]) -> State:
        return method.commit(state if method.update is None else method.update(state, torch.stack(given)))

    aggregate = compile_(lambda state, given: method.aggregate(state, learned, torch.stack(given)))
    advanced = compile_(advanced)

    def forward() -> torch.Tensor:
        nonlocal state
        found, state = aggregate(state, before)
        return found

    def commit() -> None:
        nonlocal state
        state = advanced(state, after)

    return Side(forward, lambda found: torch.autograd.grad(found, leaves), commit)


def _peers(balancer: str, kd: int, dtype: str, losses: Callable[[], Any]) -> dict[str, Callable[[], Side]]:
    """Classes of other libraries, of those that are installed. TorchJD's side has float32 alone."""
    found: dict[str, Callable[[], Side]] = {}
    if (aggregate := _in_modelopt(balancer, kd)) is not None:

        def theirs() -> Side:
            leaves, _ = losses()
            before = dict(zip(names_of(kd), leaves, strict=True))
            return Side(lambda: aggregate(before), lambda value: torch.autograd.grad(value, leaves), lambda: None)

        found["ModelOpt"] = theirs
    try:
        import against_torchjd
    except ImportError:
        return found
    if dtype == "float32" and (peer := against_torchjd.peer_of(balancer)) is not None:
        found["TorchJD"] = lambda: Side(*against_torchjd.there(peer, kd + 1))
    return found


def _in_modelopt(balancer: str, kd: int) -> Callable[[dict[str, torch.Tensor]], torch.Tensor] | None:
    """The aggregate by ModelOpt's class; None where it has none, or is not installed."""
    try:
        from modelopt.torch.distill.loss_balancers import StaticLossBalancer
        from modelopt_megatron import Theirs
    except ImportError:
        return None
    if balancer == "StaticLossBalancer":
        return StaticLossBalancer([1 / (kd + 1)] * kd)
    if balancer == "LogitsAndIntermediatesLossBalancer":
        made_ = Theirs()
        return lambda losses: made_(dict(losses))["kd_loss"]  # a copy, since it empties the dict that it gets
    return None


# --- JAX ------------------------------------------------------------------------------------------------------------


def jax_sides(balancer: str, kd: int, dtype: str) -> dict[str, Callable[[], JaxSide]]:
    """A step of each side under `jax.jit`, by its name: ours as `functional_form` has it, by hand, the floor."""
    names = names_of(kd)

    def ours() -> JaxSide:
        form = loss_balancers.jax.functional_form(made(balancer, loss_balancers.jax, kd))
        learned = getattr(by_hand, stem(balancer))(jax_ops(), kd + 1).parameters.keys()
        state = form.init()

        def advanced(state: State, after: Any) -> State:
            return form.commit(form.update(state, after) if form._balancer._settings.updates else state)

        start = {name: x for name, x in state.items() if name not in learned}
        parameters = {name: state[name] for name in learned}
        return JaxSide(
            start, parameters, lambda state, parameters, losses: form.apply({**state, **parameters}, losses), advanced, names
        )

    def method() -> JaxSide:
        written = getattr(by_hand, stem(balancer))(jax_ops(), kd + 1)

        def aggregate(state: State, learned: State, losses: Any) -> Any:
            return written.aggregate(state, learned, jnp.stack([losses[name] for name in names]))

        def advanced(state: State, after: Any) -> State:
            given = jnp.stack([after[name] for name in names])
            return written.commit(state if written.update is None else written.update(state, given))

        return JaxSide(written.state, written.parameters, aggregate, advanced, names)

    def floor() -> JaxSide:
        weights = jnp.full((kd + 1,), 1 / (kd + 1), dtype)
        aggregate = lambda state, _, losses: (jnp.stack([losses[name] for name in names]) @ weights, state)  # noqa: E731
        return JaxSide({}, {}, aggregate, lambda state, _: state, names)

    return {OURS: ours, FLOOR: floor, BY_HAND: method}


class JaxSide:
    """A training step under `jax.jit`, without a model: state in, state out."""

    def __init__(self, state: State, learned: State, aggregate: Any, advanced: Any, names: list[str]) -> None:
        self.state, self.learned, self._aggregate, self._advanced, self._names = state, learned, aggregate, advanced, names

    def jitted(self, what: str) -> Any:
        """A function of state, parameters, losses and losses after the step."""

        def forward(state: State, learned: State, losses: Any, after: Any) -> Any:
            del after
            return self._aggregate(state, learned, losses)

        def step(state: State, learned: State, losses: Any, after: Any) -> Any:
            value_and_grad = jax.value_and_grad(lambda *moving: self._aggregate(state, *moving), (0, 1), has_aux=True)
            (value, state), gradients = value_and_grad(learned, losses)
            if what == "step":
                state = self._advanced(state, after)
            return (value, gradients), {name: x for name, x in state.items() if name not in learned}

        return jax.jit(forward if what == "forward" else step)

    def arguments(self, dtype: str) -> tuple[Any, ...]:
        """What the function begins with."""
        losses = dict(zip(self._names, (jnp.asarray(x, dtype) for x in values_of(len(self._names) - 1)), strict=True))
        return self.state, self.learned, losses, {name: x * 0.9 for name, x in losses.items()}

    def call(self, what: str, dtype: str) -> Callable[[], object]:
        """One call, which waits for what it gives."""
        jitted = self.jitted(what)
        state, *others = self.arguments(dtype)

        def call() -> object:
            nonlocal state
            given = jax.block_until_ready(jitted(state, *others))
            if what != "forward":
                state = given[1]
            return given

        return call
