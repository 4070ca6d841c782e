"""The switches of compilers and frameworks that can change bits, as they are in this process.

Everything is read, nothing is set. Lanes run in worker processes: these inherit the environment, but not what a program has
turned in Python, so the flags of a lane are read where it ran.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from loss_balancers.parity.lanes.absent import why_no_framework
from loss_balancers.parity.text import clean

#: The longest flag that a certificate takes.
FLAG_LIMIT = 4000

Flag = str | bool | None

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
