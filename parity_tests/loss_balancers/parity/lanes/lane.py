"""A lane: framework x device x mode. It runs golden vectors and hands back bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from loss_balancers.parity.golden.result import Result
from loss_balancers.spec import Group


class Lane(NamedTuple):
    """One way to run a balancer.

    ``run`` takes groups with as many sequences of as many steps each, and yields for each step of each sequence, one
    sequence after the other, the results of all groups. ``why_absent`` says why the
    lane cannot be run on this host, None if it can; it may take a while to find out. ``why_no_format`` says why the device
    lacks a format, such as ``f64``; a column that needs it is absent. ``here`` is whether this host has the device at all.
    ``at_once`` is whether one worker should run all columns, since its runs share work: each starts a process, or compiles
    operations that others need too.
    """

    framework: str
    device: str
    mode: str
    run: Callable[[Sequence[Group]], Iterator[list[Result]]]
    why_absent: Callable[[], str | None] = lambda: None
    why_no_format: Callable[[str], str | None] = lambda fmt: None
    here: bool = True
    at_once: bool = False

    @property
    def name(self) -> str:
        """``framework-device-mode``."""
        return f"{self.framework}-{self.device}-{self.mode}"

    def why_no_column(self, groups: Sequence[Group]) -> str | None:
        """Why this lane, though present, cannot run these groups; None if it can."""
        formats = dict.fromkeys(fmt for group in groups for fmt in (*group.formats.values(), group.result))
        return next((reason for fmt in formats if (reason := self.why_no_format(fmt)) is not None), None)
