"""Random numbers that are a function of a seed and of counters, the same in both frameworks (spec N1 to N4).

The generator is Threefry-2x32 with 20 rounds of Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
2011. It adds, rotates and xors words of 32 bits, so it needs no integer that a framework or a device lacks, and no state.
"""

from __future__ import annotations

from typing import Any

from loss_balancers.spec import errors
from loss_balancers.spec.arithmetic import EXACT
from loss_balancers.spec.formats import round_weight

#: Two words of 32 bits.
Words = tuple[int, int]

WORD = (1 << 32) - 1
ROUNDS = 20
#: By how many bits the rounds rotate, in turn.
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
#: The xor of this number and the words of the key is the third word of the key.
PARITY = 0x1BD11BDA
MOST_SEED = 2**63 - 1
#: A stream has so many numbers at each step.
STREAM = 1 << 24
#: The streams: the normal numbers of `RandomLossBalancer`, and the draw of `ReLoBRaLoLossBalancer`.
WEIGHTS, LOOK_BACK = 0, 1

#: Wichura's PPND7 (algorithm AS 241, Applied Statistics 37, 1988): the coefficients of numerator and denominator, from the constant
#: on, first for the middle, then for the tails. Those for the tails are halved, which changes no quotient: so none is the same in
#: both, and no addend is a constant, which a compiler could move past the rounding of the product that it is added to.
NUMERATOR = tuple(
    (round_weight(middle, "f32"), round_weight(tail / 2, "f32"))
    for middle, tail in (
        (3.3871327179, 1.4234372777),
        (50.434271938, 2.7568153900),
        (159.29113202, 1.3067284816),
        (59.109374720, 0.17023821103),
    )
)
DENOMINATOR = tuple(
    (round_weight(middle, "f32"), round_weight(tail / 2, "f32"))
    for middle, tail in ((1.0, 1.0), (17.895169469, 0.73700164250), (78.757757664, 0.12021132975), (67.187563600, 0.0))
)
#: How far from 1/2 the middle reaches.
MIDDLE = round_weight(0.425, "f32")
#: The centre of the polynomials: less the square in the middle, and taken off the root in the tails.
CENTRES = (round_weight(0.180625, "f32"), round_weight(1.6, "f32"))


def checked_seed(given: Any) -> int:
    """A seed: an int from 0 to `MOST_SEED`.

    Raises:
        TypeError: It is not an int.
        ValueError: It is out of bounds.
    """
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= MOST_SEED:
        raise errors.seed_value(given, MOST_SEED)
    return given


def key_of(seed: int) -> Words:
    """The two words of a seed, the lower first."""
    return seed & WORD, seed >> 32


def schedule(key: Words) -> tuple[Words, ...]:
    """What is added to the two words at first, and after every four rounds."""
    words = (*key, PARITY ^ key[0] ^ key[1])
    return tuple((words[i % 3], (words[(i + 1) % 3] + i) & WORD) for i in range(ROUNDS // 4 + 1))


def threefry(key: Words, counter: Words) -> Words:
    """Two random words (spec N1)."""
    added = schedule(key)
    x, y = ((word + more) & WORD for word, more in zip(counter, added[0], strict=True))
    for i in range(ROUNDS):
        x, turn = (x + y) & WORD, ROTATIONS[i % 8]
        y = x ^ ((y << turn | y >> (32 - turn)) & WORD)
        if i % 4 == 3:
            x, y = ((word + more) & WORD for word, more in zip((x, y), added[i // 4 + 1], strict=True))
    return x, y


def integers(seed: int, step: int, stream: int, count: int) -> list[int]:
    """So many integers of 24 bits: the upper bits of the first word (spec N2)."""
    return [threefry(key_of(seed), (step, stream * STREAM + k))[0] >> 8 for k in range(count)]


def happens(seed: int, step: int, stream: int, probability: float) -> bool:
    """Whether something of this float32 probability happens (spec N3)."""
    return integers(seed, step, stream, 1)[0] * 2.0**-24 < probability


def normals(seed: int, step: int, stream: int, count: int) -> list[float]:
    """So many standard normal numbers, float32 (spec N4)."""
    return [normal(m) for m in integers(seed, step, stream, count)]


def normal(m: int) -> float:
    """The standard normal number of an integer of 24 bits: its last bit is the sign, the others the probability of the tail."""
    q = (m | 1) * 2.0**-25  # exact, in (0, 1/2)
    h = 0.5 - q  # exact
    middle = h <= MIDDLE
    root = EXACT.sqrt(EXACT.negate(EXACT.log(q), "f32"))
    r = EXACT.add(CENTRES[0], -EXACT.rmul(h, h, "f32"), "f32") if middle else EXACT.add(root, -CENTRES[1], "f32")
    numerator, denominator = (_polynomial([pair[not middle] for pair in each], r) for each in (NUMERATOR, DENOMINATOR))
    z = EXACT.div(EXACT.rmul(h if middle else 1.0, numerator, "f32"), denominator, "f32")
    return z if m & 1 else -z


def _polynomial(coefficients: list[float], r: float) -> float:
    """By Horner's rule."""
    *others, total = coefficients
    for coefficient in reversed(others):
        total = EXACT.add(EXACT.rmul(total, r, "f32"), coefficient, "f32")
    return total
