"""The losses that twins are given: how a case is written, and cases that are hard on purpose."""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from loss_balancers.parity.bits import as_numpy
from loss_balancers.spec import FORMAT_OF_DTYPE, FORMATS, STUDENT_LOSS_KEY, round_to

#: The losses of one call, by name, as arrays of bfloat16, float16, float32 or float64.
Losses = dict[str, np.ndarray]
#: A loss as :func:`drawn_cases` and the hypothesis strategy write it: its format and its value.
Loss = tuple[str, float]

NAMES = ("MSELoss_0", STUDENT_LOSS_KEY)
#: What the losses of a drawn case are made of, by the columns of the parity matrix.
FORMATS_OF_LABEL = {"bf16": ("bf16",), "f16": ("f16",), "f32": ("f32",), "f64": ("f64",), "mixed": ("f32", "bf16")}
#: What a pair is held to by default: everything but float64, which JAX has only where it is switched on.
LABELS = ("f32", "bf16", "f16", "mixed")


def read_cases(cases: Iterable[Mapping[str, Any]]) -> list[Losses]:
    """The cases as arrays.

    Raises:
        TypeError: The cases are no iterable of mappings, a name is no string, or a loss no floating-point number or array.
        ValueError: There are no cases, one has no losses, or a format is unknown.
    """
    if isinstance(cases, (str, bytes, Mapping)) or not isinstance(cases, Iterable):
        raise TypeError(
            f"`cases` must be a number of cases to draw, or an iterable of loss dicts. Received {type(cases).__name__}. For one "
            "case, pass a list with one dict."
        )
    read = [_read_case(f"cases[{index}]", case) for index, case in enumerate(cases)]
    if not read:
        raise ValueError("`cases` must hold at least one loss dict. Received none, so nothing would be compared. Pass some.")
    return read


def read_steps(steps: Iterable[Iterable[Mapping[str, Any]]]) -> list[list[Losses]]:
    """Sequences of steps as arrays.

    Raises:
        TypeError: They are no iterable of iterables of mappings, or as for cases.
        ValueError: There are none, one is empty, or a step has other losses than the first of its sequence; or as for cases.
    """
    if isinstance(steps, (str, bytes, Mapping)) or not isinstance(steps, Iterable):
        raise _no_sequences("`steps`", steps)
    read = [_read_sequence(f"steps[{index}]", sequence) for index, sequence in enumerate(steps)]
    if not read:
        raise ValueError("`steps` must hold at least one sequence. Received none, so nothing would be compared. Pass some.")
    return read


def _read_sequence(where: str, sequence: Any) -> list[Losses]:
    if isinstance(sequence, (str, bytes, Mapping)) or not isinstance(sequence, Iterable):
        raise _no_sequences(where, sequence)
    read = [_read_case(f"{where}[{index}]", step) for index, step in enumerate(sequence)]
    if not read:
        raise ValueError(f"{where} must hold at least one loss dict. Received none. Leave the sequence out, or give it a step.")
    for index, step in enumerate(read):
        if signature(step) != signature(read[0]):
            raise ValueError(
                f"{where}[{index}] must have the losses of {where}[0]: the same names in the same order, formats and shapes. "
                f"Received {described(step)}, not {described(read[0])}. Begin another sequence with it."
            )
    return read


def _no_sequences(where: str, received: Any) -> TypeError:
    return TypeError(
        f"{where} must be {'sequences' if where == '`steps`' else 'a sequence'} of loss dicts, one dict a step. Received "
        f"{type(received).__name__}. For one sequence, pass steps=[[losses, losses, ...]]."
    )


def signature(losses: Losses) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """What a compiled program is compiled for: names in order, formats and shapes."""
    return tuple((name, x.dtype.name, x.shape) for name, x in losses.items())


def described(losses: Losses) -> str:
    """The signature in words."""
    return f"{{{', '.join(f'{name}: {x.dtype.name}{list(x.shape) or str()}' for name, x in losses.items())}}}"


