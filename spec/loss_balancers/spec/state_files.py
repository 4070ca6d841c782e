"""State files: an exported state as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from loss_balancers.spec import errors, registry
from loss_balancers.spec.moving import DESCRIPTION, check_loadable, check_parts
from loss_balancers.spec.whole_files import write_whole

#: safetensors does not read a header of 100 MB or more.
_LARGEST_HEADER = 99_000_000


def save_state(file: str | bytes | os.PathLike[str] | os.PathLike[bytes], exported: Mapping[str, Any]) -> None:
    """Writes an exported state to a safetensors file: arrays as tensors, the rest as JSON in the metadata (spec T8).

    At any moment ``file`` is the old file or the new one, whole, however many processes write to it: see `write_whole`.

    Args:
        file: Where to.
        exported: What `export_state` returned, in either framework.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The file cannot be written, its folder takes no new file, or the path is that of a folder.
        TypeError: ``exported`` is not an exported state.
        ValueError: No balancer could load it, or its settings are too large for such a file. Then nothing is written.
    """
    safetensors = _safetensors()
    check_parts(exported)
    try:
        description = {part: json.dumps(exported[part]) for part in DESCRIPTION}
        # As C has them: safetensors writes the memory of an array, whatever its strides.
        arrays = {name: np.array(array, order="C") for name, array in exported["state"].items()}
        content = safetensors.numpy.save(arrays, description)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise errors.not_a_state(f"one that no file can hold ({error})") from error
    check_loadable(exported, _known_settings(exported))
    size = sum(map(len, description.values()))
    if size > _LARGEST_HEADER:
        raise errors.state_too_large(os.fsdecode(file), size, _LARGEST_HEADER)
    write_whole(file, content)


def read_state(file: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> dict[str, Any]:
    """The exported state that `save_state` wrote, for ``load_state`` in either framework.

    Args:
        file: Where from.

    Raises:
        ImportError: safetensors is not installed.
        OSError: There is no such file, or it cannot be read.
        ValueError: It is another file, or a part of one.
    """
    safetensors = _safetensors()
    path = os.fsdecode(file)
    with open(path, "rb"):
        pass  # a file that cannot be opened is an OSError in Python's words
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            metadata = opened.metadata() or {}
            described = all(part in metadata for part in DESCRIPTION)
            # The tensors of another file are left alone: they may be huge, or of formats that NumPy lacks.
            arrays = {name: opened.get_tensor(name) for name in (opened.keys() if described else ())}
    except Exception as error:  # safetensors passes on any error that NumPy has for a format, a shape or a size
        raise errors.not_a_state_file(path, str(error)) from error
    if not described:
        raise errors.not_a_state_file(path, f"its metadata lacks one of {list(DESCRIPTION)}")
    for name, array in arrays.items():
        if array.dtype.isbuiltin != 1:  # bfloat16 where JAX is loaded: the result must not depend on that
            raise errors.not_a_state_file(path, f"its entry {name!r} is of {array.dtype}, which NumPy itself lacks")
    try:
        description = {part: json.loads(metadata[part]) for part in DESCRIPTION}
    except (ValueError, RecursionError) as error:
        raise errors.not_a_state_file(path, str(error)) from error
    return {**description, "state": arrays}


def _known_settings(exported: Mapping[str, Any]) -> Any:
    """The settings of a state; None if its balancer is not of this library, or has settings that only `renamed` lets pass."""
    balancer = exported["balancer"]
    known = registry.SETTINGS.get(balancer) if isinstance(balancer, str) else None
    try:
        return None if known is None else known.from_json(exported["settings"])
    except (TypeError, ValueError):
        return None


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(errors.missing_package("State files need", "safetensors", "torch")) from error
    return safetensors
