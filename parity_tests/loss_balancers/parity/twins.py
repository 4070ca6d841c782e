"""Other people's twins: a PyTorch balancer and a JAX balancer are given the same losses and must give the same bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loss_balancers.parity.bits import array_bits, from_bits, ulp_distance
from loss_balancers.parity.twin_cases import LABELS, NAMES, Losses, drawn_cases, read_cases
from loss_balancers.parity.twin_lanes import DEFAULT_LANES, check_present, read_lanes
from loss_balancers.parity.twin_outcomes import Outcome, run_lane
from loss_balancers.spec import FORMAT_OF_DTYPE

#: Sent back from the aggregate: 1 as `backward()` does, and 1/3, the mean over three micro-batches, which rounds.
COTANGENTS = (1.0, 1 / 3)
#: How many elements of an array a message shows.
_SHOWN = 8


def assert_twins(
    torch_balancer: Callable[[dict[str, Any]], Any],
    jax_balancer: Callable[[dict[str, Any]], Any],
    *,
    cases: int | Iterable[Mapping[str, Any]] = 200,
    names: Sequence[str] | None = None,
    formats: Sequence[str] | None = None,
    seed: int | None = None,
    lanes: Sequence[str] = DEFAULT_LANES,
    max_ulp: int = 0,
    cotangents: Sequence[float] = COTANGENTS,
) -> None:
    """Asserts that two balancers give the same aggregate, and the same gradient to every loss, bit for bit.

    Both get the same losses, to the bit. What every lane gives is compared with what the first lane gives: dtype, shape and bits;
    any NaN equals any NaN, and -0 is not 0.

    Args:
        torch_balancer: From a dict of tensors to a tensor: a module, which is copied, or a function.
        jax_balancer: From a dict of arrays to an array: an NNX module, or a function.
        cases: How many cases to draw (see `drawn_cases`), or loss dicts: name to a number (taken as float32), to
            (format, number), the formats being bf16, f16, f32 and f64, or to a NumPy, torch or JAX array.
        names: The names of the losses of drawn cases. Default: ``MSELoss_0`` and ``student_loss``.
        formats: The formats of drawn cases: of bf16, f16, f32, f64 and mixed. Default: all but f64.
        seed: Of drawn cases. Default 0.
        lanes: Where to run: ``torch-DEVICE-MODE`` with a mode of eager, compiled, vmap or step, ``jax-DEVICE-MODE`` with one of
            eager, jit, vmap, scan, remat or step; the device is any that the framework reports. At least one of each framework.
            A step computes the losses in the graph that balances them.
        max_ulp: How many numbers of the format a result may be off. Default 0: none. An infinity or a NaN is off by more than any.
        cotangents: What is sent back from the aggregate, rounded to its format. Default: 1 and 1/3.

    Raises:
        AssertionError: They differ; says where first, with the losses and each lane's result in hex, and how often.
        TypeError: A case, or what a balancer returns, is of the wrong type.
        ValueError: There are no cases; a name, a format or a lane is unknown; an aggregate has a shape of its own.
        LaneAbsentError: This machine cannot run one of the lanes.

    Example:
        >>> from loss_balancers.parity import assert_twins
        >>> assert_twins(lambda loss: loss["MSELoss_0"] * 0.5, lambda loss: loss["MSELoss_0"] * 0.5, cases=[{"MSELoss_0": 3.0}])
    """
    __tracebackhide__ = True  # a failure shows the caller's line
    if isinstance(max_ulp, bool) or not isinstance(max_ulp, int) or max_ulp < 0:
        raise ValueError(f"`max_ulp` must be an int of at least 0. Received {max_ulp!r}. Pass 0 for the same bits.")
    if not cotangents or not all(math.isfinite(cotangent) for cotangent in cotangents):
        raise ValueError(f"`cotangents` must be at least one finite number. Received {cotangents!r}. Pass (1.0,) for `backward()`.")
    losses = _losses(cases, names, formats, seed)
    read = read_lanes(lanes)
    check_present(read)
    balancers = {"torch": torch_balancer, "jax": jax_balancer}
    outcomes = {lane.name: run_lane(lane, balancers[lane.framework], losses, cotangents) for lane in read}
    differences = _differences(outcomes, max_ulp)
    if differences:
        raise AssertionError(_message(losses, outcomes, differences, max_ulp))


def _losses(
    cases: int | Iterable[Mapping[str, Any]], names: Sequence[str] | None, formats: Sequence[str] | None, seed: int | None
) -> list[Losses]:
    if isinstance(cases, int):
        if names is None:
            names = NAMES
        return read_cases(drawn_cases(cases, names=names, formats=LABELS if formats is None else formats, seed=seed or 0))
    given = [word for word, value in {"names": names, "formats": formats, "seed": seed}.items() if value is not None]
    if given:
        raise ValueError(
            f"`{'`, `'.join(given)}` are for drawn cases, and `cases` holds loss dicts. Leave them out, or pass a number of cases."
        )
    return read_cases(cases)


class _Difference(NamedTuple):
    """A result of one lane that is not the first lane's."""

    case: int
    what: str
    lane: str
    ulp: float  # infinite where it is no distance between numbers


