"""What a certificate says about the machine: host, framework versions, devices, and the flags that compilers take bits from.

Everything is read, nothing is set. Lanes run in worker processes: these inherit the environment, but not what a program has
turned in Python, so the flags of a lane are read where it ran.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loss_balancers.parity.lanes import why_no_framework

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


#: Variables of the environment that compilers and frameworks take bits from, and the beginnings of others.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "TORCHDYNAMO_DISABLE")
_BEGINNINGS = ("TORCHINDUCTOR_", "TORCH_COMPILE_")

#: Switches of JAX, of PyTorch and of Inductor, each with what it is where nobody turned it.
_JAX = {
    "jax_default_matmul_precision": None,
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_numpy_dtype_promotion": "standard",
}
_TORCH = {
    "deterministic_algorithms": False,
    "float32_matmul_precision": "highest",
    "flush_denormal": False,
    "default_dtype": "torch.float32",
    "compile_stance": "default",
    "dynamo_disable": False,
    "dynamo_suppress_errors": False,
}
_INDUCTOR = {
    "emulate_precision_casts": False,
    "use_fast_math": False,
    "fallback_by_default": False,
    "cpp.enable_unsafe_math_opt_flag": False,
    "cpp.enable_floating_point_contract_flag": "off",
}
_UNTOUCHED: dict[str, Flag] = {
    **{f"jax.{name}": value for name, value in _JAX.items()},
    **{f"torch.{name}": value for name, value in _TORCH.items()},
    **{f"inductor.{name}": value for name, value in _INDUCTOR.items()},
}
#: The one flag that a lane of this kit sets (`jax-cpu-sharded`). How many devices a CPU is, changes no bits.
_OURS = re.compile(r"--xla_force_host_platform_device_count=\d+")


def flags() -> dict[str, Flag]:
    """The flags of compilers and frameworks that can change bits, as they are in this process."""
    return flags_of("jax") | flags_of("torch")


def flags_of(framework: str) -> dict[str, Flag]:
    """Those that a lane of the framework runs with, as they are in this process: from the environment, and from Python."""
    # Folders, such as TORCHINDUCTOR_CACHE_DIR, change no bits and say where a user lives.
    begin_so = sorted(name for name in os.environ if name.startswith(_BEGINNINGS) and not name.endswith("_DIR"))
    environment = {f"env.{clean(name)}": os.environ.get(name) for name in (*_VARIABLES, *begin_so)}
    found = {name: value for name, value in environment.items() if concerns(name, framework)}
    found |= _switches(framework)
    return {name: value if value is None or isinstance(value, bool) else clean(value, FLAG_LIMIT) for name, value in found.items()}


def turned(flags: Mapping[str, Flag]) -> dict[str, Flag]:
    """The flags that are not what they are where nobody turned them; any that is set in the environment.

    None is a switch that the framework's version does not have, or JAX's default.
    """
    without_ours = {name: _OURS.sub("", value).strip() if isinstance(value, str) else value for name, value in flags.items()}
    return {
        name: value
        for name, value in without_ours.items()
        if (value if name.startswith("env.") else value is not None and name in _UNTOUCHED and value != _UNTOUCHED[name])
    }


def concerns(flag: str, framework: str) -> bool:
    """Whether a flag is one that a lane of the framework takes bits from."""
    of_torch = flag.startswith(("torch.", "inductor.", "env.TORCH"))
    of_jax = flag.startswith(("jax.", "env.XLA_", "env.LIBTPU_"))
    return not (of_torch if framework == "jax" else of_jax)


def _switches(framework: str) -> dict[str, Flag]:
    """Those of a framework and its compiler; None each, where it cannot be used."""
    if why_no_framework(framework) is not None:
        return {name: None for name in _UNTOUCHED if name.startswith("jax.") is (framework == "jax")}
    return _jax_flags() if framework == "jax" else _torch_flags()


def _jax_flags() -> dict[str, Any]:
    import jax

    # What a context manager has set only an attribute knows, and not every switch is one.
    values = {name: getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.read(name) for name in _JAX}
    return {f"jax.{name}": value if value is None or isinstance(value, bool) else str(value) for name, value in values.items()}


def _torch_flags() -> dict[str, Any]:
    import torch
    import torch._dynamo
    import torch._inductor.config as inductor

    stance, dynamo = torch._dynamo.eval_frame._stance, torch._dynamo.config
    options = inductor.get_config_copy()
    return {
        "torch.deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.float32_matmul_precision": torch.get_float32_matmul_precision(),
        # There is no getter; what a subnormal times 1 gives, tells.
        "torch.flush_denormal": bool(torch.tensor(2.0**-130, dtype=torch.float32, device="cpu").mul(1.0) == 0),
        "torch.default_dtype": str(torch.get_default_dtype()),
        "torch.compile_stance": stance.stance if stance.backend is None else f"{stance.stance}, {stance.backend}",
        "torch.dynamo_disable": dynamo.disable,
        "torch.dynamo_suppress_errors": dynamo.suppress_errors,
        **{f"inductor.{name}": options.get(name) for name in _INDUCTOR},
    }


def clean(text: object, limit: int = TEXT_LIMIT) -> str:
    """Text that prints on one line: what is not printable becomes "?"; what is too long is cut."""
    whole = "".join(c if c.isprintable() else "?" for c in str(text))
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"
