"""What a lane says when its name promises a compiled program and something else would have run.

The proof is made by the program that ran, not by one beside it: the function that is compiled refuses to be run by Python
(`torch_compiled.py`, `jax_compiled.py`).
"""

from __future__ import annotations

from collections.abc import Sequence


class NotCompiledError(RuntimeError):
    """A lane would not have run what its name says. It is absent, and the message is the reason."""


def not_compiled(what: str, switches: Sequence[str]) -> NotCompiledError:
    """The error: what happened instead, and the switches that are on and explain it."""
    because = f": {', '.join(switches)}" if switches else ""
    return NotCompiledError(f"not compiled: {what}{because}")
