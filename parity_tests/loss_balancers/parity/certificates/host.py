"""What a certificate says about the machine: host, framework versions and devices."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loss_balancers.parity.text import clean

FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "numpy")


def host() -> dict[str, str]:
    """Python, machine, system, and the processor's model."""
    return {
        "python": clean(platform.python_version()),
        "machine": clean(platform.machine()),
        "system": clean(platform.system()),
        "processor": processor(),
    }


def processor() -> str:
    """The model of the CPU as the system names it; the architecture where it names none."""
    return clean(_linux_model() or _mac_model() or platform.processor() or platform.machine())


def _linux_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _mac_model() -> str:
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def frameworks() -> dict[str, str]:
    """The version of each framework, "absent" where it is not installed."""
    return {name: clean(_version(name)) for name in FRAMEWORKS}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def device_kind(framework: str, device: str) -> str:
    """The device as the framework names its kind, such as "NVIDIA H200" or "TPU v6 lite"; for a CPU its model."""
    if device == "cpu":
        return processor()
    try:
        return clean(_torch_kind(device) if framework == "torch" else _jax_kind(device))
    except (AttributeError, RuntimeError):  # a back end without a name for its devices
        return clean(device)


def _torch_kind(device: str) -> str:
    import torch

    return torch.get_device_module("cuda" if device == "rocm" else device).get_device_name()


def _jax_kind(device: str) -> str:
    import jax

    return jax.devices(device)[0].device_kind
