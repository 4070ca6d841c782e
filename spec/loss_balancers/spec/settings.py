"""What the settings of all balancers have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from loss_balancers.spec import errors
from loss_balancers.spec.schedules import Schedule
from loss_balancers.spec.state import StateEntry, base_entries
from loss_balancers.spec.tables import Table

#: What the weights of a balancer are. "constants": numbers on the host, the same at every call. "tensors": scalars on the device,
#: made at every call. "derivatives": there are none, because the aggregate is a function of the losses; its derivative by each
#: loss, detached, is what `weights()` and `breakdown()` give in their place (spec T5).
WeightsAre = Literal["constants", "tensors", "derivatives"]


class Settings(ABC):
    """The validated settings of a balancer: a frozen dataclass that is hashable and round-trips through JSON.

    Each has ``balancer``, the class name; ``weights_are``, what its weights are; ``names``, the names of the losses if they are
    fixed, else empty; and ``state``, the entries of its state.
    """

    balancer: ClassVar[str]
    weights_are: ClassVar[WeightsAre] = "tensors"
    #: Arguments that came after the first version, and what stands for them where they are missing: JSON leaves them out then, so
    #: that a state that was saved without them loads.
    later: ClassVar[Mapping[str, Any]] = {}
    #: Whether a loss may be float64. Not where an exponential or a logarithm is taken of it, which there is in float32 alone.
    takes_float64: ClassVar[bool] = True
    #: Whether the balancer has `update()`, which observes the losses after the optimizer's step as well.
    updates: ClassVar[bool] = False
    #: Whether the balancer has `end_epoch()`.
    has_epochs: ClassVar[bool] = False

    @property
    def sees_losses(self) -> bool:
        """Whether factors are made of the losses of the call too, and not of committed state alone. If not, they may be kept."""
        return True

    @cached_property
    def table(self) -> Table | None:
        """The weights of every step, a column each; None for a balancer without schedules."""
        return None

    @property
    def state(self) -> tuple[StateEntry, ...]:
        """The entries of the balancer's state; none for a balancer without."""
        return ()

    @property
    def learned(self) -> tuple[StateEntry, ...]:
        """The entries that are parameters, which the user's optimizer trains; none for most balancers (spec P1)."""
        return ()

    @property
    def entries(self) -> tuple[StateEntry, ...]:
        """All that an exported state has."""
        return (*self.state, *self.learned)

    @property
    def can_change(self) -> bool:
        """Whether what the balancer gives for the same losses can change from step to step."""
        counters = len(base_entries(0))
        observes = len(self.state) > counters or any(entry.named for entry in self.entries)
        return observes or (self.table is not None and len(self.table) > 1)

    def as_json(self) -> dict[str, Any]:
        """The settings as a JSON object holds them: from the arguments' names to numbers, strings, lists and dicts."""
        held = {field.name: getattr(self, field.name) for field in fields(self) if field.init}  # type: ignore[reportArgumentType]
        return {name: _in_json(value) for name, value in held.items() if name not in self.later or value != self.later[name]}

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> Self:
        """The settings that `as_json` described, of an object with the right fields. Where there are schedules, it reads them."""
        return cls(**data)

    @classmethod
    @abstractmethod
    def examples(cls) -> Mapping[str, Settings]:
        """Two or three settings by id, for losses named `EXAMPLE_NAMES`: what the tests, the audit and the galleries draw from."""

    def arguments(self) -> dict[str, Any]:
        """The arguments by which either twin's class makes a balancer of these settings."""
        return {field.name: _as_given(getattr(self, field.name)) for field in fields(self) if field.init}  # type: ignore[reportArgumentType]

    def to_json(self) -> str:
        """The settings as the text of a JSON object."""
        return json.dumps(self.as_json())

    @classmethod
    def from_json(cls, given: str | Mapping[str, Any]) -> Self:
        """The settings that :meth:`to_json` wrote, or :meth:`as_json` returned.

        Raises:
            TypeError: As at construction.
            ValueError: As at construction, or ``given`` is not such a JSON object.
        """
        data: Any = given
        if isinstance(given, str):
            try:
                data = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise errors.not_json(cls.balancer, str(error)) from None
        names = [field.name for field in fields(cls) if field.init]  # type: ignore[reportArgumentType]
        if not isinstance(data, Mapping) or set(data) | set(cls.later) != set(names):
            received = list(data) if isinstance(data, Mapping) else [type(data).__name__]
            raise errors.unknown_setting(cls.balancer, received, names)
        return cls._of(data)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a pickle or a deep copy works its tables out again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[reportArgumentType]


def _as_given(held: Any) -> Any:
    """A setting in the form of its argument: a mapping is held as pairs."""
    return dict(held) if isinstance(held, tuple) and held and isinstance(held[0], tuple) else held


def _in_json(held: Any) -> Any:
    given = _as_given(held)
    if isinstance(given, Schedule):
        return given.as_json()
    if isinstance(given, dict):
        return {name: _in_json(value) for name, value in given.items()}
    return list(map(_in_json, given)) if isinstance(given, tuple) else given


def named_schedules(where: str, data: Any) -> dict[str, Schedule]:
    """Schedules by name, as JSON has them.

    Raises:
        ValueError: ``data`` is not a mapping, or one of its values is not a schedule.
    """
    if not isinstance(data, Mapping):
        raise errors.setting_value(where, "an object from name to schedule", data)
    return {name: Schedule.from_json(schedule) for name, schedule in data.items()}
