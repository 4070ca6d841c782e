"""The modes of PyTorch's lanes: eager, compiled, under `torch.func.vmap`, and inside a compiled training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import loss_balancers.torch
from loss_balancers.parity.bits import array_bits
from loss_balancers.parity.lanes import Result
from loss_balancers.spec import FORMATS, Group

DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in FORMATS.items()}

Losses = dict[str, Tensor]
#: From the losses of all groups to their aggregates.
Aggregates = Callable[[list[Losses]], list[Tensor]]


def run_mode(device: str, mode: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    """Runs groups in a mode, on a device as PyTorch calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
        results = list(MODES[mode](device, groups))
    yield from results


def _aggregates(groups: Sequence[Group]) -> Aggregates:
    balancers = [getattr(loss_balancers.torch, group.balancer)(**group.settings) for group in groups]
    # All groups in one function, so that the compiled modes have one graph: a compilation each would take minutes.
    return lambda batch: [balancer(losses) for balancer, losses in zip(balancers, batch, strict=True)]


def _compile(fn: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamo counts compilations by the code of a function, which all columns share, and gives up after a few.
    torch.compiler.reset()
    # No graph break: what is between two graphs would run eager.
    return torch.compile(fn, fullgraph=True, dynamic=False)


def _batch(groups: Sequence[Group], index: int, device: str) -> tuple[list[Losses], list[Tensor]]:
    """Losses and cotangents of one vector of each group."""
    losses = [
        {
            name: torch.tensor(value, dtype=DTYPES[group.formats[name]], device=device)
            for name, value in group.vectors[index].losses.items()
        }
        for group in groups
    ]
    return losses, [torch.tensor(g.vectors[index].cotangent, dtype=DTYPES[g.result], device=device) for g in groups]


def _results(outputs: Sequence[Tensor], gradients: Sequence[Losses]) -> list[Result]:
    return [
        Result(_bits(output), {name: _bits(g) for name, g in losses.items()})
        for output, losses in zip(outputs, gradients, strict=True)
    ]


def _bits(x: Tensor) -> tuple[str, int]:
    fmt = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
    return fmt, int(array_bits(x))


def _eager(device: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(_aggregates(groups), device, groups)


def _compiled(device: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    return _each(_compile(_aggregates(groups)), device, groups)


def _each(aggregates: Aggregates, device: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    for index in range(len(groups[0].vectors)):
        batch, cotangents = _batch(groups, index, device)
        leaves = [x.requires_grad_() for losses in batch for x in losses.values()]
        outputs = aggregates(batch)
        gradients = iter(torch.autograd.grad(outputs, leaves, cotangents))
        yield _results(outputs, [{name: next(gradients) for name in losses} for losses in batch])


def _vmap(device: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    """All vectors at once: value and gradient of one, under `torch.func.vmap`."""
    aggregates = _aggregates(groups)

    def step(batch: list[Losses], cotangents: list[Tensor]) -> tuple[list[Tensor], list[Losses]]:
        outputs, pullback, *_ = torch.func.vjp(aggregates, batch)
        return outputs, pullback(cotangents)[0]

    count = len(groups[0].vectors)
    batches, cotangents = zip(*(_batch(groups, index, device) for index in range(count)), strict=True)
    stacked = [{name: torch.stack([x[name] for x in rows]) for name in rows[0]} for rows in zip(*batches, strict=True)]
    outputs, gradients = torch.func.vmap(step)(stacked, [torch.stack(rows) for rows in zip(*cotangents, strict=True)])
    for index in range(count):
        yield _results([o[index] for o in outputs], [{name: g[index] for name, g in losses.items()} for losses in gradients])


def _step(device: str, groups: Sequence[Group]) -> Iterator[list[Result]]:
    """A training step in one graph: losses from parameters, the aggregate used further, its gradient, and the update by it."""
    aggregates = _aggregates(groups)
    dtypes = [{name: DTYPES[fmt] for name, fmt in group.formats.items()} for group in groups]

    def step(parameters: list[Tensor], cotangents: list[Tensor], one: Tensor, rate: Tensor) -> Any:
        def objective(parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            # Arithmetic in the wide format, then the conversion that Inductor elides.
            batch = [
                {name: x.to(dtype) for (name, dtype), x in zip(narrow.items(), (p * one.to(p.dtype)).unbind(), strict=True)}
                for narrow, p in zip(dtypes, parameters, strict=True)
            ]
            outputs = [o.to(p.dtype) for o, p in zip(aggregates(batch), parameters, strict=True)]
            # Each aggregate gets its cotangent; the sum itself is nobody's business.
            terms = [(o * ct.to(o.dtype)).to(torch.float32) for o, ct in zip(outputs, cotangents, strict=True)]
            return torch.stack(terms).sum(), outputs

        gradients, outputs = torch.func.grad(objective, has_aux=True)(parameters)
        return outputs, gradients, [p - rate.to(p.dtype) * g for p, g in zip(parameters, gradients, strict=True)]

    compiled = _compile(step)
    one, rate = torch.tensor(1.0, device=device), torch.tensor(0.125, device=device)
    for index in range(len(groups[0].vectors)):
        batch, cotangents = _batch(groups, index, device)
        # A vector of all losses of a group: a scalar each would make the compiler work three times as long.
        parameters = [
            torch.stack([losses[name].to(_wide(narrow.values())) for name in narrow])
            for losses, narrow in zip(batch, dtypes, strict=True)
        ]
        outputs, gradients, _ = compiled(parameters, cotangents, one, rate)
        yield _results(
            [_narrowed(o, ct.dtype) for o, ct in zip(outputs, cotangents, strict=True)],
            [
                {name: _narrowed(x, dtype) for (name, dtype), x in zip(narrow.items(), g, strict=True)}
                for narrow, g in zip(dtypes, gradients, strict=True)
            ],
        )


def _wide(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in its own format if that holds it, else as it is, which will then count as a difference."""
    narrow = x.to(dtype)
    exact = bool(x.isnan()) or bool(narrow.to(x.dtype) == x)
    return narrow if exact else x


MODES: dict[str, Callable[[str, Sequence[Group]], Iterator[list[Result]]]] = {
    "eager": _eager,
    "compiled": _compiled,
    "vmap": _vmap,
    "step": _step,
}
#: Those that need `torch.compile`.
COMPILED = ("compiled", "step")