def _differences(outcomes: Mapping[str, Sequence[Outcome]], max_ulp: int) -> list[_Difference]:
    first, *others = outcomes
    return [
        _Difference(case, what, lane, ulp)
        for case, expected in enumerate(outcomes[first])
        for what, array in expected.items()
        for lane in others
        if (ulp := _distance(outcomes[lane][case][what], array)) > max_ulp
    ]


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The worst distance in ulp between two results; infinite where formats or shapes differ, or only one is a number."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return math.inf
    fmt = FORMAT_OF_DTYPE[actual.dtype.name]
    differ = np.argwhere(array_bits(actual) != array_bits(expected))
    return max((_ulp(int(array_bits(actual)[tuple(i)]), int(array_bits(expected)[tuple(i)]), fmt) for i in differ), default=0)


def _ulp(actual: int, expected: int, fmt: str) -> float:
    values = from_bits(actual, fmt), from_bits(expected, fmt)
    if all(math.isnan(value) for value in values):
        return 0
    distance = ulp_distance(actual, expected, fmt)
    return distance if distance is not None and all(math.isfinite(value) for value in values) else math.inf


def _message(
    cases: Sequence[Losses], outcomes: Mapping[str, Sequence[Outcome]], differences: Sequence[_Difference], max_ulp: int
) -> str:
    first, worst = differences[0], max(differences, key=lambda difference: difference.ulp)
    counts = Counter(difference.what for difference in differences)
    failed = len({difference.case for difference in differences})
    allowed = f" by more than {max_ulp} ulp" if max_ulp else ""
    whats = dict.fromkeys(what for outcome in next(iter(outcomes.values())) for what in outcome)
    lines = [
        f"The twins differ{allowed}: first of {len(differences)} differences in {len(cases)} cases, {failed} of which differ",
        f"case {first.case}:",
        *_table({name: _value(array) for name, array in cases[first.case].items()}),
        *_result(outcomes, first),
        "differences by result:",
        *_table({what: str(counts[what]) for what in whats if what in counts}),
    ]
    if worst.ulp > first.ulp:
        lines += [f"worst, case {worst.case}:", *_result(outcomes, worst)]
    return "\n".join(lines)


def _result(outcomes: Mapping[str, Sequence[Outcome]], difference: _Difference) -> list[str]:
    """One result as each lane gave it; of an array, the first element that the lanes of the difference disagree on."""
    arrays = {lane: results[difference.case][difference.what] for lane, results in outcomes.items()}
    expected = next(iter(arrays.values()))
    element = _first_element(arrays[difference.lane], expected)
    if element:
        arrays = {lane: array[(*element, ...)] if array.shape == expected.shape else array for lane, array in arrays.items()}
        expected = expected[(*element, ...)]
    rows = {lane: f"{_value(array)}{_apart(array, expected)}" for lane, array in arrays.items()}
    return [f"{difference.what}{f', element {element}' if element else ''}:", *_table(rows)]


def _first_element(actual: np.ndarray, expected: np.ndarray) -> tuple[int, ...]:
    """The index of the first element that differs; empty for scalars, and where it is the format or the shape that differs."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return ()
    return next((index for index in np.ndindex(actual.shape) if _distance(actual[(*index, ...)], expected[(*index, ...)])), ())


def _apart(actual: np.ndarray, expected: np.ndarray) -> str:
    ulp = _distance(actual, expected)
    if not math.isinf(ulp):
        return f"  {int(ulp)} ulp off" if ulp else ""
    if actual.dtype != expected.dtype:
        return "  another format"
    return "  another shape" if actual.shape != expected.shape else "  a number against a NaN or an infinity"


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"    {name:<{width}}  {value}" for name, value in rows.items()]


def _value(array: np.ndarray) -> str:
    """Format and value: in hex, the way that a case is written, and a scalar in decimal too, for the eye."""
    fmt = FORMAT_OF_DTYPE[array.dtype.name]
    values = [float(x) for x in array.astype(np.float64).flat]
    if array.shape == ():
        return f"{fmt}  {values[0].hex()}  ({values[0]:.9g})"
    shown = ", ".join(value.hex() for value in values[:_SHOWN])
    return f"{fmt} {array.shape}  [{shown}{', ...' if len(values) > _SHOWN else ''}]"


class Parity:
    """What the pytest fixture ``parity`` is: `assert_twins` on the lanes of the command line."""

    def __init__(self, lanes: Sequence[str] = DEFAULT_LANES) -> None:
        #: The names of the lanes: those of ``--parity-lanes``, else of the ini option ``parity_lanes``, else the default ones.
        self.lanes = tuple(lanes)

    def assert_twins(
        self, torch_balancer: Callable[[dict[str, Any]], Any], jax_balancer: Callable[[dict[str, Any]], Any], **options: Any
    ) -> None:
        """:func:`assert_twins` with every argument but ``lanes``, which whoever runs pytest chooses.

        Raises:
            TypeError: ``lanes`` are given.
        """
        __tracebackhide__ = True
        if "lanes" in options:
            raise TypeError(
                "The `lanes` are those of --parity-lanes: of whoever runs pytest. Received others. Leave them out, or call "
                "`loss_balancers.parity.assert_twins`."
            )
        assert_twins(torch_balancer, jax_balancer, lanes=self.lanes, **options)
