"""`FAMOLossBalancer`: weights by which all losses fall at the same relative speed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from loss_balancers.jax.amounts import chosen
from loss_balancers.jax.carried import BalancerState, Forwards
from loss_balancers.jax.functions import entered, finished, summed
from loss_balancers.jax.observing import Inputs, State
from loss_balancers.jax.portable import div_of_kept, flushed, log, rmul, rmul_of_kept, softmax, sqrt
from loss_balancers.jax.rounding import FLOAT, keep
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import errors
from loss_balancers.spec.famo import FAMOLossBalancerSettings
from loss_balancers.spec.formats import PATIENCE


@partial(jax.jit, static_argnums=3, inline=True)
def gradient_of(logits: Array, levels: Array, known: Array, weight_decay: float) -> Array:
    """The gradient by each logit of a loss that is known, of the levels before and after (spec Q4)."""
    before, after = log(jnp.where(known, levels, 1.0))
    fall = before - after
    shares = softmax(chosen(known, logits, -jnp.inf))
    return keep(rmul(shares, fall - summed(fall, shares)) + keep(logits * FLOAT.type(weight_decay)))


@partial(jax.jit, static_argnums=(5, 6), inline=True)
def moved(state: State, gradient: Array, known: Array, decays: Array, rests: Array, lr: float, adam_eps: float) -> State:
    """The logits after a step of Adam, and what it keeps; as they were for a loss that is not known (spec Q5)."""
    twice = jnp.tile(known, 2)
    squares = rmul_of_kept(gradient, gradient)
    moments = keep(keep(state["moments"] * decays) + rmul_of_kept(jnp.concatenate([gradient, squares]), rests))
    # Not a constant beside `keep`, of which a compiler would make one operation with the product (`EMANormalizedLossBalancer`).
    corrections = keep(state["corrections"] * decays) + chosen(twice, rests, 0.0)
    mean, square = jnp.split(div_of_kept(moments, chosen(twice, corrections, 1.0)), 2)
    logits = keep(state["logits"] - keep(div_of_kept(mean, sqrt(square) + FLOAT.type(adam_eps)) * FLOAT.type(lr)))
    return {
        "logits": jnp.where(known, logits, state["logits"]),
        "moments": jnp.where(twice, moments, state["moments"]),
        "corrections": jnp.where(twice, corrections, state["corrections"]),
    }


@partial(jax.jit, static_argnums=3, inline=True)
def committed(state: State, mean: Array, present: Array, settings: Any) -> State:
    """The state after the commit of the means before the optimizer's step, and of those after it (spec Q4, Q5)."""
    lr, weight_decay, adam_eps = settings.rates
    excesses = mean.reshape(2, -1)
    if any(settings.floors):
        excesses = keep(excesses - jnp.asarray(settings.floors, FLOAT))
    levels = excesses + FLOAT.type(settings.offset)
    known = present.reshape(2, -1) & (excesses > 0) & jnp.isfinite(levels)
    known = known.all(0) & (state["pending"][-1] == 0)
    gradient = gradient_of(state["logits"], levels, known, weight_decay)
    decays, rests = jnp.asarray(settings.decays, FLOAT), jnp.asarray(settings.rests, FLOAT)
    return moved(state, gradient, known, decays, rests, lr, adam_eps)


# Jitted, so that an eager call is one dispatch; inlined into the graph of a caller that is jitted itself.
@partial(jax.jit, static_argnums=(0, 1), inline=True)
def aggregate_of(
    settings: Any,
    dtypes: tuple[Any, ...],
    terms: Sequence[Array],
    present: Array | None,
    parts: Array | None,
    logits: Array,
) -> Array:
    """The aggregate; ``parts`` are the shares that the losses are, if they are (spec Q2, Q3)."""
    losses = entered(terms, dtypes, present)
    shares = softmax(logits)
    shares = shares if present is None else chosen(present, shares, 0.0)
    levels = flushed(losses)
    if any(settings.floors):
        floors = jnp.asarray(settings.floors, FLOAT)
        floors = floors if parts is None else rmul_of_kept(floors, parts)
        levels = levels - floors
        levels = flushed(levels)
    levels = levels + FLOAT.type(settings.offset)
    levels = levels if present is None else chosen(present, levels, 1.0)
    valid = lax.stop_gradient(levels)
    norm = summed(div_of_kept(shares, chosen(valid > 0, valid, jnp.nan)))
    norm = norm if present is None else chosen(present.any(), norm, 1.0)
    factors = div_of_kept(shares, jnp.broadcast_to(norm, shares.shape))
    return finished(summed(log(levels), factors), settings.factor, dtypes, present)


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
        axis_name: The axis of a `shard_map` over which `step()` adds. None, the default: outside of a `shard_map`.

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
        >>> import jax.numpy as jnp
        >>> from loss_balancers.jax import FAMOLossBalancer
        >>> balancer = FAMOLossBalancer(("student_loss", "MSELoss_0"), lr=0.5)
        >>> for student_loss in (4.0, 2.0, 1.0):  # it halves at each step, and the other stays
        ...     losses = {"student_loss": jnp.float32(student_loss), "MSELoss_0": jnp.float32(2.0)}
        ...     aggregate = balancer(losses)  # then backward, and the optimizer's step
        ...     balancer.update({"student_loss": jnp.float32(student_loss / 2), "MSELoss_0": jnp.float32(2.0)})
        ...     balancer.step()
        >>> {name: round(x.item(), 3) for name, x in zip(balancer.names, balancer.logits[...])}
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

    logits: BalancerState
    moments: BalancerState
    corrections: BalancerState

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
        axis_name: Any = None,
    ) -> None:
        settings = FAMOLossBalancerSettings(names, lr, weight_decay, min_losses, eps, total_weight)
        super().__init__(settings, auto_step, axis_name)
        self._forwards_alone = Forwards()

    def update(self, loss: Mapping[str, Any], *, count: Any = None, share: Any = None) -> None:
        """Observes the losses after the optimizer's step: call it before `step()`, with the student's new losses on the same batch.

        With several micro-batches, once for each: the losses before and after must be of the same items, which nothing checks. It
        works in eval mode too, so that the second forward need not change batch statistics or drop units at random. ``count``,
        ``share`` and what it raises: as `__call__`.
        """
        self._observe(self._inputs(loss, count, share), stacklevel=3, after=True)

    def step(self) -> None:
        """Commits what was observed since the last call: once per optimizer step, after `update()`; warns if none ever came."""
        super().step()
        self._warn_if_never_updated(stacklevel=3)

    def _observe(self, inputs: Inputs, stacklevel: int, after: bool = False) -> None:
        super()._observe(inputs, stacklevel + 1, after)
        if after:
            self._forwards_alone.count = -1
        elif self._forwards_alone.count >= 0:
            self._forwards_alone.count += 1

    def _committed(self, state: State, mean: Array, present: Array) -> State:
        return committed(state, mean, present, self._settings)

    def _warn_if_never_updated(self, stacklevel: int) -> None:
        if self._forwards_alone.count >= PATIENCE:
            warnings.warn(errors.never_updated(self._forwards_alone.count), UserWarning, stacklevel=stacklevel)
            self._forwards_alone.count = -1

    def _aggregate(self, state: State, inputs: Inputs) -> Array:
        parts = inputs.amounts if inputs.shares else None
        return aggregate_of(self._settings, inputs.dtypes, inputs.terms, inputs.present, parts, state["logits"])
