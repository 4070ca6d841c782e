"""A million drawn quotients of each format on every lane, against the exact ones, as bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from quotients import drawn, exact, x64

from gpu_kit.figures import first_line, record
from loss_balancers.parity.bits import array_bits, as_numpy, describe

Quotient = Callable[[np.ndarray, np.ndarray], Any]


def run(framework: str, device: str, folder: Path) -> int:
    """Writes after each lane how many quotients were drawn, and how many differ."""
    failed = 0
    for fmt in ("f32", "f64"):
        a, b = drawn(fmt)
        wanted = exact(a, b)
        for mode, make in _torch(device) if framework == "torch" else _jax(device, fmt):
            name = f"{framework}-{device}-{mode}"
            try:
                found = compared(make()(a, b), wanted, fmt)
            except Exception as error:  # one lane that fails stops no other
                failed, found = 1, {"failed": first_line(error)}
            record(folder, "quotients", name, fmt, value=found)
    return failed


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


def _torch(device: str) -> Iterator[tuple[str, Callable[[], Quotient]]]:
    import torch
    from quotients_torch import LANES

    def of_device(make: Callable[[], Any]) -> Callable[[], Quotient]:
        def made() -> Quotient:
            torch.compiler.reset()
            divide = make()
            return lambda a, b: divide(*(torch.from_numpy(x).to(device) for x in (a, b)))

        return made

    yield from ((mode, of_device(make)) for mode, make in LANES.items())


def _jax(device: str, fmt: str) -> Iterator[tuple[str, Callable[[], Quotient]]]:
    import jax
    from quotients_jax import LANES

    def of_device(divide: Any) -> Quotient:
        def on_device(a: np.ndarray, b: np.ndarray) -> Any:
            with x64(fmt), jax.default_device(jax.local_devices(backend=device)[0]):
                return np.asarray(divide(a, b))

        return on_device

    # `x64` holds where arrays enter and leave: the functions are the same for both formats.
    yield from ((mode, lambda divide=divide: of_device(divide)) for mode, divide in LANES.items())