def _read_case(where: str, case: Any) -> Losses:
    if not isinstance(case, Mapping):
        raise TypeError(
            f"{where} must be a mapping from name to loss. Received {type(case).__name__}. Pass, say, "
            '{"student_loss": 1.5, "MSELoss_0": ("bf16", 0.25)}.'
        )
    if not case:
        raise ValueError(f"{where} must hold at least one loss. Received an empty mapping. Leave the case out, or name its losses.")
    return {_name(where, name): _array(f"{where}[{name!r}]", value) for name, value in case.items()}


def _name(where: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where} must name its losses with strings. Received the key {name!r}. Name losses `ClassName_idx`.")
    return name


def _array(where: str, value: Any) -> np.ndarray:
    if isinstance(value, tuple):
        fmt, number = value if len(value) == 2 else (None, None)
        if not isinstance(fmt, str) or fmt not in FORMATS:
            raise ValueError(
                f"{where} must be (format, value) with a format of {', '.join(FORMATS)}. Received {value!r}. Pass, say, "
                '("bf16", 0.25).'
            )
        return _rounded(where, number, fmt)
    if isinstance(value, numbers.Real) and not isinstance(value, np.generic):
        return _rounded(where, value, "f32")
    array = as_numpy(value)
    if array.dtype.name not in FORMAT_OF_DTYPE:
        raise TypeError(
            f"{where} must be a number (taken as f32), (format, value), or an array of bfloat16, float16, float32 or float64. "
            f"Received {type(value).__name__} of {array.dtype.name}. Convert it, or say its format."
        )
    return array.copy()


def _rounded(where: str, value: Any, fmt: str) -> np.ndarray:
    """The number, or each of an array or nested list, rounded to the format once: an array's own conversions may round twice."""
    numbers_of = np.asarray(value, dtype=object)
    for number in numbers_of.flat:
        if not isinstance(number, numbers.Real) or isinstance(number, (bool, np.bool_)):
            raise TypeError(f"{where} must be a real number. Received {number!r} of type {type(number).__name__}. Pass a float.")
    exact = np.array([_round(number, fmt) for number in numbers_of.flat], np.float64).reshape(numbers_of.shape)
    return exact.astype(numpy_dtype(fmt))


def rounded(number: float, dtype: str) -> float:
    """The number in the format of the dtype, rounded on the host, where both frameworks get the same."""
    return _round(number, FORMAT_OF_DTYPE[dtype])


def _round(number: Any, fmt: str) -> float:
    if isinstance(number, numbers.Rational):
        return round_to(Fraction(number), fmt)
    value = float(number)
    return round_to(Fraction(value), fmt) if math.isfinite(value) and value != 0 else value  # a Fraction has no -0


def numpy_dtype(fmt: str) -> np.dtype[Any]:
    """The format as a NumPy dtype; bfloat16 is that of ml_dtypes, which JAX brings."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if fmt == "bf16" else FORMATS[fmt].dtype)  # type: ignore[index]


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the losses to draw.

    Raises:
        TypeError: They are no sequence of strings.
        ValueError: There are none, or one comes twice.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be a sequence of strings. Received {names!r}. Pass the keys of your loss dict.")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`names` must be the distinct names of at least one loss. Received {list(names)}. Name each loss once.")
    return tuple(names)


def check_labels(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats to draw in.

    Raises:
        ValueError: There are none, or one is unknown.
    """
    unknown = [formats] if isinstance(formats, str) else [label for label in formats if label not in FORMATS_OF_LABEL]
    if unknown or not formats:
        raise ValueError(f"`formats` must be a sequence of {', '.join(FORMATS_OF_LABEL)}. Received {formats!r}. Pass at least one.")
    return tuple(formats)


