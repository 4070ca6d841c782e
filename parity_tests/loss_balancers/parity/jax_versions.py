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
