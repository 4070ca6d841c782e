"""Runs somebody's PyTorch balancer: eager, compiled, under `torch.func.vmap`, or inside a compiled training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loss_balancers.parity.bits import as_numpy
from loss_balancers.parity.torch_compiled import compiled
from loss_balancers.parity.twin_cases import Losses, rounded
from loss_balancers.parity.twin_lanes import TwinLane
from loss_balancers.parity.twin_outcomes import AGGREGATE, Outcome, check_aggregate, gradient_name, narrowed, nudges_of


def run(balancer: Callable[..., Any], lane: TwinLane, cases: Sequence[Losses], cotangents: Sequence[float]) -> list[Outcome]:
    """The outcomes of cases of one signature."""
    if isinstance(balancer, nn.Module):
        balancer = copy.deepcopy(balancer).to(_device(lane))  # the caller's own keeps its device and its state

    def call(losses: dict[str, Tensor]) -> Tensor:
        return balancer(losses)

    if lane.mode == "vmap":
        return _vmapped(call, lane, cases, cotangents)
    if lane.mode == "step":
        return _in_steps(call, lane, cases, cotangents)
    if lane.mode == "compiled":
        call = _compile(call)
    return [_one(call, lane, losses, cotangents) for losses in cases]


def _device(lane: TwinLane) -> str:
    return "cuda" if lane.device == "rocm" else lane.device  # PyTorch calls AMD's so too


def _compile(fn: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamo counts compilations by the code of a function, which all balancers and signatures share, and gives up after a few.
    torch.compiler.reset()
    return compiled(fn)


def _one(call: Callable[..., Any], lane: TwinLane, losses: Losses, cotangents: Sequence[float]) -> Outcome:
    x = {name: _tensor(value, _device(lane)).requires_grad_() for name, value in losses.items()}
    outcome: Outcome = {}
    for cotangent in cotangents:
        # Forward again: a compiled graph may give its buffers away in the backward pass.
        aggregate = call(dict(x))
        _check(lane, aggregate, losses)
        outcome.setdefault(AGGREGATE, as_numpy(aggregate))
        for name, gradient in zip(x, _gradients(aggregate, list(x.values()), cotangent), strict=True):
            outcome[gradient_name(name, cotangent)] = as_numpy(gradient)
    return outcome


def _vmapped(call: Callable[..., Any], lane: TwinLane, cases: Sequence[Losses], cotangents: Sequence[float]) -> list[Outcome]:
    x = {name: _tensor(np.stack([losses[name] for losses in cases]), _device(lane)).requires_grad_() for name in cases[0]}

    def checked(losses: dict[str, Tensor]) -> Tensor:
        aggregate = call(losses)
        _check(lane, aggregate, cases[0])
        return aggregate

    outcomes: list[Outcome] = [{} for _ in cases]
    for cotangent in cotangents:
        aggregates = torch.func.vmap(checked)(x)
        columns = {AGGREGATE: aggregates} | {
            gradient_name(name, cotangent): gradient
            for name, gradient in zip(x, _gradients(aggregates, list(x.values()), cotangent), strict=True)
        }
        for what, column in columns.items():
            array = as_numpy(column)
            for index, outcome in enumerate(outcomes):
                outcome.setdefault(what, array[index, ...])
    return outcomes


def _in_steps(call: Callable[..., Any], lane: TwinLane, cases: Sequence[Losses], cotangents: Sequence[float]) -> list[Outcome]:
    """Losses computed, balanced and differentiated in one graph, where the compiler may keep more digits than a format has."""
    first = {name: _tensor(x, _device(lane)) for name, x in cases[0].items()}
    aggregate = call(first)
    _check(lane, aggregate, cases[0])
    fmt = _dtype(aggregate)

    def step(parameters: dict[str, Tensor], nudges: dict[str, Tensor]) -> Tensor:
        return _wide(call({name: (x + nudges[name]).to(first[name].dtype) for name, x in parameters.items()}))

    program = _compile(step)
    # What the graph reads and hands on is wide, so that a value that the narrow format does not hold shows.
    sent_back = [rounded(cotangent, fmt) for cotangent in cotangents]
    outcomes = []
    for losses in cases:
        parameters = {name: _wide(_tensor(x, _device(lane))).requires_grad_() for name, x in losses.items()}
        nudges = {name: _tensor(x, _device(lane)) for name, x in nudges_of(losses).items()}
        outcome: Outcome = {}
        for cotangent, exact in zip(cotangents, sent_back, strict=True):
            wide = program(parameters, nudges)
            outcome.setdefault(AGGREGATE, narrowed(as_numpy(wide), fmt))
            for name, gradient in zip(parameters, _gradients(wide, list(parameters.values()), exact), strict=True):
                outcome[gradient_name(name, cotangent)] = narrowed(as_numpy(gradient), losses[name].dtype.name)
        outcomes.append(outcome)
    return outcomes


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _gradients(aggregate: Tensor, losses: list[Tensor], cotangent: float) -> Sequence[Tensor]:
    if not aggregate.requires_grad:  # JAX's answer for an aggregate that depends on no loss
        return [torch.zeros_like(x) for x in losses]
    sent_back = torch.full_like(aggregate, rounded(cotangent, _dtype(aggregate)))
    return torch.autograd.grad(aggregate, losses, sent_back, materialize_grads=True)


def _check(lane: TwinLane, aggregate: Any, losses: Losses) -> None:
    check_aggregate(lane, aggregate, Tensor, _dtype(aggregate), losses)


def _dtype(x: Any) -> str:
    return str(getattr(x, "dtype", "")).removeprefix("torch.")


def _tensor(array: np.ndarray, device: str) -> Tensor:
    """The same bits as a tensor: bfloat16, which NumPy's bridge does not know, by way of its integers."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)
