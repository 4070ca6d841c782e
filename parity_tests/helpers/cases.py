"""What the parity tests share: one drawn call, given to torch, to JAX and to the exact reference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from loss_balancers.parity.bits import array_bits, describe, same, to_bits
from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.spec import FORMATS, StaticLossBalancerSettings, canonical_order, static_plan, static_reference
from loss_balancers.spec.arithmetic import add, multiply, widen
from loss_balancers.spec.formats import compute_format, flush, round_weight

TORCH_DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in FORMATS.items()}
JAX_DTYPES = {name: jnp.dtype(fmt.dtype) for name, fmt in FORMATS.items()}

Losses = Mapping[str, tuple[str, float]]
Outcome = dict[str, tuple[str, int]]  # "the aggregate", or the name of a loss for its gradient, to (format, bits)


def by_spec(settings: StaticLossBalancerSettings, losses: Losses, result: str, cotangent: float) -> Outcome:
    aggregate, gradients = static_reference(settings, losses, cotangent)
    return {"the aggregate": (result, to_bits(aggregate, result))} | {
        name: (losses[name][0], to_bits(gradient, losses[name][0])) for name, gradient in gradients.items()
    }


def by_torch(balancer: Any, losses: Losses, result: str, cotangent: float) -> Outcome:
    x = {name: torch.tensor(value, dtype=TORCH_DTYPES[fmt], requires_grad=True) for name, (fmt, value) in losses.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        aggregate = balancer(x)
    gradients = torch.autograd.grad(aggregate, list(x.values()), torch.tensor(cotangent, dtype=TORCH_DTYPES[result]))
    return _outcome(aggregate, dict(zip(x, gradients, strict=True)))


def jitted(balancer: Any) -> Any:
    """Aggregate and gradients of a JAX balancer, jitted once."""

    def step(losses: Any, cotangent: Any) -> Any:
        aggregate, pullback = jax.vjp(balancer, losses)
        return aggregate, pullback(cotangent)[0]

    return jax.jit(step)


def by_jax(step: Any, losses: Losses, result: str, cotangent: float) -> Outcome:
    with enable_x64(any(fmt == "f64" for fmt, _ in losses.values())), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        x = {name: jnp.asarray(np.asarray(value, JAX_DTYPES[fmt])) for name, (fmt, value) in losses.items()}
        return _outcome(*step(x, jnp.asarray(np.asarray(cotangent, JAX_DTYPES[result]))))


def _outcome(aggregate: Any, gradients: Mapping[str, Any]) -> Outcome:
    return {"the aggregate": _bits(aggregate)} | {name: _bits(gradient) for name, gradient in gradients.items()}


def _bits(x: Any) -> tuple[str, int]:
    name = str(x.dtype).removeprefix("torch.")
    return next(f.name for f in FORMATS.values() if f.dtype == name), int(array_bits(x))


def odd_one_out(spec: Outcome, torch_outcome: Outcome, jax_outcome: Outcome) -> list[str]:
    """What differs between the three witnesses, and who stands alone."""
    found = []
    for what, (fmt, expected) in spec.items():
        witnesses = {"torch": torch_outcome[what], "jax": jax_outcome[what]}
        wrong = {n: (f, bits) for n, (f, bits) in witnesses.items() if f != fmt or not same(bits, expected, fmt)}
        if wrong:
            who = " and ".join(wrong) + (" differs" if len(wrong) == 1 else " differ")
            found += [f"{who} from the spec in {what}: {describe(bits, expected, f)}" for f, bits in wrong.values()]
    return found


def has_subnormal_partial_sum(settings: StaticLossBalancerSettings, losses: Losses) -> bool:
    """Whether a sum before the last is subnormal: from there on the spec promises +-2^-126 and no bits (spec A6)."""
    plan = static_plan(settings, canonical_order(tuple(losses)))
    compute = compute_format(fmt for fmt, _ in losses.values())
    weights = (1.0,) * len(plan.names) if len(plan.factors) < len(plan.names) else plan.weights
    total, sums = 0.0, []
    for name, weight in zip(plan.names, weights, strict=True):
        fmt, value = losses[name]
        total = add(total, flush(multiply(round_weight(weight, compute), widen(value, fmt), compute), compute), compute)
        sums.append(total)
    return any(math.isfinite(s) and s != 0 and abs(s) <= FORMATS[compute].tiny for s in sums[:-1])
