"""Random numbers that are a function of a seed and of the counter ``steps``: the same in both frameworks (spec N1 to N4).

They are made on the device, in integers of 64 bits that hold words of 32: not every operation of PyTorch has unsigned integers, and
a sum that overflows is undefined in the C++ that Inductor writes. A seed is given as text: Dynamo would make a symbol of an int
that differs between two modules.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from loss_balancers.spec import random_bits
from loss_balancers.spec.random_bits import CENTRES, DENOMINATOR, MIDDLE, NUMERATOR, ROTATIONS, ROUNDS, STREAM, WORD, Words
from loss_balancers.torch.host import host_constant
from loss_balancers.torch.portable.division import div_of_kept, rmul_of_kept, settled
from loss_balancers.torch.portable.elementary import log, sqrt
from loss_balancers.torch.rounding import FLOAT, chosen, filled, on_host

#: How many steps' numbers are made at once on the CPU: their kernels take no longer than those of one step.
BLOCK = 64


@host_constant
def schedule(seed: str) -> tuple[Words, ...]:
    """What is added to the two words of a counter, of a seed as text."""
    return random_bits.schedule(random_bits.key_of(int(seed)))


def threefry(added: tuple[Words, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two random words of the two words of a counter (spec N1), int64 as they are."""
    x, y = x + added[0][0], (y + added[0][1]) & WORD
    for i in range(ROUNDS):
        # Of x the bits above the 32nd are not cleared: they never reach those below.
        x, turn = x + y, ROTATIONS[i % 8]
        y = torch.add(y >> (32 - turn), y, alpha=1 << turn) ^ x
        if i % 4 == 3:
            more = added[i // 4 + 1]
            x, y = x + more[0], y + more[1]
        y = settled(y & WORD)
    return x & WORD, y


def integers(seed: str, steps: Tensor, stream: int, count: int) -> Tensor:
    """So many integers of 24 bits (spec N2)."""
    numbers = torch.arange(stream * STREAM, stream * STREAM + count, dtype=torch.int64, device=steps.device)
    return threefry(schedule(seed), steps.to(torch.int64), numbers)[0] >> 8


def happens(seed: str, steps: Tensor, stream: int, probability: float) -> Tensor:
    """Whether something of this probability happens (spec N3)."""
    return _drawn(_fractions, seed, steps, stream, 1)[..., 0] < probability


def _fractions(m: Tensor) -> Tensor:
    """Integers of 24 bits as numbers in [0, 1)."""
    return m.to(FLOAT) * 2.0**-24


def normals(seed: str, steps: Tensor, stream: int, count: int) -> Tensor:
    """So many standard normal numbers (spec N4)."""
    return _drawn(normal, seed, steps, stream, count)


def _drawn(made: Callable[[Tensor], Tensor], seed: str, steps: Tensor, stream: int, count: int) -> Tensor:
    """What is ``made`` of integers. Where the host can read ``steps``, that of many steps is made at once, and kept."""
    step = on_host(steps)
    if step is None:
        return made(integers(seed, steps, stream, count))
    return _block(made, seed, step // BLOCK, stream, count)[step % BLOCK]


@lru_cache(maxsize=512)
def _block(made: Callable[[Tensor], Tensor], seed: str, block: int, stream: int, count: int) -> Tensor:
    """A row for each step of a block."""
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
        steps = torch.arange(block * BLOCK, (block + 1) * BLOCK, device="cpu")
        return made(integers(seed, steps.unsqueeze(-1), stream, count))


def normal(m: Tensor) -> Tensor:
    """The standard normal numbers of integers of 24 bits."""
    q = (m | 1).to(FLOAT) * 2.0**-25
    h = 0.5 - q
    middle, tail = h <= MIDDLE, h > MIDDLE
    root = sqrt(-log(q))
    r = settled(chosen(tail, root, CENTRES[0]) - chosen(middle, rmul_of_kept(h, h), CENTRES[1]))
    numerator, denominator = _polynomial(NUMERATOR, middle, r), _polynomial(DENOMINATOR, middle, r)
    z = div_of_kept(rmul_of_kept(chosen(middle, h, 1.0), numerator), denominator)
    return torch.where((m & 1) == 1, z, -z)


def _polynomial(coefficients: tuple[tuple[float, float], ...], middle: Tensor, r: Tensor) -> Tensor:
    """By Horner's rule, with the first of each pair of coefficients in the middle, else with the second."""
    *others, total = (chosen(middle, filled(first, r), second) for first, second in coefficients)
    for coefficient in reversed(others):
        total = rmul_of_kept(total, r) + coefficient
    return total
