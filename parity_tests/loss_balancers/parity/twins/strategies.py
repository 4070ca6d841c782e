"""A hypothesis strategy for the losses that twins are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loss_balancers.parity.bits import from_bits, to_bits
from loss_balancers.parity.twins.cases import FORMATS_OF_LABEL, LABELS, Loss, check_labels, check_names, specials
from loss_balancers.spec import FORMATS, STUDENT_LOSS_KEY
from loss_balancers.spec.errors import missing_package

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_KINDS = ("MSELoss", "KLDivLoss", "CosineEmbeddingLoss")


def loss_dicts(
    names: Sequence[str] | None = None,
    *,
    min_kd: int = 1,
    max_kd: int = 4,
    student: bool = True,
    formats: Sequence[str] = LABELS,
    special: bool = True,
) -> SearchStrategy[dict[str, Loss]]:
    """Loss dicts for hypothesis, as `assert_twins` takes them: name to (format, value), in any order.

    A dict has one of the formats throughout, or with "mixed" f32 and bf16 in any mixture. Values are ordinary losses, special
    ones (zero, -0, infinities, NaN, subnormals, the edges of the range, 1 and its neighbours), any value of the format by its
    bits, and, across a dict, ties: all the losses equal.

    Each call of `assert_twins` compiles anew, once for each signature: fix ``names`` and one format, and for a compiler that is
    slow draw a list of dicts, ``st.lists(loss_dicts(...), min_size=20)``.

    Args:
        names: The names of the losses. Default: KD losses ``ClassName_idx``, as many as ``min_kd`` to ``max_kd``.
        min_kd: The fewest KD losses, without ``names``.
        max_kd: The most.
        student: Whether there is a ``student_loss``, without ``names``.
        formats: Of bf16, f16, f32, f64 and mixed.
        special: Whether values may be special; if not, all are ordinary losses, from 2^-4 to 16.

    Raises:
        ImportError: hypothesis is not installed.
        TypeError: ``names`` is no sequence of strings.
        ValueError: ``names`` or ``formats`` is empty, a name double, a format unknown, or no number of KD losses is allowed.

    Example:
        >>> from hypothesis import given, settings
        >>> from loss_balancers.parity import loss_dicts
        >>> @settings(max_examples=10, database=None)
        ... @given(loss_dicts(["student_loss", "KL_0"], formats=["bf16"]))
        ... def test_the_student_is_there(losses):
        ...     assert set(losses) == {"student_loss", "KL_0"}
        >>> test_the_student_is_there()
    """
    try:
        from hypothesis import strategies as st
    except ImportError as error:
        raise ImportError(missing_package("`loss_dicts` needs", "hypothesis", "test")) from error
    labels = check_labels(formats)
    if names is not None:
        names_of: SearchStrategy[tuple[str, ...]] = st.just(check_names(names))
    else:
        if not 1 <= min_kd <= max_kd:
            raise ValueError(
                f"`min_kd` must be at least 1 and at most `max_kd`. Received {min_kd} and {max_kd}. Correct the bounds."
            )
        last = (STUDENT_LOSS_KEY,) if student else ()
        names_of = st.integers(min_kd, max_kd).map(lambda count: (*(f"{_KINDS[i % len(_KINDS)]}_{i}" for i in range(count)), *last))

    @st.composite
    def losses(draw: Any) -> dict[str, Loss]:
        kinds = FORMATS_OF_LABEL[draw(st.sampled_from(labels))]
        order = draw(st.permutations(draw(names_of)))
        format_of = {name: draw(st.sampled_from(kinds)) for name in order}
        if draw(st.integers(0, 7)) == 7:  # ties, now and then; the narrowest of the formats represents the value in all
            narrow = min(set(format_of.values()), key=lambda fmt: FORMATS[fmt].precision)  # type: ignore[index]
            shared = draw(_values(narrow, special))
            return {name: (fmt, shared) for name, fmt in format_of.items()}
        return {name: (fmt, draw(_values(fmt, special))) for name, fmt in format_of.items()}

    return losses()


def _values(fmt: str, special: bool) -> SearchStrategy[float]:
    from hypothesis import strategies as st

    low, high = to_bits(2.0**-4, fmt), to_bits(16.0, fmt)
    ordinary = st.integers(low, high).map(lambda bits: from_bits(bits, fmt))
    if not special:
        return ordinary
    width = to_bits(-0.0, fmt)  # the sign bit alone
    anything = st.integers(0, 2 * width - 1).map(lambda bits: from_bits(bits, fmt))
    return st.one_of(ordinary, st.sampled_from(specials(fmt)), anything)
