"""What JAX and Flax call differently from one version to the next."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, TypedDict

import jax
from flax import nnx
from jax import experimental

#: `jax.enable_x64`; before JAX 0.8 it stands elsewhere.
enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64  # type: ignore[reportAttributeAccessIssue]

#: `nnx.merge` that makes new variables, as it does by itself before Flax 0.12.
merged_copy: Any = partial(nnx.merge, copy=True) if "copy" in inspect.signature(nnx.merge).parameters else nnx.merge

#: `jax.lax.pcast` to a value that varies over an axis of `shard_map`; older versions have another name for it.
varying: Any = partial(jax.lax.pcast, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary  # type: ignore[reportAttributeAccessIssue]

#: Whether modules are pytrees, so that `jax.jit` and `jax.grad` take them as arguments: since Flax 0.11. Before, each is a leaf.
MODULES_ARE_PYTREES = not jax.tree.leaves(nnx.Module())

#: Whether the transforms of NNX have a tree mode: since Flax 0.12.4. Before, there is graph mode alone, and no word for it.
TREE_MODE = "graph" in inspect.signature(nnx.jit).parameters


class Mode(TypedDict, total=False):
    """Keywords of a transform of NNX."""

    graph: bool


def in_mode(graph: bool) -> Mode:
    """The keywords of a transform of NNX in graph mode or in tree mode."""
    return Mode(graph=graph) if TREE_MODE else Mode()
