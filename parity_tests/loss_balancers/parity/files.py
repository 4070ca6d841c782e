"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, data: Any) -> None:
    """Writes beside, then renames: an interrupted run leaves what was there before."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
