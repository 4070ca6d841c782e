"""`STCHLossBalancer`: a smooth maximum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loss_balancers.spec.stch import STCHLossBalancerSettings
from loss_balancers.torch.functional import sum_terms
from loss_balancers.torch.functions import entered, finished, summed
from loss_balancers.torch.host import as_text, number, numbers, runs
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import exp, flushed, log, rmul
from loss_balancers.torch.rounding import FLOAT, vector_of
from loss_balancers.torch.weighed import WeighedLossBalancer


class STCHLossBalancer(WeighedLossBalancer):
    """A smooth maximum of the weighted losses: the loss that is worst counts most, so that none is left behind.

    ``aggregate = mu * log(sum(exp(y_k / mu)))``, ``y_k = weights_k * (L_k - reference_k)``, or with ``form="log"``
    ``y_k = weights_k * (log(L_k) - log(reference_k))``, which depends on no scale. It is at least the greatest ``y_k``, and at most
    ``mu * log(K)`` above. Its derivative by ``y_k`` is ``softmax(y / mu)_k``.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        mu: How smooth the maximum is, above 0, in units of ``y``. The smaller it is, the more does the worst loss count alone.
            Default 1.0.
        weights: Name to weight, a number of at least 0, the paper's lambda. Default: 1 / K for each, and for each that is not
            named.
        reference: Name to reference: the value that counts as reached, the paper's ideal point z. Default: 0 for each, and for
            each that is not named. With ``form="log"``: the scale of the loss, above 0; default 1.
        form: "linear", the default, or "log".
        total_weight: What the derivatives sum to for equal ``y`` and default weights: "paper", the default, is 1 / K, "K" is K,
            "one" is 1. With ``form="log"``, for losses of 1.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32 and mixtures; the aggregate has their common type. What is between is float32.

    State:
        None.

    Raises:
        TypeError: An argument is of the wrong type. At a call: a loss is float64. Else: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import STCHLossBalancer
        >>> balancer = STCHLossBalancer(("student_loss", "MSELoss_0"), mu=0.1, total_weight="one")
        >>> losses = {"student_loss": torch.tensor(2.0), "MSELoss_0": torch.tensor(1.8)}
        >>> {name: round(weight.item(), 3) for name, weight in balancer.weights(losses).items()}
        {'MSELoss_0': 0.269, 'student_loss': 0.731}

    Reference:
        Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, arXiv:2402.19078.

    Deviations:
        ``form="log"`` is LibMTL's method without its warm-up and its state: give as ``reference`` what LibMTL measures in the
        warm-up. With m for LibMTL's mu and K losses, ``mu=m / K`` and ``total_weight="K"`` give its gradients; LibMTL's value
        leaves the greatest ``y_k`` out. An absent loss leaves the sum; the weights of the others stay as they are.
    """

    _scalars = True

    def __init__(
        self,
        names: Sequence[str],
        mu: float = 1.0,
        weights: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
        form: str = "linear",
        total_weight: str = "paper",
    ) -> None:
        settings = STCHLossBalancerSettings(names, mu, weights, reference, form, total_weight)
        super().__init__(settings)
        self._weights_as_text, self._smoothness = as_text(settings.rounded_weights), as_text(settings.smoothness)
        self._offsets = as_text(settings.offsets) if any(settings.offsets) else ""
        self._factor = settings.factor.hex()

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        del state
        losses, present = entered(inputs), inputs.present
        (mu, inverse), device = numbers(self._smoothness), losses.device
        levels = log(losses) if self._settings.form == "log" else losses
        if self._offsets:
            levels = flushed(levels)
            levels = levels - vector_of(runs(self._offsets), device)
        weighted = rmul(levels, vector_of(runs(self._weights_as_text), device))
        if present is not None:  # where all are absent, all count: a logarithm of 0 would give NaNs that no result has
            weighted = torch.where(present | ~present.any(), weighted, -torch.inf)
        most = weighted.detach().amax()
        exponents = weighted - most
        if inverse != 1.0:
            exponents = rmul(exponents, torch.full_like(exponents, inverse))
        smooth = sum_terms([log(summed(exp(exponents))), most], (FLOAT, FLOAT), (mu, 1.0), FLOAT)
        return finished(smooth, number(self._factor), inputs)
