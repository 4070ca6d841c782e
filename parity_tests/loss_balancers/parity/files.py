"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loss_balancers.spec.whole_files import write_whole


def write_text(file: Path, text: str) -> None:
    """Writes text as UTF-8: an interrupted run leaves what was there before. Devices and pipes are written into."""
    write_whole(file, text.encode("utf-8"))


def write_json(file: Path, data: Any) -> None:
    """Data as JSON, whole or not there."""
    write_text(file, json_text(data))


def json_text(data: Any) -> str:
    """Data as JSON, as this library's files have it."""
    return json.dumps(data, indent=2) + "\n"
