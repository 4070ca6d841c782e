"""What JAX and Flax call differently from one version to the next."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import experimental

#: `jax.enable_x64`; before JAX 0.8 it stands elsewhere.
enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64  # type: ignore[reportAttributeAccessIssue]

#: `nnx.merge` that makes new variables, as it does by itself before Flax 0.12.
merged_copy: Any = partial(nnx.merge, copy=True) if "copy" in inspect.signature(nnx.merge).parameters else nnx.merge

#: Whether modules are pytrees, and with them there are `nnx.view`, `nnx.with_attributes` and tree mode: not in Flax 0.10.
MODULES_ARE_PYTREES = hasattr(nnx, "Pytree")


def in_mode(graph: bool) -> dict[str, bool]:
    """The keywords of a transform of NNX in graph mode or tree mode: Flax 0.10 has graph mode alone, and no word for it."""
    return {"graph": graph} if MODULES_ARE_PYTREES else {}
