"""The modes of PyTorch's lanes: eager, compiled, under `torch.func.vmap`, and inside a compiled training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import loss_balancers.torch
from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.golden.vectors import balancer_of, shape, state_bits
from loss_balancers.spec import FORMATS, Group

DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in FORMATS.items()}

Losses = dict[str, Tensor]
#: ``count`` or ``share``, by name of the loss, or neither.
Keywords = dict[str, Losses]
#: What `update()` is given, ``loss`` and keywords, of balancers that have it; else empty.
Update = dict[str, Losses]
Results = Iterator[list[Result]]


def run_in_torch(device: str, mode: str, groups: Sequence[Group]) -> Results:
    """Runs groups in a mode, on a device as PyTorch calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some vectors drop the student's weight on purpose
        results = list(MODES[mode](device, groups))
    yield from results


class Program:
    """The balancers of some groups. All in one function, so that the compiled modes have one graph: one each would take minutes."""

    def __init__(self, device: str, groups: Sequence[Group]) -> None:
        self.device, self.groups = device, groups
        self.balancers = [balancer_of(group, loss_balancers.torch).to(device) for group in groups]
        self.changing = [balancer for balancer in self.balancers if balancer._settings.state]
        #: The parameters of each balancer by name, and all of them.
        self.learned = [dict(balancer.named_parameters()) for balancer in self.balancers]
        self.parameters = [x for by_name in self.learned for x in by_name.values()]
        self._begin = [balancer.export_state() for balancer in self.changing]

    def begin(self) -> None:
        """Makes them as new."""
        for balancer, state in zip(self.changing, self._begin, strict=True):
            balancer.load_state(state)

    def forward(self, batch: list[Losses], keywords: list[Keywords]) -> tuple[list[Tensor], list[Losses]]:
        """Aggregates and weights. In training mode it observes the losses."""
        outputs = [balancer(losses, **more) for balancer, losses, more in zip(self.balancers, batch, keywords, strict=True)]
        return outputs, [_weights(*given) for given in zip(self.balancers, batch, keywords, strict=True)]

    def of_vectors(self, batch: list[Losses], keywords: list[Keywords]) -> tuple[list[Tensor], list[Losses]]:
        """The same of losses of shape (1,): where a float64 scalar enters a graph, Dynamo traces all of it twice."""
        return self.forward([{name: x.squeeze(0) for name, x in losses.items()} for losses in batch], keywords)

    def observe(self, batch: list[Losses], keywords: list[Keywords]) -> None:
        """What a forward in training mode observes."""
        for balancer, losses, more in zip(self.balancers, batch, keywords, strict=True):
            if balancer._settings.state:
                balancer.observe(losses, **more)

    def commit(self, updates: Sequence[Update]) -> None:
        """The end of an optimizer step."""
        for balancer, update in zip(self.balancers, updates, strict=True):
            if update:
                balancer.update(**update)
        for balancer in self.changing:
            balancer.step()

    def results(
        self, outputs: Sequence[Tensor], gradients: Sequence[Losses], weights: Sequence[Losses], learned: Sequence[Losses]
    ) -> list[Result]:
        """What was given as bits, group by group. ``learned`` are the gradients to the parameters."""
        return [
            Result(state_bits({"": output})[""], *map(state_bits, (of_each, by_name, _state(balancer), to_learned)))
            for balancer, output, of_each, by_name, to_learned in zip(
                self.balancers, outputs, gradients, weights, learned, strict=True
            )
        ]

    def by_balancer(self, gradients: Sequence[Tensor]) -> list[Losses]:
        """Gradients to ``parameters``, for each balancer by name."""
        given = iter(gradients)
        return [{name: next(given) for name in by_name} for by_name in self.learned]

    def steps(self, run: Callable[[list[Losses], list[Tensor], list[Keywords], list[Update]], list[Result]]) -> Results:
        """Each step of each sequence, which begins with balancers as new."""
        sequences, steps = shape(self.groups[0])
        for sequence in range(sequences):
            self.begin()
            for t in range(steps):
                self.learn(sequence, t)
                yield run(*self.batch(sequence, t))

    @torch.no_grad()
    def learn(self, sequence: int, t: int) -> None:
        """Gives the parameters their values at a step, as an optimizer would: in place."""
        for group, by_name in zip(self.groups, self.learned, strict=True):
            for name, values in group.sequences[sequence][t].learned.items():
                by_name[name].copy_(torch.tensor(values))

    def batch(self, sequence: int, t: int) -> tuple[list[Losses], list[Tensor], list[Keywords], list[Update]]:
        """Losses, cotangents, keywords and updates of one step of each group."""
        vectors = [group.sequences[sequence][t] for group in self.groups]
        losses, afters = (
            [
                {name: self._tensor(value, group.formats[name]) for name, value in row.items()}
                for group, row in zip(self.groups, rows, strict=True)
            ]
            for rows in ([vector.losses for vector in vectors], [vector.after for vector in vectors])
        )
        keywords = [
            {group.keyword: {name: self._tensor(x, "f32") for name, x in vector.amounts.items()}} if group.keyword else {}
            for group, vector in zip(self.groups, vectors, strict=True)
        ]
        cotangents = [self._tensor(v.cotangent, g.result) for g, v in zip(self.groups, vectors, strict=True)]
        return losses, cotangents, keywords, [{"loss": x, **more} if x else {} for x, more in zip(afters, keywords, strict=True)]

    def _tensor(self, value: float, fmt: str) -> Tensor:
        return torch.tensor(value, dtype=DTYPES[fmt], device=self.device)


