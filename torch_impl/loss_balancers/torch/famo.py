"""`FAMOLossBalancer`: weights by which all losses fall at the same relative speed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from loss_balancers.spec import errors
from loss_balancers.spec.famo import FAMOLossBalancerSettings
from loss_balancers.spec.formats import PATIENCE
from loss_balancers.torch.functions import entered, finished, summed
from loss_balancers.torch.host import as_text, number, numbers, runs
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import div_of_kept, flushed, log, rmul, rmul_of_kept, softmax, sqrt
from loss_balancers.torch.recomputation import recomputing, saved_for_backward
from loss_balancers.torch.rounding import beside, chosen, compiling, finite, keep, vector_of
from loss_balancers.torch.stateful import StatefulLossBalancer


def gradient_of(logits: Tensor, levels: Tensor, known: Tensor, weight_decay: float) -> Tensor:
    """The gradient by each logit of a loss that is known, of the levels before and after (spec Q4)."""
    # Not `chosen`: under the stance "eager_then_compile" PyTorch (2.13) compiles it by itself, and fails where it meets two ranks.
    before, after = log(torch.where(known, levels, beside(1.0, levels)))
    fall = before - after
    shares = softmax(chosen(known, logits, -torch.inf))
    return keep(rmul(shares, fall - summed(fall, shares)) + keep(logits * beside(weight_decay, logits)))


def moved(state: State, gradient: Tensor, known: Tensor, decays: Tensor, rests: Tensor, lr: float, adam_eps: float) -> State:
    """The logits after a step of Adam, and what it keeps; as they were for a loss that is not known (spec Q5)."""
    twice = torch.cat([known, known])
    moments = keep(keep(state["moments"] * decays) + rmul_of_kept(torch.cat([gradient, rmul_of_kept(gradient, gradient)]), rests))
    # Not a constant beside `keep`, of which a compiler would make one operation with the product (`EMANormalizedLossBalancer`).
    corrections = keep(state["corrections"] * decays) + (torch.where(twice, rests, 0.0) if compiling() else rests)
    mean, square = div_of_kept(moments, chosen(twice, corrections, 1.0)).chunk(2)
    step = div_of_kept(mean, sqrt(square) + beside(adam_eps, square))
    logits = keep(state["logits"] - keep(step * beside(lr, step)))
    return {
        "logits": torch.where(known, logits, state["logits"]),
        "moments": torch.where(twice, moments, state["moments"]),
        "corrections": torch.where(twice, corrections, state["corrections"]),
    }


class FAMOLossBalancer(StatefulLossBalancer):
    """Gives the losses such weights that all of them fall at the same relative speed (fast adaptive multitask optimization).

    Made for multi-task learning whose gradients conflict. What it needs is one more forward of the student in each optimizer step:
    after the optimizer's step, evaluate the same batch again and give the losses to `update()`; then call `step()`. Without
    `update()` the weights stay as they are.

    With ``D_k = L_k - min_losses_k + eps``, and the constants ``z = softmax(w)`` and ``n = sum(z_k / D_k)``: aggregate =
    ``sum(z_k / n * log(D_k))``. Its derivatives by the losses, ``z_k / (n * D_k)``, sum to 1. `step()` moves ``w`` by Adam. The
    gradient is ``z_k * (d_k - sum(z_j * d_j)) + weight_decay * w_k``; ``d_k`` is ``log(D_k)`` before the optimizer's step less
    that after it: a loss that fell faster than the others gets less.

    The aggregate is no measure of success: it is below 0 where losses are below 1, and it can rise while all losses fall. Do not
    give it to a scheduler that waits for a plateau, nor to early stopping: give them the losses themselves.

    Args:
        names: The names of the losses, fixed; ``student_loss`` among them if there is one.
        lr: The learning rate of ``w``, in [0, 1]: how far ``w`` moves in a step, nearly. Default 0.025, as the paper has it.
        weight_decay: The paper's gamma, in [0, 1]: how strongly ``w`` is drawn back to equal weights. Default 1e-3, as TorchJD and
            LibMTL have it.
        min_losses: Name to the least value that the loss can take, the paper's b. Default: 0 for each, and for each that is not
            named. A loss must stay above it.
        eps: Added to each loss over its least value, at least 0. Default 1e-8.
        total_weight: What the derivatives sum to: "paper", the default, and "one" are 1, "K" is the number of losses.
        auto_step: Commit by itself after this many training forwards, for loops that never call `step()`. Default None.
        process_group: The ranks over which `step()` adds. None, the default: the default group, if there is one. False: no ranks.

    Shape:
        Scalars, ``()``; the aggregate too.

    Dtype:
        bfloat16, float16, float32 and mixtures; the aggregate has their common type. What is between, and state, is float32.

    State:
        ``steps``, ``skipped`` int32 ``()``; ``pending`` float32 ``(4 K + 2,)``: the sums of the forwards and those of `update()`,
        their amounts, and two counters; ``logits``, which is w, float32 ``(K,)``; ``moments`` and ``corrections`` float32
        ``(2 K,)``: Adam's mean of the gradients, then of their squares, and what these two divide by. All start at 0.

    Raises:
        TypeError: An argument is of the wrong type. At a call: a loss is float64. Else: see `canonical`.
        ValueError: A value is out of bounds, or a name is not in ``names``. At a call: other names, or losses that are not scalars.

    Example:
        >>> import torch
        >>> from loss_balancers.torch import FAMOLossBalancer
        >>> balancer = FAMOLossBalancer(("student_loss", "MSELoss_0"), lr=0.5)
        >>> for student_loss in (4.0, 2.0, 1.0):  # it halves at each step, and the other stays
        ...     losses = {"student_loss": torch.tensor(student_loss), "MSELoss_0": torch.tensor(2.0)}
        ...     aggregate = balancer(losses)  # then backward, and the optimizer's step
        ...     balancer.update({"student_loss": torch.tensor(student_loss / 2), "MSELoss_0": torch.tensor(2.0)})
        ...     balancer.step()
        >>> {name: round(x.item(), 3) for name, x in zip(balancer.names, balancer.logits)}
        {'MSELoss_0': 1.455, 'student_loss': -1.455}

    Reference:
        Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, arXiv:2306.03792, algorithm 1.

    Deviations:
        ``w`` follows the means that `step()` commits, so it does not depend on how batches are split. A loss that is absent, or
        whose mean before or after is not finite or not above ``min_losses``, has no part in a commit, and its ``w`` stays; the
        others share among themselves. If a call was left out, no ``w`` changes. A loss that is not above ``min_losses - eps`` makes
        the aggregate and all gradients NaN; the authors' code then gives finite gradients, some of which push a loss up. The bias
        of Adam is corrected by running means of 1, one for each loss. The authors' code also clips the gradients of the student.
    """

    _scalars = True

    logits: Tensor
    moments: Tensor
    corrections: Tensor

    def __init__(
        self,
        names: Sequence[str],
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: Mapping[str, float] | None = None,
        eps: float = 1e-8,
        total_weight: str = "paper",
        *,
        auto_step: int | None = None,
        process_group: Any = None,
    ) -> None:
        settings = FAMOLossBalancerSettings(names, lr, weight_decay, min_losses, eps, total_weight)
        super().__init__(settings, auto_step, process_group)
        self._forwards_alone = 0
        self._floors = as_text(settings.floors) if any(settings.floors) else ""
        self._rates, self._decays, self._rests = as_text(settings.rates), as_text(settings.decays), as_text(settings.rests)
        self._offset, self._factor = settings.offset.hex(), settings.factor.hex()

    def update(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses after the optimizer's step: call it before `step()`, with the student's new losses on the same batch.

        With several micro-batches, once for each: the losses before and after must be of the same items, which nothing checks. It
        works in eval mode too, so that the second forward need not change batch statistics or drop units at random. ``count``,
        ``share`` and what it raises: as `forward`.
        """
        self._observe(self._inputs(loss, count, share), stacklevel=3, after=True)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after `update()`; warns if none ever came."""
        super().step()
        self._warn_if_never_updated(stacklevel=3)

    def _observe(self, inputs: Inputs, stacklevel: int, after: bool = False) -> None:
        super()._observe(inputs, stacklevel + 1, after)
        if after:
            self._forwards_alone = -1
        elif not is_dynamo_compiling() and self._forwards_alone >= 0 and not recomputing():
            self._forwards_alone += 1

    def _committed(self, state: State, mean: Tensor, present: Tensor) -> State:
        (lr, weight_decay, adam_eps), device = numbers(self._rates), mean.device
        excesses = mean.unflatten(0, (2, -1))
        if self._floors:
            excesses = keep(excesses - vector_of(runs(self._floors), device))
        levels = excesses + beside(number(self._offset), excesses)
        known = present.unflatten(0, (2, -1)) & (excesses > beside(0.0, excesses)) & finite(levels)
        known = known.all(0) & (state["pending"][-1] == 0)
        gradient = gradient_of(state["logits"], levels, known, weight_decay)
        decays, rests = vector_of(runs(self._decays), device), vector_of(runs(self._rests), device)
        return moved(state, gradient, known, decays, rests, lr, adam_eps)

    def _warn_if_never_updated(self, stacklevel: int) -> None:
        if not is_dynamo_compiling() and self._forwards_alone >= PATIENCE:
            warnings.warn(errors.never_updated(self._forwards_alone), UserWarning, stacklevel=stacklevel)
            self._forwards_alone = -1

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        losses, present = entered(inputs), inputs.present
        # Made so that a backward takes them as they were: a graph may overwrite the logits in the meantime.
        shares = inputs.masked(saved_for_backward(softmax(state["logits"])))
        levels = flushed(losses)
        if self._floors:
            floors = vector_of(runs(self._floors), losses.device)
            floors = rmul_of_kept(floors, inputs.amounts) if inputs.shares and inputs.amounts is not None else floors
            levels = levels - floors
            levels = flushed(levels)
        levels = levels + beside(number(self._offset), levels)
        levels = levels if present is None else torch.where(present, levels, 1.0)
        valid = levels.detach()
        norm = summed(div_of_kept(shares, chosen(valid > beside(0.0, valid), valid, torch.nan)))
        norm = norm if present is None else torch.where(present.any(), norm, 1.0)
        factors = div_of_kept(shares, norm.expand_as(shares))
        return finished(summed(log(levels), factors), number(self._factor), inputs)
