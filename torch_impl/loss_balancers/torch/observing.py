"""How state takes in the losses of calls: pure functions, state in, state out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.functional import pad, threshold

from loss_balancers import spec
from loss_balancers.torch.amounts import on_device, presence, validity, without_absent
from loss_balancers.torch.portable import div_of_kept, rmul_of_kept
from loss_balancers.torch.rounding import FLOAT, TINY, all_finite, beside, chosen, keep, kept, narrow, stacked

State = dict[str, Tensor]


class Inputs(NamedTuple):
    """The losses of a call in canonical order, in three forms: for the aggregate, for the weights, and for state.

    ``losses`` (for the weights) and ``sums`` (for state) are float32 vectors, empty if neither sees them. ``amounts`` are
    counts, or shares if ``shares`` is set; None if each is 1. ``present`` is None if no loss is absent. ``valid`` is None if the
    amounts were checked already.
    """

    names: tuple[str, ...]
    terms: list[Tensor]
    dtypes: tuple[torch.dtype, ...]
    losses: Tensor
    sums: Tensor
    amounts: Tensor | None = None
    present: Tensor | None = None
    valid: Tensor | None = None
    shares: bool = False

    def masked(self, vector: Tensor) -> Tensor:
        """``vector``, which has a number per loss, with 0 for an absent one."""
        return vector if self.present is None else torch.where(self.present, vector, 0.0)


def without_losses(names: tuple[str, ...]) -> Inputs:
    """The inputs of factors that are made of committed state alone."""
    nothing = torch.empty(0, dtype=FLOAT)
    return Inputs(names, [], (), nothing, nothing)


def as_observed(terms: Sequence[Tensor]) -> Tensor:
    """The losses as state sees them: a float32 vector, detached, rounded and flushed (spec T2)."""
    detached = [x.detach() for x in terms]
    return keep(stacked([narrow(x, FLOAT) if x.dtype == torch.float64 else x for x in detached], FLOAT))


def with_amounts(inputs: Inputs, amounts: spec.Amounts) -> Inputs:
    """Inputs whose losses stand for these amounts (spec T3)."""
    names, terms, dtypes, losses, *_ = inputs
    vector = on_device(amounts, terms[0].device)
    present = presence(amounts, vector)
    if present is not None:
        terms = without_absent(terms, present)
        losses = torch.where(present, losses, 0.0) if len(losses) else losses
    sums = losses
    if len(losses) and amounts.shares:
        losses = div_of_kept(losses, vector if present is None else torch.where(present, vector, 1.0))
    elif len(losses):
        sums = rmul_of_kept(losses, vector)
    return Inputs(names, terms, dtypes, losses, sums, vector, present, validity(amounts, vector), amounts.shares)


def observed(pending: Tensor, inputs: Inputs, out: Tensor | None = None, after: bool = False) -> Tensor:
    """``pending`` with a call added; if a sum would not be finite, the call is counted as left out instead (spec T3).

    With ``out``, the last operation writes there, and no other writes anything. ``after`` says that it is an `update()`, whose sums
    are the second half, and which is no call more (spec Q4).
    """
    sums, amounts = inputs.sums, inputs.amounts
    size, count = pending.shape[0], sums.shape[0]  # `len` of a tensor takes as long as a kernel
    others = size // 2 - 1 - count
    if others and not is_dynamo_compiling():
        taken = pending + one_half(sums, amounts, others, after)
    else:
        if others:
            around = (others, 0) if after else (0, others)
            sums, amounts = (pad(half, around) for half in (sums, torch.ones_like(sums) if amounts is None else amounts))
        counted = sums if amounts is None or not count else torch.cat([sums, amounts])
        taken = pending + (pad(counted, (0, 2)) if after else then_ones_and_zero(counted, size - 1 - counted.shape[0]))
    if not count and inputs.valid is None:  # the counters alone are always finite
        return torch.hardshrink(taken, TINY[FLOAT]) if out is None else torch.hardshrink(taken, TINY[FLOAT], out=out)
    taken = keep(taken)
    informative = all_finite(taken)
    if inputs.valid is not None:
        informative = informative & inputs.valid
    left_out = one_more_at_the_end(pending)
    return torch.where(informative, taken, left_out) if out is None else torch.where(informative, taken, left_out, out=out)


def one_half(sums: Tensor, amounts: Tensor | None, others: int, after: bool) -> Tensor:
    """What a forward adds where `update()` adds the other half, or, if it is ``after``, the reverse."""
    zeros, ones = (kept(((x, count),), sums.device) for x, count in ((0.0, others), (1.0, sums.shape[0])))
    amounts = ones if amounts is None else amounts
    halves = (zeros, sums, zeros, amounts) if after else (sums, zeros, amounts, zeros)
    return torch.cat([*halves, kept(((0.0 if after else 1.0, 1), (0.0, 1)), sums.device)])


def then_ones_and_zero(vector: Tensor, ones: int) -> Tensor:
    """``vector``, then so many ones, and a zero."""
    if is_dynamo_compiling():
        return pad(pad(vector, (0, ones), value=1.0), (0, 1))
    rest = kept(((1.0, ones), (0.0, 1)), vector.device)
    return torch.cat([vector, rest]) if vector.shape[0] else rest


def one_more_at_the_end(vector: Tensor) -> Tensor:
    """``vector`` with 1 added to its last element."""
    if is_dynamo_compiling():  # not `pad` of zeros: Inductor of PyTorch 2.11 makes C++ of it that does not compile
        return torch.cat([vector[:-1] + 0.0, vector[-1:] + 1.0])
    return vector + kept(((0.0, vector.shape[0] - 1), (1.0, 1)), vector.device)


def pending_mean(pending: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each observed loss, and whether it is valid: something was observed, and all is finite (spec T4)."""
    losses, calls = pending[:-2], pending[-2]
    sums, amounts = losses.chunk(2)
    present = (amounts > beside(0.0, amounts)) & (all_finite(losses) & (calls < beside(spec.MOST_CALLS, calls)))
    return chosen(present, div_of_kept(sums, amounts), 0.0), present


def advanced(state: State, pending: Tensor) -> State:
    """The counters after a commit of ``pending``, the sums cleared (spec T4)."""
    steps, skipped, calls, left_out = state["steps"], state["skipped"], pending[-2], pending[-1]
    left_out = left_out + threshold(calls, spec.MOST_CALLS - 1.0, 0.0)  # whole numbers: the calls, if they are too many to count
    more = left_out.clamp(max=spec.MOST_LEFT_OUT).to(torch.int32)
    return {
        "steps": steps.clamp(max=spec.MOST_STEPS - 1) + beside(1, steps),
        "skipped": skipped + torch.minimum(more, beside(spec.MOST_STEPS, skipped) - skipped),
        "pending": torch.zeros_like(pending),  # not one that is kept: who carries the state may write to it
    }


def look_up(table: Tensor, step: Tensor) -> Tensor:
    """The row of a step; from the table's end on, the last row."""
    if table.shape[0] == 1 and not is_dynamo_compiling():
        return table[0].clone()  # not a view: what `weights()` returns may be written to
    return table.index_select(0, step.clamp(max=len(table) - 1).reshape(1)).squeeze(0)


def expanded(factors: Tensor, count: int) -> Tensor:
    """A factor for each of ``count`` losses: the leading ones share the first."""
    shared = count - len(factors)
    return torch.cat([factors[:1].expand(shared), factors]) if shared else factors
