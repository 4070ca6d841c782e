"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Writes beside, then renames: an interrupted run leaves what was there before."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def write_json(file: Path, data: Any) -> None:
    """Data as JSON, whole or not there."""
    write_text(file, json_text(data))


def json_text(data: Any) -> str:
    """Data as JSON, as this library's files have it."""
    return json.dumps(data, indent=2) + "\n"
