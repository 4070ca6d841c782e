"""``python -m loss_balancers.spec.golden``: writes the golden vectors again, beside this file."""

from __future__ import annotations

from pathlib import Path

from loss_balancers.spec.golden.files import FILES
from loss_balancers.spec.whole_files import write_whole

if __name__ == "__main__":
    for stem, text in FILES.items():
        target = Path(__file__).with_name(f"{stem}.json")
        write_whole(target, text().encode("ascii"))
        print(f"wrote {target}")
