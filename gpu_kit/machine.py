"""What the host is: versions, driver, device, switches."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from gpu_kit.figures import NOT_HERE, first_line, record
from loss_balancers.parity.certificates.host import host
from loss_balancers.parity.lanes.switches import flags_of
from loss_balancers.parity.text import clean

#: Distributions whose versions matter to what is computed, and to how fast.
PACKAGES = (
    "torch",
    "triton",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "ml-dtypes",
    "jaxtyping",
    "nvidia-",
    "jax-cuda",
    "loss-balancers",
)
#: What nvidia-smi is asked: nothing that tells one card from another of its kind, or who it belongs to.
QUESTIONS = ("name", "driver_version", "compute_cap", "memory.total", "power.limit", "clocks.max.sm", "mig.mode.current")


def basics(device: str) -> dict[str, Any]:
    """What can be told without either framework."""
    found = {d.name.lower().replace("_", "-"): d.version for d in distributions() if d.name}
    versions = {name: found[name] for name in sorted(found) if name.startswith(PACKAGES)}
    return {
        "host": host(),
        "cores": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "versions": versions,
        "driver": _driver(device),
    }


def _driver(device: str) -> Any:
    if device != "cuda":
        return NOT_HERE
    command = ["nvidia-smi", f"--query-gpu={','.join(QUESTIONS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return clean(first_line(error))
    rows = [[clean(field.strip()) for field in line.split(",")] for line in done.stdout.splitlines()]
    if any(len(row) != len(QUESTIONS) for row in rows):  # a message, such as that no device was found
        return clean(done.stdout.strip())
    return [dict(zip(QUESTIONS, row, strict=True)) for row in rows]


def describe(framework: str, device: str, folder: Path) -> None:
    """What one framework says of the device, and its switches."""
    record(folder, "host", framework, value=_torch(device) if framework == "torch" else _jax(device))
    record(folder, "host", "switches", framework, value=flags_of(framework))


def _torch(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    if device == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {"device": torch.cuda.get_device_name(), "capability": f"sm_{major}{minor}", "count": torch.cuda.device_count()}
        found["allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
    return found


def _jax(device: str) -> dict[str, Any]:
    import jax

    devices = jax.devices(device)
    return {
        "version": jax.__version__,
        "device": devices[0].device_kind,
        "count": len(devices),
        "platform": devices[0].client.platform_version,
    }
