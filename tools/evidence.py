"""`make evidence`: runs every lane of this machine, and writes what came out where the documents show it."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loss_balancers.parity.certificates.merge import merge
from loss_balancers.parity.certificates.reading import read_certificate
from loss_balancers.parity.files import write_text

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CERTIFICATE = ROOT / "docs" / "evidence" / "cpu-linux-x86_64.json"
PARITY = [sys.executable, "-c", "from loss_balancers.parity.cli import main; main()", "parity", "--certificate"]
#: What stands between these two comments of the README is written here, and compared by `test_docs.py`.
BLOCK = re.compile(r"(?<=<!-- matrix: begin, written by `make evidence` -->\n).*?(?=<!-- matrix: end -->)", re.DOTALL)


def main() -> int:
    """The exit status of `loss-balancers parity`. What is there stays where that is not 0."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        here = f"{platform.system()} on {platform.machine()}"
        sys.exit(f"{CERTIFICATE.name} is of Linux on x86_64, and this is {here}. Run `loss-balancers parity --certificate FILE`.")
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / CERTIFICATE.name
        status = subprocess.run([*PARITY, str(certificate)], check=False).returncode
        if status == 0:
            write_text(CERTIFICATE, certificate.read_text("utf-8"))
            write_text(README, BLOCK.sub(lambda _: matrix_block(), README.read_text("utf-8")))
    return status


def matrix_block() -> str:
    """The matrix of the certificate as the README shows it: lane x format, over all balancers."""
    matrix = merge([read_certificate(CERTIFICATE)])
    labels = matrix["labels"]
    rows = [
        [
            f"`{lane['id'].partition(':')[2]}`",
            *(_count(matrix, lane["id"], [label]) for label in labels),
            _count(matrix, lane["id"], labels),
        ]
        for lane in matrix["lanes"]
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [["lane", *labels, "all"], ["---", *["--:"] * (len(labels) + 1)], *rows])
    (host,) = matrix["certificates"]
    made = f"{host['host']['processor']}, PyTorch {host['frameworks']['torch']}, JAX {host['frameworks']['jax']}"
    total = f"{len(matrix['balancers'])} balancers, {len(matrix['lanes'])} lanes, {matrix['identical']:,} of {matrix['results']:,}"
    return f"{table}\n\n{total} results bit-identical ({made}).\n"


def _count(matrix: Mapping[str, Any], lane: str, labels: Sequence[str]) -> str:
    cells = [cell for cell in matrix["cells"] if cell["lane"] == lane and cell["label"] in labels]
    return f"{sum(cell['identical'] for cell in cells)}/{sum(cell['vectors'] for cell in cells)}" if cells else "–"


if __name__ == "__main__":
    sys.exit(main())
