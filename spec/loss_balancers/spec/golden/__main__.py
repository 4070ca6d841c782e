"""``python -m loss_balancers.spec.golden``: writes the golden vectors again, beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

from loss_balancers.spec.golden.files import FILES, unregistered
from loss_balancers.spec.whole_files import write_whole

if __name__ == "__main__":
    if unlisted := unregistered():
        sys.exit(f"spec/registry.py does not list the balancers of {', '.join(unlisted)}. Add their settings there.")
    for stem, text in FILES.items():
        target = Path(__file__).with_name(f"{stem}.json")
        write_whole(target, text().encode("ascii"))
        print(f"wrote {target}")
