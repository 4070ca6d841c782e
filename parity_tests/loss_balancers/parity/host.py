"""What a certificate says about the machine: host, framework versions, devices, and the flags that compilers take bits from.

Everything is read, nothing is set. The worker processes that run the lanes inherit the environment, and nothing in this kit
changes a flag that bits may depend on, so what is read here is what they had.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "numpy")
#: Longest text that a certificate takes, and longest flag.
TEXT_LIMIT, FLAG_LIMIT = 200, 4000

Flag = str | bool | None


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


def flags() -> dict[str, Flag]:
    """The flags of compilers and frameworks that can change bits: from the environment, JAX, torch and Inductor."""
    named = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"]
    # Folders, such as TORCHINDUCTOR_CACHE_DIR, change no bits and say where a user lives.
    named += sorted(name for name in os.environ if name.startswith("TORCHINDUCTOR_") and not name.endswith("_DIR"))
    environment = {f"env.{clean(name)}": os.environ.get(name) for name in named}
    found = {**environment, **_jax_flags(), **_torch_flags()}
    return {name: value if value is None or isinstance(value, bool) else clean(value, FLAG_LIMIT) for name, value in found.items()}


def _jax_flags() -> dict[str, Any]:
    import jax

    names = ("jax_default_matmul_precision", "jax_enable_x64")
    return {f"jax.{name}": getattr(jax.config, name) for name in names}


def _torch_flags() -> dict[str, Any]:
    import torch
    import torch._inductor.config as inductor

    names = (
        "emulate_precision_casts",
        "use_fast_math",
        "cpp.enable_unsafe_math_opt_flag",
        "cpp.enable_floating_point_contract_flag",
    )
    options = inductor.get_config_copy()
    return {
        "torch.deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.float32_matmul_precision": torch.get_float32_matmul_precision(),
        # There is no getter; what a subnormal times 1 gives, tells.
        "torch.flush_denormal": bool(torch.tensor(2.0**-130, dtype=torch.float32, device="cpu").mul(1.0) == 0),
        **{f"inductor.{name}": options.get(name) for name in names},
    }


def clean(text: object, limit: int = TEXT_LIMIT) -> str:
    """Text that prints on one line: what is not printable becomes "?"; what is too long is cut."""
    whole = "".join(c if c.isprintable() else "?" for c in str(text))
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"
