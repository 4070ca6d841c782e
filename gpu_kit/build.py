"""`make gpu-kit`: the kit as a folder that can be carried to a host without network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: What the jobs use besides the package.
MODULES = (
    *(f"parity_tests/helpers/{name}.py" for name in ("captured", "quotients", "quotients_jax", "quotients_torch")),
    *(f"parity_tests/helpers/{name}.py" for name in ("elementary", "elementary_jax", "elementary_torch")),
    "benchmarks/harness.py",
)
LIMIT = 20 * 2**20


def build(folder: Path) -> int:
    """Builds the kit into a folder, which it replaces. Returns how many bytes it has."""
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", made, str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"The wheel cannot be built:\n{done.stdout}{done.stderr}")
        shutil.rmtree(folder, ignore_errors=True)
        (wheel,) = Path(made).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    shutil.copytree(
        ROOT / "gpu_kit", folder / "gpu_kit", ignore=shutil.ignore_patterns("__pycache__", "run", "README.md", "build.py")
    )
    for name in ("gpu_kit/run", "gpu_kit/README.md", *MODULES):
        shutil.copy(ROOT / name, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size >= LIMIT:
        sys.exit(f"{folder} has {size} bytes; it must stay under {LIMIT}.")
    return size


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(f"{target}: {build(target) / 2**20:.1f} MiB")
