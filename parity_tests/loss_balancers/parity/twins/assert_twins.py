"""Other people's twins: a PyTorch balancer and a JAX balancer are given the same losses and must give the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from loss_balancers.parity.twins.cases import LABELS, NAMES, Losses, drawn_cases, read_cases, read_steps
from loss_balancers.parity.twins.lanes import DEFAULT_LANES, TwinLane, check_present, read_lanes
from loss_balancers.parity.twins.message import differences, elements, message, rows_of
from loss_balancers.parity.twins.outcome import Run
from loss_balancers.parity.twins.run import plan_of, run_twin

#: Sent back from the aggregate: 1 as `backward()` does, and 1/3, the mean over three micro-batches, which rounds.
COTANGENTS = (1.0, 1 / 3)
#: How many cases are drawn.
DRAWN = 200


def assert_twins(
    torch_balancer: Callable[[dict[str, Any]], Any],
    jax_balancer: Callable[[dict[str, Any]], Any],
    *,
    cases: int | Iterable[Mapping[str, Any]] | None = None,
    steps: Iterable[Iterable[Mapping[str, Any]]] | None = None,
    names: Sequence[str] | None = None,
    formats: Sequence[str] | None = None,
    seed: int | None = None,
    lanes: Sequence[str] = DEFAULT_LANES,
    max_ulp: int = 0,
    cotangents: Sequence[float] = COTANGENTS,
    second_derivative: bool = False,
) -> None:
    """Asserts that two balancers give the same aggregate, and the same gradient to every loss, bit for bit.

    Both get the same losses, to the bit. What every lane gives is compared with what the first lane gives: dtype, shape and bits;
    any NaN equals any NaN, and -0 is not 0. Of an array without elements that is dtype and shape.

    A *case* is one loss dict. A *sequence* of ``steps`` is what twins with state need: loss dicts one after the other. For every
    case and every sequence both balancers begin afresh, and then do, for each loss dict:

    - a forward and a gradient for each cotangent, as of micro-batches: the second forward finds the state that the first one left;
    - `weights(losses)`, if both have that method: a mapping from name to number or array, of the same names;
    - in sequences, `step()`, if both have it, and then the state: what `export_state()["state"]` holds if both have that
      method, else each buffer (torch) and variable (NNX) of a name that both have.

    Not compared: a method or an entry of the state that only one of the two has; state that is kept outside of a module, which does
    not begin afresh either; a trace that a JAX balancer leaves in Python, which compiled lanes run once. The weights and the
    commit run in Python in the lanes of PyTorch, and in the compiled program in those of JAX.

    Args:
        torch_balancer: From a dict of tensors to a tensor: a module, which is copied, or a function.
        jax_balancer: From a dict of arrays to an array: an NNX module, which is copied, or a function.
        cases: How many cases to draw (see `drawn_cases`), or loss dicts: name to a number (taken as float32), to
            (format, number), the formats being bf16, f16, f32 and f64, or to a NumPy, torch or JAX array. Default: 200 drawn
            ones, none beside ``steps``.
        steps: Sequences of loss dicts, each written as a case. All dicts of a sequence have the same names in the same order,
            formats and shapes.
        names: The names of the losses of drawn cases. Default: ``MSELoss_0`` and ``student_loss``.
        formats: The formats of drawn cases: of bf16, f16, f32, f64 and mixed. Default: all but f64.
        seed: Of drawn cases. Default 0.
        lanes: Where to run: ``torch-DEVICE-MODE`` with a mode of eager, compiled, vmap or step, ``jax-DEVICE-MODE`` with one of
            eager, jit, vmap, scan, remat or step; the device is any that the framework reports. At least one of each framework.
            A step computes the losses in the graph that balances them.
        max_ulp: How many numbers of the format a result may be off. Default 0: none. An infinity or a NaN is off by more than any.
        cotangents: What is sent back from the aggregate, rounded to its format, each through a forward of its own. Default: 1 and
            1/3.
        second_derivative: Whether to differentiate the gradient to each loss again, to every loss and to the cotangent. The lanes
            torch-DEVICE-compiled and -step do without: `torch.compile` has no second backward.

    Raises:
        AssertionError: They differ; says where first, with the losses and each lane's result in hex, and how often.
        TypeError: A case, or what a balancer returns, is of the wrong type.
        ValueError: There are no cases, or all that was compared has no elements; a name, a format or a lane is unknown; an
            aggregate has a shape of its own; no lane of PyTorch has second derivatives.
        LaneAbsentError: This machine cannot run one of the lanes, or would run something else than its name says.

    Example:
        >>> from loss_balancers.parity import assert_twins
        >>> assert_twins(lambda loss: loss["MSELoss_0"] * 0.5, lambda loss: loss["MSELoss_0"] * 0.5, cases=[{"MSELoss_0": 3.0}])
    """
    __tracebackhide__ = True  # a failure shows the caller's line
    if isinstance(max_ulp, bool) or not isinstance(max_ulp, int) or max_ulp < 0:
        raise ValueError(f"`max_ulp` must be an int of at least 0. Received {max_ulp!r}. Pass 0 for the same bits.")
    if not cotangents or not all(math.isfinite(cotangent) for cotangent in cotangents):
        raise ValueError(f"`cotangents` must be at least one finite number. Received {cotangents!r}. Pass (1.0,) for `backward()`.")
    runs = []
    if cases is not None or steps is None:
        losses = _losses(DRAWN if cases is None else cases, names, formats, seed)
        runs += [Run(f"case {index}", [one], commits=False) for index, one in enumerate(losses)]
    else:
        _only_for_drawn("`steps` holds", names, formats, seed)
    if steps is not None:
        runs += [Run(f"sequence {index}", sequence, commits=True) for index, sequence in enumerate(read_steps(steps))]
    read = read_lanes(lanes)
    if second_derivative:
        _check_second(read)
    check_present(read)
    balancers = {"torch": torch_balancer, "jax": jax_balancer}
    plan = plan_of(torch_balancer, jax_balancer, tuple(cotangents), second_derivative)
    outcomes = {lane.name: run_twin(lane, balancers[lane.framework], runs, plan) for lane in read}
    rows = rows_of(runs, outcomes)
    found = differences(rows, max_ulp)
    if found:
        raise AssertionError(message(rows, runs, found, max_ulp))
    if not elements(rows):
        raise ValueError(
            "Nothing was compared but dtypes and shapes: no result of any case has an element. Pass losses with elements."
        )


def _check_second(lanes: Sequence[TwinLane]) -> None:
    if not any(lane.framework == "torch" and lane.mode in ("eager", "vmap") for lane in lanes):
        raise ValueError(
            f"`second_derivative` needs a lane torch-DEVICE-eager or torch-DEVICE-vmap: `torch.compile` has no second backward. "
            f"Received {[lane.name for lane in lanes]}. Add torch-cpu-eager."
        )


def _losses(
    cases: int | Iterable[Mapping[str, Any]], names: Sequence[str] | None, formats: Sequence[str] | None, seed: int | None
) -> list[Losses]:
    if isinstance(cases, int):
        if names is None:
            names = NAMES
        return read_cases(drawn_cases(cases, names=names, formats=LABELS if formats is None else formats, seed=seed or 0))
    _only_for_drawn("`cases` holds", names, formats, seed)
    return read_cases(cases)


def _only_for_drawn(why: str, names: Any, formats: Any, seed: Any) -> None:
    given = [word for word, value in {"names": names, "formats": formats, "seed": seed}.items() if value is not None]
    if given:
        raise ValueError(
            f"`{'`, `'.join(given)}` are for drawn cases, and {why} loss dicts. Leave them out, or pass a number of cases."
        )


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
