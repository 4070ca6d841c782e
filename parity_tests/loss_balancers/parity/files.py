"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loss_balancers.spec.whole_files import write_whole

#: How many characters of JSON stand on one line: of an element of a list, which is a row of a table, and of anything else.
_ROW, _SHORT = 4000, 120


def write_text(file: Path, text: str) -> None:
    """Writes text as UTF-8: an interrupted run leaves what was there before. Devices and pipes are written into."""
    write_whole(file, text.encode("utf-8"))


def write_json(file: Path, data: Any) -> None:
    """Data as JSON, whole or not there."""
    write_text(file, json_text(data))


def json_text(data: Any) -> str:
    """Data as JSON, as this library's files have it: an object or a list stands on one line if it is short, or a row."""
    return _laid_out(data, "", _SHORT) + "\n"


def _laid_out(data: Any, margin: str, most: int) -> str:
    short = json.dumps(data)
    if len(short) <= most or not isinstance(data, (dict, list)):
        return short
    inner = f"{margin}  "
    if isinstance(data, dict):
        rows = [f"{json.dumps(name)}: {_laid_out(value, inner, _SHORT)}" for name, value in data.items()]
    else:
        rows = [_laid_out(value, inner, _ROW) for value in data]
    lines = ",\n".join(f"{inner}{row}" for row in rows)
    return f"{short[0]}\n{lines}\n{margin}{short[-1]}"
