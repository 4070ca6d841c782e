"""Every balancer, in order: the one list from which all others derive.

Tables of settings, golden files, lanes, drawn runs, tests and documents ask here. The twins' ``__init__`` and the tables of the
documents are written out, and tests hold them to this list.
"""

from __future__ import annotations

import re
from typing import Any

from loss_balancers.spec.dwa import DWALossBalancerSettings
from loss_balancers.spec.ema_normalized import EMANormalizedLossBalancerSettings
from loss_balancers.spec.famo import FAMOLossBalancerSettings
from loss_balancers.spec.geometric import GeometricLossBalancerSettings
from loss_balancers.spec.imtl import IMTLLossBalancerSettings
from loss_balancers.spec.logits_and_intermediates import LogitsAndIntermediatesLossBalancerSettings
from loss_balancers.spec.random import RandomLossBalancerSettings
from loss_balancers.spec.relobralo import ReLoBRaLoLossBalancerSettings
from loss_balancers.spec.scheduled import ScheduledLossBalancerSettings, WeightedSumLossBalancerSettings
from loss_balancers.spec.settings import Settings
from loss_balancers.spec.soft_adapt import SoftAdaptLossBalancerSettings
from loss_balancers.spec.state import base_entries
from loss_balancers.spec.static import StaticLossBalancerSettings
from loss_balancers.spec.stch import STCHLossBalancerSettings
from loss_balancers.spec.uncertainty import UncertaintyLossBalancerSettings

#: From the name of a balancer's class to its settings class.
SETTINGS: dict[str, Any] = {
    settings.balancer: settings
    for settings in (
        StaticLossBalancerSettings,
        ScheduledLossBalancerSettings,
        WeightedSumLossBalancerSettings,
        EMANormalizedLossBalancerSettings,
        LogitsAndIntermediatesLossBalancerSettings,
        DWALossBalancerSettings,
        SoftAdaptLossBalancerSettings,
        GeometricLossBalancerSettings,
        STCHLossBalancerSettings,
        RandomLossBalancerSettings,
        ReLoBRaLoLossBalancerSettings,
        UncertaintyLossBalancerSettings,
        IMTLLossBalancerSettings,
        FAMOLossBalancerSettings,
    )
}


#: What the files of a balancer are called whose capitals do not begin words.
_ONE_WORD = {"ReLoBRaLoLossBalancer": "relobralo"}


def stem(balancer: str) -> str:
    """What the balancer's files are called: ``ema_normalized`` of ``EMANormalizedLossBalancer``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", balancer.removesuffix("LossBalancer")).lower()
    return _ONE_WORD.get(balancer, words)


def make(settings: Settings, framework: Any, **more: Any) -> Any:
    """A new balancer of these settings, in `loss_balancers.torch` or `loss_balancers.jax`. ``more`` are arguments beside them."""
    return getattr(framework, settings.balancer)(**settings.arguments(), **more)


def examples() -> dict[str, Any]:
    """The examples of every balancer, by id: settings for losses named `EXAMPLE_NAMES`."""
    return {name: example for settings in SETTINGS.values() for name, example in settings.examples().items()}


def observes(settings: Any) -> bool:
    """Whether the balancer keeps more than counters, so that the losses of earlier steps matter."""
    return len(settings.state) > len(base_entries(0))
