"""Comparison as bits: of numbers in a format, and of arrays of either framework."""

from __future__ import annotations

import math
import struct
from typing import Any, Literal

import numpy as np

_PACK = {"f16": ("<e", "<H"), "f32": ("<f", "<I"), "f64": ("<d", "<Q")}
_WIDTH = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "i32": 32}
#: dtype name to format name: those of losses, and that of the counters in a balancer's state.
FORMAT_OF_DTYPE = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64", "int32": "i32"}


def to_bits(value: float, fmt: str) -> int:
    """The bits of a value that the format represents.

    Raises:
        ValueError: The format does not represent the value.
    """
    if fmt == "bf16":
        bits = to_bits(value, "f32")
        if bits & 0xFFFF and not math.isnan(value):
            raise ValueError(f"{value.hex()} is no bf16 value")
        return bits >> 16 | (0x40 if math.isnan(value) else 0)
    if fmt == "i32":
        if value != int(value) or not -(2**31) <= value < 2**31:
            raise ValueError(f"{value.hex()} is no i32 value")
        return int(value) % 2**32
    float_code, int_code = _PACK[fmt]
    bits = struct.unpack(int_code, struct.pack(float_code, value))[0]
    if not math.isnan(value) and from_bits(bits, fmt) != value:
        raise ValueError(f"{value.hex()} is no {fmt} value")
    return bits


def from_bits(bits: int, fmt: str) -> float:
    """The value that the bits stand for."""
    if fmt == "bf16":
        return from_bits(bits << 16, "f32")
    if fmt == "i32":
        return float(_ordered(bits, fmt))
    float_code, int_code = _PACK[fmt]
    return struct.unpack(float_code, struct.pack(int_code, bits))[0]


def ulp_distance(a: int, b: int, fmt: str) -> int | None:
    """How many numbers of the format lie from ``a`` to ``b`` (both bits); None where one of them is NaN. -0 to +0 is 1."""
    if math.isnan(from_bits(a, fmt)) or math.isnan(from_bits(b, fmt)):
        return None
    return abs(_ordered(a, fmt) - _ordered(b, fmt))


def _ordered(bits: int, fmt: str) -> int:
    sign = 1 << (_WIDTH[fmt] - 1)
    if fmt == "i32":
        return bits if bits < sign else bits - 2 * sign
    return bits if bits < sign else sign - 1 - bits  # -0 comes right below +0


def same(a: int, b: int, fmt: str) -> bool:
    """Whether two results agree: equal bits, or both NaN (which NaN it is, is the hardware's business)."""
    return a == b or (math.isnan(from_bits(a, fmt)) and math.isnan(from_bits(b, fmt)))


def as_numpy(x: Any) -> np.ndarray:
    """An array of either framework as NumPy has it, the dtype and the bytes unchanged."""
    if hasattr(x, "detach"):  # torch
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()
    return np.asarray(x)


def array_bits(x: Any) -> np.ndarray:
    """The bits of every element, as unsigned integers. Of PyTorch's bfloat16 too where ml_dtypes is not installed."""
    if _dtype_of(x) == "bfloat16" and hasattr(x, "detach"):
        import torch

        x = x.detach().view(torch.int16)
    array = np.ascontiguousarray(as_numpy(x)).reshape(np.shape(x))
    return array.view(f"u{array.dtype.itemsize}")


def _dtype_of(x: Any) -> str:
    """The dtype of an array of either framework, by NumPy's name; one of the other byte order has another name."""
    return str(x.dtype).removeprefix("torch.") if hasattr(x, "detach") else str(np.asarray(x).dtype)


def _is_nan(x: Any) -> np.ndarray:
    return array_bits(x) & 0x7FFF > 0x7F80 if _dtype_of(x) == "bfloat16" else np.isnan(as_numpy(x))


def assert_same_bits(actual: Any, expected: Any, *, nan: Literal["bits", "class"] = "bits") -> None:
    """Asserts that two arrays have one dtype, one shape and the same bytes.

    Stricter than `numpy.testing.assert_array_equal`, which takes -0 for 0 and float32 for float64.

    Args:
        actual: An array of torch, JAX or NumPy.
        expected: Another, of any of them.
        nan: "bits": a NaN equals only the NaN with its bits. "class": any NaN equals any.

    Raises:
        AssertionError: They differ; the message has the first index, both values in hex and their distance in ulp.
    """
    dtype, other = _dtype_of(actual), _dtype_of(expected)
    if dtype != other:
        raise AssertionError(f"dtypes differ: {dtype} is not {other}")
    a, b = array_bits(actual), array_bits(expected)
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {a.shape} is not {b.shape}")
    differ = a != b
    if nan == "class":
        differ &= ~(_is_nan(actual) & _is_nan(expected))
    if not differ.any():
        return
    index = tuple(int(i) for i in np.argwhere(differ)[0])
    if dtype in FORMAT_OF_DTYPE:
        words = describe(int(a[index]), int(b[index]), FORMAT_OF_DTYPE[dtype])
    else:
        words = f"{as_numpy(actual)[index]} is not {as_numpy(expected)[index]}"
    raise AssertionError(f"{int(differ.sum())} of {differ.size} elements differ, first at {index}: {words}")


def describe(actual: int, expected: int, fmt: str) -> str:
    """A difference in words: both values in hex, and how far apart they are."""
    ulp = ulp_distance(actual, expected, fmt)
    distance = "NaN against a number or another NaN" if ulp is None else f"{ulp} ulp"
    return f"{_hex(actual, fmt)} is not {_hex(expected, fmt)} ({fmt}, {distance})"


def _hex(bits: int, fmt: str) -> str:
    value = from_bits(bits, fmt)
    if fmt == "i32":
        return str(int(value))
    return f"nan:{bits:#x}" if math.isnan(value) else value.hex()
