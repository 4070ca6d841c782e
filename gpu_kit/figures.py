"""The files that jobs fill, several at a time: each is valid JSON at any moment, whoever is killed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loss_balancers.parity.files import write_json

#: What stands where a figure exists for CUDA alone.
NOT_HERE = "not on this device"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process changes a file of the folder. The system ends it for a process that is killed."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(folder: Path, name: str) -> dict[str, Any]:
    """The content of ``NAME.json``; empty where it is not there yet."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def change(folder: Path, name: str, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replaces the content of ``NAME.json`` by what ``changed`` makes of it."""
    with _alone(folder):
        write_json(folder / f"{name}.json", changed(read(folder, name)))


def record(folder: Path, name: str, *path: str, value: Any) -> None:
    """Sets one entry of ``NAME.json``: ``record(folder, "costs", "eager", "seconds", value=1)``."""

    def changed(data: dict[str, Any]) -> dict[str, Any]:
        at = data
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
        return data

    change(folder, name, changed)


def first_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