def _weights(balancer: Any, losses: Losses, keywords: Keywords) -> Losses:
    """The weights of a call, unless they are constants."""
    return {} if balancer._settings.weights_are == "constants" else balancer.weights(losses, **keywords)


def _state(balancer: Any) -> dict[str, Tensor]:
    return {entry.name: getattr(balancer, entry.name) for entry in balancer._settings.state}


def _eager(device: str, groups: Sequence[Group]) -> Results:
    program = Program(device, groups)
    return _called(program, program.of_vectors, program.commit)


def _compiled(device: str, groups: Sequence[Group]) -> Results:
    from loss_balancers.parity.lanes.torch_compiled import compiled  # loads Dynamo, which takes a second

    # Dynamo counts compilations by the code of a function, which all columns share, and gives up after a few.
    torch.compiler.reset()
    program = Program(device, groups)
    # The commit is left out of it, as by most: the training step compiles that too.
    return _called(program, compiled(program.of_vectors), program.commit)


def _called(program: Program, forward: Callable[..., Any], commit: Callable[[Sequence[Update]], None]) -> Results:
    """As a training loop does: a forward, its backward by autograd, a commit."""

    def step(batch: list[Losses], cotangents: list[Tensor], keywords: list[Keywords], updates: list[Update]) -> list[Result]:
        vectors = [{name: x.reshape(1).requires_grad_() for name, x in losses.items()} for losses in batch]
        leaves = [x for losses in vectors for x in losses.values()]
        outputs, weights = forward(vectors, keywords)
        # A student loss that is left out of the aggregate is not in the graph: its gradient is zero.
        gradients = torch.autograd.grad(outputs, leaves + program.parameters, cotangents, materialize_grads=True)
        to_losses, learned = iter(gradients[: len(leaves)]), program.by_balancer(gradients[len(leaves) :])
        commit(updates)
        given = [{name: next(to_losses).squeeze(0) for name in losses} for losses in batch]
        return program.results(outputs, given, weights, learned)

    return program.steps(step)


class _WithWeights(torch.nn.Module):
    """A forward that gives the weights too, for `functional_call`."""

    def __init__(self, balancer: torch.nn.Module) -> None:
        super().__init__()
        self.balancer = balancer

    def forward(self, losses: Losses, keywords: Keywords) -> tuple[Tensor, Losses]:
        return self.balancer(losses, **keywords), _weights(self.balancer, losses, keywords)


def _vmap(device: str, groups: Sequence[Group]) -> Results:
    """All sequences at once under `torch.func.vmap`, with their states stacked: the forward in eval mode, value and gradient.

    `torch.func` refuses to change state: what is observed and committed, is so outside of it, by a balancer for each sequence.
    """
    sequences, steps = shape(groups[0])
    programs = [Program(device, groups) for _ in range(sequences)]
    wrapped = [[_WithWeights(balancer).eval() for balancer in program.balancers] for program in programs]
    found: dict[tuple[int, int], list[Result]] = {}
    for t in range(steps):
        for sequence, program in enumerate(programs):
            program.learn(sequence, t)
        drawn = (program.batch(sequence, t) for sequence, program in enumerate(programs))
        batches, cotangents, keywords, updates = zip(*drawn, strict=True)
        given = []
        for modules, *of_group in zip(*(zip(*x, strict=True) for x in (wrapped, batches, keywords, cotangents)), strict=True):
            given.append(_of_all(modules, *tree_map(lambda *xs: torch.stack(xs), *zip(*of_group, strict=True))))
        for sequence, program in enumerate(programs):
            program.observe(batches[sequence], keywords[sequence])
            program.commit(updates[sequence])
            outputs, *rest = zip(*((o[sequence], *(_at(x, sequence) for x in by_name)) for o, *by_name in given), strict=True)
            gradients, weights, learned = rest
            found[sequence, t] = program.results(outputs, gradients, weights, learned)
    return (found[sequence, t] for sequence in range(sequences) for t in range(steps))


