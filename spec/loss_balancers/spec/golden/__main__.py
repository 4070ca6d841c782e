"""``python -m loss_balancers.spec.golden``: writes the golden vectors again, beside this file."""

from __future__ import annotations

import os
from pathlib import Path

from loss_balancers.spec.golden.files import FILES

if __name__ == "__main__":
    for stem, text in FILES.items():
        target = Path(__file__).with_name(f"{stem}.json")
        beside = target.with_suffix(".new")
        beside.write_text(text(), "ascii")
        os.replace(beside, target)
        print(f"wrote {target}")
