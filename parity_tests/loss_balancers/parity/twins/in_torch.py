"""Runs somebody's PyTorch balancer: eager, compiled, under `torch.func.vmap`, or inside a compiled training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loss_balancers.parity.bits import as_numpy
from loss_balancers.parity.twins.cases import Losses, rounded
from loss_balancers.parity.twins.lanes import TwinLane
from loss_balancers.parity.twins.outcome import (
    Outcome,
    Plan,
    Run,
    check_aggregate,
    checked_weights,
    has_method,
    narrowed,
    nudges_of,
    of_forward,
    of_state,
    of_weights,
)

#: From losses to the aggregate, and what it is differentiated by.
Forward = Callable[[Losses], tuple[Tensor, dict[str, Tensor]]]


def run(balancer: Callable[..., Any], lane: TwinLane, runs: Sequence[Run], plan: Plan) -> list[list[Outcome]]:
    """The outcomes of runs of one signature."""
    if lane.mode == "vmap":
        return _vmapped(balancer, lane, runs, plan)
    twin = _Twin(balancer, _device(lane))
    forward, fmt = _forward(twin, lane, runs[0].steps[0])
    plan = plan if lane.mode == "eager" else plan._replace(second=False)  # `torch.compile` has no second backward
    found = []
    for one in runs:
        twin.begin()
        found.append([_step(twin, forward, fmt, losses, plan, one.commits) for losses in one.steps])
    return found


def names_of_state(balancer: Any) -> set[str]:
    """The names of its buffers."""
    return {name for name, _ in balancer.named_buffers()} if isinstance(balancer, nn.Module) else set()


class _Twin:
    """Somebody's balancer. Of a module it is a copy, on the device, and begins each run afresh; a function is what it is."""

    def __init__(self, balancer: Callable[..., Any], device: str) -> None:
        self._original = _copy(balancer).to(device) if isinstance(balancer, nn.Module) else None
        self.balancer: Any = balancer if self._original is None else _copy(self._original)
        self.device = device

    def begin(self) -> None:
        """Makes the module what it was, in place: compiled code knows it."""
        if self._original is not None:
            fresh = vars(_copy(self._original))
            vars(self.balancer).clear()
            vars(self.balancer).update(fresh)

    def tensors(self, losses: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Losses as tensors of the same bits."""
        return {name: _tensor(x, self.device) for name, x in losses.items()}


def _copy(module: nn.Module) -> nn.Module:
    """A copy that shares frozen dataclasses, such as settings: Dynamo would compile again for another of them."""
    attributes = [x for part in module.modules() for x in vars(part).values()]
    shared = [x for x in attributes if is_dataclass(x) and type(x).__dataclass_params__.frozen]  # type: ignore[attr-defined]
    return copy.deepcopy(module, {id(x): x for x in shared})


def _device(lane: TwinLane) -> str:
    return "cuda" if lane.device == "rocm" else lane.device  # PyTorch calls AMD's so too


def _forward(twin: _Twin, lane: TwinLane, first: Losses) -> tuple[Forward, str | None]:
    """The forward of a lane, and the format of the aggregate where the forward hands it on in a wider one."""

    def call(losses: dict[str, Tensor]) -> Tensor:
        return twin.balancer(losses)

    if lane.mode == "step":
        return _in_a_step(call, twin, lane, first)
    program = _compile(call) if lane.mode == "compiled" else call

    def forward(losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
        x = {name: tensor.requires_grad_() for name, tensor in twin.tensors(losses).items()}
        aggregate = program(dict(x))
        _check(lane, aggregate, losses)
        return aggregate, x

    return forward, None


def _in_a_step(call: Callable[..., Any], twin: _Twin, lane: TwinLane, first: Losses) -> tuple[Forward, str]:
    """Losses computed, balanced and differentiated in one graph, where the compiler may keep more digits than a format has."""
    tensors = twin.tensors(first)
    dtypes = {name: x.dtype for name, x in tensors.items()}
    aggregate = call(tensors)
    _check(lane, aggregate, first)

    def step(parameters: dict[str, Tensor], nudges: dict[str, Tensor]) -> Tensor:
        return _wide(call({name: (x + nudges[name]).to(dtypes[name]) for name, x in parameters.items()}))

    program = _compile(step)

    # What the graph reads and hands on is wide, so that a value that the narrow format does not hold shows.
    def forward(losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
        parameters = {name: _wide(x).requires_grad_() for name, x in twin.tensors(losses).items()}
        return program(parameters, twin.tensors(nudges_of(losses))), parameters

    return forward, _dtype(aggregate)


def _compile(fn: Callable[..., Any]) -> Callable[..., Any]:
    from loss_balancers.parity.lanes.torch_compiled import compiled  # loads Dynamo, which takes a second

    torch.compiler.reset()  # of what other balancers and signatures left behind
    return compiled(fn)


def _step(twin: _Twin, forward: Forward, fmt: str | None, losses: Losses, plan: Plan, commits: bool) -> Outcome:
    """A forward for each cotangent, as of micro-batches: a compiled graph may give its buffers away in the backward pass."""
    outcome: Outcome = {}
    for index, cotangent in enumerate(plan.cotangents):
        aggregate, x = forward(losses)
        own = fmt or _dtype(aggregate)
        gradients, second = _derivatives(aggregate, x, rounded(cotangent, own), plan.second)
        by_name = {name: narrowed(as_numpy(g), losses[name].dtype.name) for name, g in gradients.items()}
        outcome |= of_forward(index, cotangent, narrowed(as_numpy(aggregate), own), by_name, second)
    return outcome | _after(twin, losses, plan, commits)


def _after(twin: _Twin, losses: Losses, plan: Plan, commits: bool) -> Outcome:
    """The weights, then a commit and the state after it."""
    outcome: Outcome = {}
    if plan.weights:
        with torch.no_grad():
            outcome |= of_weights(checked_weights("torch", twin.balancer.weights(twin.tensors(losses))))
    if commits and plan.commit:
        twin.balancer.step()
    if commits and plan.exported:
        outcome |= of_state(twin.balancer.export_state()["state"])
    elif commits and plan.entries:
        buffers = dict(twin.balancer.named_buffers())
        outcome |= of_state({name: buffers[name].clone() for name in plan.entries})
    return outcome


def _vmapped(balancer: Callable[..., Any], lane: TwinLane, runs: Sequence[Run], plan: Plan) -> list[list[Outcome]]:
    """Each step of all runs at once, with their states stacked.

    `torch.func` lets no state out: the state goes on by a forward outside of it, or `observe` where the balancer has that.
    """
    twins = [_Twin(balancer, _device(lane)) for _ in runs]
    found: list[list[Outcome]] = [[{} for _ in one.steps] for one in runs]
    for t in range(len(runs[0].steps)):
        batch = [one.steps[t] for one in runs]
        for index, cotangent in enumerate(plan.cotangents):
            stacked = {name: np.stack([losses[name] for losses in batch]) for name in batch[0]}
            x = {name: tensor.requires_grad_() for name, tensor in twins[0].tensors(stacked).items()}
            aggregates = torch.func.vmap(_stateless(twins[0], lane, batch[0]))(_states(twins), x)
            gradients, second = _derivatives(aggregates, x, rounded(cotangent, _dtype(aggregates)), plan.second)
            for row, outcomes in enumerate(found):
                outcomes[t] |= of_forward(
                    index,
                    cotangent,
                    as_numpy(aggregates[row]),
                    {name: as_numpy(gradient[row]) for name, gradient in gradients.items()},
                    {name: {to: x[row] for to, x in of_name.items()} for name, of_name in second.items()},
                )
            for twin, losses in zip(twins, batch, strict=True):
                _go_on(twin, losses)
        for twin, one, outcomes in zip(twins, runs, found, strict=True):
            outcomes[t] |= _after(twin, one.steps[t], plan, one.commits)
    return found


def _states(twins: Sequence[_Twin]) -> dict[str, Tensor]:
    if not isinstance(twins[0].balancer, nn.Module):
        return {}
    each = [dict(twin.balancer.named_parameters()) | dict(twin.balancer.named_buffers()) for twin in twins]
    return {name: torch.stack([state[name].detach() for state in each]) for name in each[0]}


def _stateless(twin: _Twin, lane: TwinLane, losses: Losses) -> Callable[..., Tensor]:
    """The balancer as a function of state and losses, in eval mode where that only observes less."""
    module = _copy(twin.balancer) if isinstance(twin.balancer, nn.Module) else None
    if module is not None and has_method(module, "observe", {}):
        module.eval()

    def checked(state: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
        aggregate = twin.balancer(x) if module is None else torch.func.functional_call(module, state, (x,))
        _check(lane, aggregate, losses)
        return aggregate

    return checked


def _go_on(twin: _Twin, losses: Losses) -> None:
    if isinstance(twin.balancer, nn.Module):
        module: Any = twin.balancer
        go_on = module.observe if has_method(module, "observe", {}) else module
        with torch.no_grad():
            go_on(twin.tensors(losses))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _derivatives(
    aggregate: Tensor, x: dict[str, Tensor], cotangent: float, second: bool
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The gradients, and on request the derivatives of each to every loss and to the cotangent."""
    sent_back = torch.full_like(aggregate, cotangent, requires_grad=second)
    gradients = _gradients(aggregate, x, sent_back, create_graph=second)
    by_what = {**x, "the cotangent": sent_back}
    rows = {name: _gradients(g, by_what, torch.ones_like(g), retain_graph=True) for name, g in gradients.items()} if second else {}
    return gradients, rows


def _gradients(result: Tensor, x: dict[str, Tensor], sent_back: Tensor, **options: bool) -> dict[str, Tensor]:
    if not result.requires_grad:  # JAX's answer for a result that depends on nothing
        return {name: torch.zeros_like(value) for name, value in x.items()}
    return dict(zip(x, torch.autograd.grad(result, list(x.values()), sent_back, materialize_grads=True, **options), strict=True))


def _check(lane: TwinLane, aggregate: Any, losses: Losses) -> None:
    check_aggregate(lane, aggregate, Tensor, _dtype(aggregate), losses)


def _dtype(x: Any) -> str:
    return str(getattr(x, "dtype", "")).removeprefix("torch.")


def _tensor(array: np.ndarray, device: str) -> Tensor:
    """The same bits as a tensor: bfloat16, which NumPy's bridge does not know, by way of its integers."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)