def drawn_cases(
    count: int = 200, *, names: Sequence[str] = NAMES, formats: Sequence[str] = LABELS, seed: int = 0
) -> list[dict[str, Loss]]:
    """Loss dicts to hold twins to: for each format first the hard ones, then draws; the same for the same arguments.

    The hard ones: zeros, -0, equal losses, an infinity, a NaN, inf - inf, subnormal losses, losses around the smallest normal
    number, sums that overflow, sums that are ties, and cancellation. The dicts have a shuffled order.

    Args:
        count: How many, over all formats.
        names: The names of the losses.
        formats: Of bf16, f16, f32, f64 and mixed (f32 and bf16 in turn).
        seed: Of the draws.

    Raises:
        TypeError: ``names`` is no sequence of strings.
        ValueError: ``count`` is below 1, ``names`` or ``formats`` empty, a name double, or a format unknown.

    Example:
        >>> from loss_balancers.parity import drawn_cases
        >>> drawn_cases(1, names=["student_loss"], formats=["bf16"])
        [{'student_loss': ('bf16', 0.0)}]
    """
    names, formats = check_names(names), check_labels(formats)
    if isinstance(count, bool) or count < 1:
        raise ValueError(f"The cases to draw must be at least 1. Received {count!r}. Pass how many.")
    rng = random.Random(seed)
    cases = []
    for index, label in enumerate(formats):
        share = count // len(formats) + (index < count % len(formats))
        kinds = FORMATS_OF_LABEL[label]
        format_of = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
        order = rng.sample(names, len(names))
        cases += [{name: (format_of[name], row[name]) for name in order} for row in _rows(rng, format_of, share)]
    return cases


def specials(fmt: str) -> list[float]:
    """Values of the format at which implementations part: zeros, infinities, NaN, the edges of its range, the neighbours of 1."""
    f = FORMATS[fmt]  # type: ignore[index]
    ulp, least = 2.0 ** (1 - f.precision), math.ldexp(1.0, f.min_exponent - f.precision + 1)
    largest = math.ldexp(2 - ulp, f.max_exponent)
    edges = [least, f.tiny - least, f.tiny, f.tiny + least, 2 * f.tiny, largest]
    around_one = [1.0, 1 + ulp, 1 - ulp / 2, ulp, ulp / 2, 3 * ulp / 2]
    return [0.0, -0.0, math.inf, -math.inf, math.nan, *edges, *(-x for x in edges), *around_one]


def _rows(rng: random.Random, format_of: dict[str, str], count: int) -> list[dict[str, float]]:
    names = list(format_of)

    def all_of(make: Any) -> dict[str, float]:
        return {name: make(FORMATS[format_of[name]], i) for i, name in enumerate(names)}  # type: ignore[index]

    def ordinary(fmt: Any, i: int) -> float:
        del i
        return draw(rng, fmt.name, -3, 3)

    def one(value: float) -> dict[str, float]:
        return all_of(ordinary) | {rng.choice(names): value}

    shared = draw(rng, "bf16", -3, 3)  # a number of every format, f16 too, in this range
    rows = [
        all_of(lambda fmt, i: 0.0),
        all_of(lambda fmt, i: -0.0),
        all_of(lambda fmt, i: shared),
        one(math.inf),
        one(math.nan),
        all_of(lambda fmt, i: math.inf if i % 2 else -math.inf),
        all_of(lambda fmt, i: round_to(Fraction(fmt.tiny) * Fraction(i % 5 + 1, 8), fmt.name)),
        all_of(lambda fmt, i: round_to(Fraction(fmt.tiny) * Fraction(i % 7 + 1) * Fraction(3, 4), fmt.name)),
        all_of(lambda fmt, i: max(x for x in specials(fmt.name) if math.isfinite(x))),
        all_of(lambda fmt, i: 2.0 if i == 0 else 2.0 ** (1 - fmt.precision) * (2 * i - 1)),
        all_of(lambda fmt, i: draw(rng, fmt.name, 0, 0) * (-1) ** i),
    ]
    for index in range(len(rows), count):
        wide = index % 3 == 0
        rows.append(all_of(lambda fmt, i: draw(rng, fmt.name, -14, 14) * rng.choice((1, -1))) if wide else all_of(ordinary))
    return rows[:count]


def draw(rng: random.Random, fmt: str, low: int, high: int) -> float:
    """A positive number of the format with a random significand and an exponent from ``low`` to ``high``."""
    return round_to((1 + Fraction(rng.getrandbits(53), 2**53)) * Fraction(2) ** rng.randint(low, high), fmt)
