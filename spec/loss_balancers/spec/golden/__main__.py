"""``python -m loss_balancers.spec.golden``: writes the golden vectors again, beside this file."""

from __future__ import annotations

import os
from pathlib import Path

from loss_balancers.spec.golden.static import static_vectors

if __name__ == "__main__":
    target = Path(__file__).with_name("static.json")
    beside = target.with_suffix(".new")
    beside.write_text(static_vectors(), "ascii")
    os.replace(beside, target)
    print(f"wrote {target}")
