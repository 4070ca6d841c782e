"""How a balancer carries its state: NNX variables, their axis, and a counter that JAX must not compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from flax.errors import TraceContextError
from jax import Array
from jax.core import Tracer

from loss_balancers.spec import errors


@nnx.register_variable_name("balancer_state")
class BalancerState(nnx.Variable):
    """One entry of a balancer's state: select all of it with ``nnx.state(model, BalancerState)``."""


@nnx.register_variable_name("balancer_table")
class BalancerTable(nnx.Variable):
    """A balancer's weights at every step. It follows from the settings and never changes: no checkpoint needs it.

    XLA copies what a compiled function takes and returns as it is. `nnx.jit` in graph mode returns all variables; in tree mode,
    ``graph=False``, or with the table split off by ``nnx.split(model, BalancerState, ...)``, a long table costs a step nothing.
    """


#: What to do about a balancer without values.
OUTSIDE_OF_EVAL_SHAPE = "Build it outside of `nnx.eval_shape` first."

#: What to do about state that is stacked.
_WITHIN_VMAP = (
    "If `nnx.vmap` made a stack of balancers, use it within `nnx.vmap`, or take one out of it: "
    "`nnx.merge(graphdef, jax.tree.map(lambda x: x[0], state))`, with both from `nnx.split`."
)

#: In Flax 0.10 ``variable[...]`` indexes the array and scatters into it, with a transfer to the device each time.
_BY_VALUE = not hasattr(nnx.Variable, "get_value")


def read(variable: nnx.Variable) -> Array:
    """The value of a variable."""
    return variable.value if _BY_VALUE else variable[...]


def check_held(variables: Mapping[str, nnx.Variable], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises unless each variable has values, in its shape.

    Raises:
        RuntimeError: A variable is abstract, or has another shape: an axis more, say, in a balancer that `nnx.vmap` made.
    """
    for name, variable in variables.items():
        value = variable.value if _BY_VALUE else variable.get_value()  # what is abstract cannot be read
        if isinstance(value, jax.ShapeDtypeStruct):
            raise errors.no_values_to_use("abstract", OUTSIDE_OF_EVAL_SHAPE)
        if value.shape != shapes[name]:
            raise errors.state_shape(name, shapes[name], value.shape, _WITHIN_VMAP)


def write(variable: BalancerState, value: Array) -> None:
    """Gives a variable its next value.

    Raises:
        RuntimeError: The variable comes from outside the transform that is running, and the value could not get out.
    """
    try:
        if _BY_VALUE:
            variable.value = value
        else:
            variable[...] = value
    except TraceContextError as error:
        raise errors.across_a_transform() from error


def check_axis_name(axis_name: Any) -> None:
    """Raises unless ``axis_name`` is the name of an axis, a tuple of names, or None."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if axis_name is not None and not (names and all(isinstance(name, str) for name in names)):
        raise errors.axis_name_type(axis_name)


class Forwards:
    """How many training calls there were before the first `step()`, or the first `update()`; -1 from then on.

    Kept out of what JAX compares, like `WarnedOnce`.
    """

    def __init__(self) -> None:
        self.count = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forwards)

    def __hash__(self) -> int:
        return hash(Forwards)


class Unchanged:
    """How many training calls there were since the last `step()`, and the array that the parameter was at the first of them.

    -1 once it is known whether something trains the parameter. Kept out of what JAX compares, like `Forwards`. While a call is
    traced the array is not there; then the one of the `step()` before stands for it.
    """

    def __init__(self) -> None:
        self._count, self._first = 0, None

    def begin(self, array: Array | None = None) -> None:
        """A step has ended, at which the parameter was this array."""
        self._count, self._first = min(self._count, 0), None if isinstance(array, Tracer) else array

    def counted(self, array: Array) -> int:
        """Counts a call. Returns how many there were."""
        if self._count >= 0:
            self._count += 1
            if self._first is None and not isinstance(array, Tracer):
                self._first = array
        return self._count

    def holds(self, array: Array) -> bool:
        """Whether there were calls, and the parameter still is what it was at the first of them. A step has ended."""
        if self._count <= 0 or self._first is None or isinstance(array, Tracer):
            self.begin(array)
            return False
        first, self._count, self._first = self._first, -1, None
        return array is first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unchanged)

    def __hash__(self) -> int:
        return hash(Unchanged)