def _of_all(
    modules: Sequence[torch.nn.Module], losses: Losses, keywords: Keywords, cotangents: Tensor
) -> tuple[Tensor, Losses, Losses, Losses]:
    """Aggregate, gradients and weights of one group in all sequences, and the gradients to parameters."""
    parameters, buffers = torch.func.stack_module_state(list(modules))  # type: ignore[reportArgumentType]

    def step(parameters: Losses, buffers: Losses, losses: Losses, keywords: Keywords, cotangent: Tensor) -> Any:
        def called(x: Losses, parameters: Losses) -> Any:
            return torch.func.functional_call(modules[0], (parameters, buffers), (x, keywords))

        output, pullback, weights = torch.func.vjp(called, losses, parameters, has_aux=True)  # type: ignore[reportAssignmentType]
        gradients, learned = pullback(cotangent)
        return output, gradients, weights, {name.removeprefix("balancer."): x for name, x in learned.items()}

    return torch.func.vmap(step)(parameters, buffers, losses, keywords, cotangents)


def _at(stacked: Losses, index: int) -> Losses:
    return {name: x[index] for name, x in stacked.items()}


def _step(device: str, groups: Sequence[Group]) -> Results:
    """A compiled training step: losses from parameters, the aggregate used further, its gradient; then update and commit."""
    from loss_balancers.parity.lanes.torch_compiled import compiled  # loads Dynamo, which takes a second

    torch.compiler.reset()
    program = Program(device, groups)
    dtypes = [{name: DTYPES[fmt] for name, fmt in group.formats.items()} for group in groups]
    # For each group its own: Inductor tries to fuse all that has an operand in common, pair by pair.
    ones = [torch.ones(1, dtype=_wide(narrow.values()), device=device) for narrow in dtypes]
    rates = [one / 8 for one in ones]

    def losses_from(parameters: list[Tensor], ones: list[Tensor]) -> list[Losses]:
        """Arithmetic in the wide format, then the conversion that Inductor elides."""
        return [
            {name: x.to(dtype) for (name, dtype), x in zip(narrow.items(), (p * one).unbind(), strict=True)}
            for narrow, p, one in zip(dtypes, parameters, ones, strict=True)
        ]

    def objective(parameters: list[Tensor], cotangents: list[Tensor], keywords: list[Keywords], ones: list[Tensor]) -> Any:
        outputs, weights = program.forward(losses_from(parameters, ones), keywords)
        outputs = [o.to(p.dtype) for o, p in zip(outputs, parameters, strict=True)]
        # Each aggregate gets its cotangent; the sum itself is nobody's business.
        terms = [(o * ct.to(o.dtype)).to(torch.float32) for o, ct in zip(outputs, cotangents, strict=True)]
        return torch.stack(terms).sum(), [o.detach() for o in outputs], weights

    def update(parameters: list[Tensor], rates: list[Tensor], gradients: Sequence[Tensor], updates: list[Update]) -> list[Tensor]:
        program.commit(updates)
        return [p.detach() - rate * g for p, rate, g in zip(parameters, rates, gradients, strict=True)]

    objective, update = compiled(objective), compiled(update)

    def run(batch: list[Losses], cotangents: list[Tensor], keywords: list[Keywords], updates: list[Update]) -> list[Result]:
        # A vector of all losses of a group: a scalar each would make the compiler work three times as long.
        parameters = [
            torch.stack([losses[name].to(_wide(narrow.values())) for name in narrow]).requires_grad_()
            for losses, narrow in zip(batch, dtypes, strict=True)
        ]
        # Cotangents are vectors for the reason that `of_vectors` gives.
        total, outputs, weights = objective(parameters, [x.reshape(1) for x in cotangents], keywords, ones)
        gradients = torch.autograd.grad(total, parameters + program.parameters)
        gradients, learned = gradients[: len(parameters)], gradients[len(parameters) :]
        update(parameters, rates, gradients, updates)
        return program.results(
            [_narrowed(o, ct.dtype) for o, ct in zip(outputs, cotangents, strict=True)],
            [
                {name: _narrowed(x, dtype) for (name, dtype), x in zip(narrow.items(), g, strict=True)}
                for narrow, g in zip(dtypes, gradients, strict=True)
            ],
            weights,
            program.by_balancer(learned),
        )

    return program.steps(run)


def _wide(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in its own format if that holds it, else as it is, which will then count as a difference."""
    narrow = x.to(dtype)
    exact = bool(x.isnan()) or bool(narrow.to(x.dtype) == x)
    return narrow if exact else x


MODES: dict[str, Callable[[str, Sequence[Group]], Results]] = {
    "eager": _eager,
    "compiled": _compiled,
    "vmap": _vmap,
    "step": _step,
}
#: Those that need `torch.compile`.
COMPILED = ("compiled", "step")
