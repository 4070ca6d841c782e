"""The generator of the exact reference: its known answers, and what a draw is a function of."""

from statistics import NormalDist

import pytest

from loss_balancers.spec import random_bits
from loss_balancers.spec.random_bits import (
    LOOK_BACK,
    MOST_SEED,
    STREAM,
    WEIGHTS,
    WORD,
    happens,
    integers,
    normal,
    normals,
    threefry,
)

#: The known answers of Threefry-2x32 with 20 rounds, as its authors give them: key, counter, result.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((WORD, WORD), (WORD, WORD), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "result"), KNOWN)
def test_known_answers(key, counter, result):
    assert threefry(key, counter) == result


@pytest.mark.parametrize("bit", [*range(64)])
def test_each_bit_of_key_and_of_counter_matters(bit):
    flipped = (1 << bit & WORD, 1 << bit >> 32)
    assert len({threefry((0, 0), (0, 0)), threefry(flipped, (0, 0)), threefry((0, 0), flipped)}) == 3


def test_a_draw_is_a_function_of_seed_step_stream_and_number():
    given = [(0, 0, 0, 0), (1 << 32, 0, 0, 0), (MOST_SEED, 0, 0, 0), (0, 2**31 - 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 3)]
    drawn = [integers(seed, step, stream, k + 1)[k] for seed, step, stream, k in given]
    assert len(set(drawn)) == len(given)
    assert drawn[0] == threefry((0, 0), (0, 0))[0] >> 8
    assert drawn[3] == threefry((0, 0), (2**31 - 1, 0))[0] >> 8
    assert drawn[4] == threefry((0, 0), (0, STREAM))[0] >> 8
    assert drawn[5] == threefry((0, 0), (0, 3))[0] >> 8


def test_streams_do_not_overlap():
    assert WEIGHTS != LOOK_BACK
    assert max(WEIGHTS, LOOK_BACK) * STREAM + STREAM <= WORD


def test_what_is_certain_and_what_is_not():
    assert all(happens(3, step, LOOK_BACK, 1.0) and not happens(3, step, LOOK_BACK, 0.0) for step in range(100))
    often = sum(happens(3, step, LOOK_BACK, 0.75) for step in range(4000))
    assert abs(often - 3000) < 4 * (4000 * 0.75 * 0.25) ** 0.5


@pytest.mark.parametrize("m", [0, 2, 2 * 10**6, 2**22, 2**23, 2**24 - 2, 1_258_290, 1_258_292, 1_258_294])
def test_a_normal_number_is_the_quantile_of_its_integer(m):
    """At both ends, in both regions, and where they meet."""
    assert normal(m + 1) == -normal(m)
    assert normal(m) == pytest.approx(NormalDist().inv_cdf((m + 1) / 2**25), rel=1e-6)


def test_the_tails_end_where_the_integers_do():
    assert normal(1) == pytest.approx(5.419983, rel=1e-6)
    assert normal(2**24 - 1) == pytest.approx(2**-25 * (2 * 3.141592653589793) ** 0.5, rel=1e-6)
    assert normals(0, 0, WEIGHTS, 3) == [normal(m) for m in integers(0, 0, WEIGHTS, 3)]


@pytest.mark.parametrize("wrong", [-1, 2**63, True, 1.0, "1", None])
def test_a_seed_that_is_none(wrong):
    kind = ValueError if type(wrong) is int else TypeError
    with pytest.raises(kind, match=r"`seed` must be an int from 0 to 9223372036854775807\. Received"):
        random_bits.checked_seed(wrong)
