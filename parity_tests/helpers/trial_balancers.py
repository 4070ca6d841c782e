"""Balancers of kinds that the registry lacks: weights that are tensors without state, and derivatives without state and with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import pytest
import torch
from jax import Array
from torch import Tensor

import loss_balancers.jax
import loss_balancers.jax.observing
import loss_balancers.jax.portable
import loss_balancers.jax.stateful
import loss_balancers.jax.weighed
import loss_balancers.torch
import loss_balancers.torch.observing
import loss_balancers.torch.portable
import loss_balancers.torch.stateful
import loss_balancers.torch.weighed
from loss_balancers.spec import Group, golden, registry
from loss_balancers.spec.by_derivatives import ByDerivatives
from loss_balancers.spec.by_factors import ByFactors
from loss_balancers.spec.call import Call
from loss_balancers.spec.golden.sequences import Form, sequence_vectors
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.ops import Value
from loss_balancers.spec.state import ReferenceState, StateEntry, base_entries


@dataclass(frozen=True)
class CappedLossBalancerSettings(ByFactors):
    """A loss above the last one counts for ``low``, every other for 1."""

    low: float = 0.25

    balancer: ClassVar[str] = "CappedLossBalancer"
    names: ClassVar[tuple[str, ...]] = EXAMPLE_NAMES

    def exact_factors(self, state: ReferenceState, call: Call) -> list[Value]:
        """The factors of a call."""
        del state
        ops, losses = call.ops, call.means("f32")
        return [ops.choose(ops.above(x, losses[-1]), self.low, 1.0) for x in losses]

    @classmethod
    def examples(cls) -> dict[str, CappedLossBalancerSettings]:
        """With the default."""
        return {"capped": cls()}


@dataclass(frozen=True)
class ProductLossBalancerSettings(ByDerivatives):
    """The product of the losses, in canonical order."""

    balancer: ClassVar[str] = "ProductLossBalancer"
    names: ClassVar[tuple[str, ...]] = EXAMPLE_NAMES

    def exact_aggregate(self, call: Call, cotangent: Value, state: ReferenceState) -> tuple[Value, list[Value]]:
        """The aggregate and the gradient to each loss."""
        del state
        ops, (a, b, c) = call.ops, call.values
        first = ops.rmul(a, b, "f32")
        to_first, to_c = ops.rmul_gradient(cotangent, first, c, "f32")
        to_a, to_b = ops.rmul_gradient(to_first, a, b, "f32")
        gradients = [g if there else 0.0 for g, there in zip((to_a, to_b, to_c), call.present, strict=True)]
        return ops.rmul(first, c, "f32"), gradients

    @classmethod
    def examples(cls) -> dict[str, ProductLossBalancerSettings]:
        """The one there is."""
        return {"product": cls()}


@dataclass(frozen=True)
class CountedProductLossBalancerSettings(ProductLossBalancerSettings):
    """The same of a balancer that keeps counters."""

    balancer: ClassVar[str] = "CountedProductLossBalancer"

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """Its counters."""
        return base_entries(0)

    @classmethod
    def examples(cls) -> dict[str, ProductLossBalancerSettings]:
        """The one there is."""
        return {"counted-product": cls()}


class TorchCapped(loss_balancers.torch.weighed.WeighedLossBalancer):
    _scalars = True

    def __init__(self, low: float = 0.25) -> None:
        super().__init__(CappedLossBalancerSettings(low))
        self._low = low

    def _factors(self, state: Any, inputs: loss_balancers.torch.observing.Inputs) -> Tensor:
        losses = inputs.losses
        return torch.where(losses > losses[-1], self._low, torch.ones_like(losses))


class JaxCapped(loss_balancers.jax.weighed.WeighedLossBalancer):
    _scalars = True

    def __init__(self, low: float = 0.25) -> None:
        super().__init__(CappedLossBalancerSettings(low))
        self._low = low

    def _factors(self, state: Any, inputs: loss_balancers.jax.observing.Inputs) -> Array:
        losses = inputs.losses
        return jnp.where(losses > losses[-1], self._low, jnp.ones_like(losses))


class TorchProduct(loss_balancers.torch.weighed.WeighedLossBalancer):
    _scalars = True

    def __init__(self) -> None:
        super().__init__(ProductLossBalancerSettings())

    def _aggregate(self, state: Any, inputs: loss_balancers.torch.observing.Inputs) -> Tensor:
        a, b, c = inputs.terms
        rmul = loss_balancers.torch.portable.rmul
        return rmul(rmul(a, b), c)


class JaxProduct(loss_balancers.jax.weighed.WeighedLossBalancer):
    _scalars = True

    def __init__(self) -> None:
        super().__init__(ProductLossBalancerSettings())

    def _aggregate(self, state: Any, inputs: loss_balancers.jax.observing.Inputs) -> Array:
        a, b, c = inputs.terms
        rmul = loss_balancers.jax.portable.rmul
        return rmul(rmul(a, b), c)


class TorchCountedProduct(loss_balancers.torch.stateful.StatefulLossBalancer):
    _scalars = True
    _aggregate = TorchProduct._aggregate

    def __init__(self) -> None:
        super().__init__(CountedProductLossBalancerSettings(), None, None)


class JaxCountedProduct(loss_balancers.jax.stateful.StatefulLossBalancer):
    _scalars = True
    _aggregate = JaxProduct._aggregate

    def __init__(self) -> None:
        super().__init__(CountedProductLossBalancerSettings(), None, None)


#: From the settings class to its twins.
TRIALS: dict[Any, tuple[type, type]] = {
    CappedLossBalancerSettings: (TorchCapped, JaxCapped),
    ProductLossBalancerSettings: (TorchProduct, JaxProduct),
    CountedProductLossBalancerSettings: (TorchCountedProduct, JaxCountedProduct),
}


def register(patch: pytest.MonkeyPatch) -> None:
    """Puts them into the registry and beside the twins of all others, as long as ``patch`` holds."""
    for settings, (of_torch, of_jax) in TRIALS.items():
        patch.setitem(registry.SETTINGS, settings.balancer, settings)
        patch.setattr(loss_balancers.torch, settings.balancer, of_torch, raising=False)
        patch.setattr(loss_balancers.jax, settings.balancer, of_jax, raising=False)


def vectors(settings: Any) -> list[Group]:
    """Golden vectors in float32 of the one example, as the reference answers them."""
    (example,) = settings.examples().values()
    data = json.loads(sequence_vectors([Form("trial", example, example.names, ["f32"])], seed=29))
    return [golden._group(data["balancer"], group) for group in data["groups"]]
