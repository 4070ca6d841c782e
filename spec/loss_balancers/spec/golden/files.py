"""Which files of golden vectors there are, and what writes each."""

from __future__ import annotations

from collections.abc import Callable

from loss_balancers.spec.golden.ema_normalized import ema_normalized_vectors
from loss_balancers.spec.golden.logits_and_intermediates import logits_and_intermediates_vectors
from loss_balancers.spec.golden.scheduled import scheduled_vectors
from loss_balancers.spec.golden.static import static_vectors
from loss_balancers.spec.golden.weighted_sum import weighted_sum_vectors

#: By the name of the file, without its suffix: as the balancer's module is called.
FILES: dict[str, Callable[[], str]] = {
    "static": static_vectors,
    "scheduled": scheduled_vectors,
    "weighted_sum": weighted_sum_vectors,
    "ema_normalized": ema_normalized_vectors,
    "logits_and_intermediates": logits_and_intermediates_vectors,
}
