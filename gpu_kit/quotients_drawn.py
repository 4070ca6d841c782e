"""A million drawn quotients of each format, and as many `exp`, `log` and `sqrt`, on every lane, against the exact ones, as bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import elementary
import numpy as np
from quotients import drawn, exact, x64

from gpu_kit.figures import first_line, record
from loss_balancers.parity.bits import array_bits, as_numpy, describe

Function = Callable[..., Any]


def run(framework: str, device: str, folder: Path) -> int:
    """Writes after each lane how many results were drawn, and how many differ: by format of quotients, by name of functions."""
    failed = 0
    of_functions = {"torch": _torch_functions, "jax": _jax_functions}[framework]
    for fmt in ("f32", "f64"):
        a, b = drawn(fmt)
        wanted = exact(a, b)
        for mode, make in _torch(device) if framework == "torch" else _jax(device, fmt):
            found = _tried(lambda make=make: make()(a, b), wanted, fmt)  # noqa: B023
            failed |= "failed" in found
            record(folder, "quotients", f"{framework}-{device}-{mode}", fmt, value=found)
    for name in elementary.NAMES:
        x = elementary.drawn(name)
        wanted = elementary.exact(name, x)
        for mode, make in of_functions(device, name):
            found = _tried(lambda make=make: make()(x), wanted, "f32")  # noqa: B023
            failed |= "failed" in found
            record(folder, "quotients", f"{framework}-{device}-{mode}", name, value=found)
    return failed


def _tried(compute: Callable[[], Any], wanted: np.ndarray, fmt: str) -> dict[str, Any]:
    """What one lane gives. One that fails stops no other."""
    try:
        return compared(compute(), wanted, fmt)
    except Exception as error:
        return {"failed": first_line(error)}


def compared(given: Any, wanted: np.ndarray, fmt: str) -> dict[str, Any]:
    """How many values differ in their bits (any NaN is as good as another), and the first that does."""
    actual = as_numpy(given)
    if (actual.dtype, actual.shape) != (wanted.dtype, wanted.shape):
        raise TypeError(f"got {actual.dtype} of shape {actual.shape}, not {wanted.dtype} of {wanted.shape}")
    bits, expected = array_bits(given), array_bits(wanted)
    differ = (bits != expected) & ~(np.isnan(actual) & np.isnan(wanted))
    found: dict[str, Any] = {"drawn": len(wanted), "differ": int(differ.sum())}
    if found["differ"]:
        first = int(np.flatnonzero(differ)[0])
        found["first"] = f"[{first}]: {describe(int(bits[first]), int(expected[first]), fmt)}"
    return found


def _torch(device: str) -> Iterator[tuple[str, Callable[[], Function]]]:
    from quotients_torch import LANES

    yield from ((mode, _on_torch(device, make)) for mode, make in LANES.items())


def _torch_functions(device: str, name: str) -> Iterator[tuple[str, Callable[[], Function]]]:
    from elementary_torch import LANES, function

    yield from ((mode, _on_torch(device, lambda lane=lane: lane(function(name)))) for mode, lane in LANES.items())


def _on_torch(device: str, make: Callable[[], Any]) -> Callable[[], Function]:
    import torch

    def made() -> Function:
        torch.compiler.reset()
        function = make()
        return lambda *operands: function(*(torch.from_numpy(x).to(device) for x in operands))

    return made


def _jax(device: str, fmt: str) -> Iterator[tuple[str, Callable[[], Function]]]:
    from quotients_jax import LANES

    # `x64` holds where arrays enter and leave: the functions are the same for both formats.
    yield from ((mode, lambda divide=divide: _on_jax(device, divide, fmt)) for mode, divide in LANES.items())


def _jax_functions(device: str, name: str) -> Iterator[tuple[str, Callable[[], Function]]]:
    from elementary_jax import LANES, function

    yield from ((mode, lambda lane=lane: _on_jax(device, lane(function(name)), "f32")) for mode, lane in LANES.items())


def _on_jax(device: str, function: Any, fmt: str) -> Function:
    import jax

    def on_device(*operands: np.ndarray) -> Any:
        with x64(fmt), jax.default_device(jax.local_devices(backend=device)[0]):
            return np.asarray(function(*operands))

    return on_device
