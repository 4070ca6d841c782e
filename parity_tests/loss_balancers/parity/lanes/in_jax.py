"""The lanes of JAX: every mode, on every platform that it reports."""

from __future__ import annotations

import os
from functools import cache, partial

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np

from loss_balancers.parity.jax_versions import enable_x64
from loss_balancers.parity.lanes.absent import absent_lanes, why_no_format
from loss_balancers.parity.lanes.jax_compiled import why_not_compiled
from loss_balancers.parity.lanes.jax_modes import MODES, SHARDED, run_in_jax
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.own_process import in_own_process
from loss_balancers.spec import FORMATS


def jax_lanes() -> list[Lane]:
    """Every mode, on each platform; those of known devices that are not here too."""
    platforms = list(jax.extend.backend.backends())
    present = [_lane(platform, mode) for platform in platforms for mode in MODES]
    return [*present, *absent_lanes("jax", platforms, MODES, "JAX")]


def _lane(platform: str, mode: str) -> Lane:
    run = partial(run_in_jax, platform, mode)
    lane = Lane("jax", platform, mode, run, why_no_format=partial(_why_no_format, platform), at_once=mode == "eager")
    if mode != "eager":
        lane = lane._replace(why_absent=why_not_compiled)
    if mode not in SHARDED:
        return lane
    if platform == "cpu":
        return lane._replace(run=partial(in_own_process, _eight_cpus(), run), at_once=True)
    return lane._replace(why_absent=partial(_why_not_sharded, platform))


def _eight_cpus() -> dict[str, str]:
    """The environment in which JAX makes eight devices of one CPU: it must be set before JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    return {"XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}  # -1: not that way, which excludes the flag


def _why_not_sharded(platform: str) -> str | None:
    count = jax.local_device_count(platform)
    return f"JAX reports {count} {platform} device; there is nothing to shard over" if count < 2 else why_not_compiled()


@cache
def _why_no_format(platform: str, fmt: str) -> str | None:
    def add(a: float, b: float) -> float:
        with enable_x64(fmt == "f64"), jax.default_device(jax.local_devices(backend=platform)[0]):
            x, y = (jnp.asarray(np.asarray(value, jnp.dtype(FORMATS[fmt].dtype))) for value in (a, b))  # type: ignore[index]
            return float(x + y)

    return why_no_format(platform, FORMATS[fmt], add)  # type: ignore[index]
