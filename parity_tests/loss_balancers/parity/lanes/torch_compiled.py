"""`torch.compile` with the proof that Inductor compiled what ran, and that Python ran none of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch._dynamo import config, eval_frame, lookup_backend
from torch._dynamo.utils import counters

from loss_balancers.parity.lanes.absent import NotCompiledError, not_compiled


def compiled(fn: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function compiled as one graph.

    Args:
        fn: The function.
        backend: What compiles the graph that Dynamo makes of it.

    Raises, when called:
        NotCompiledError: Python would run the function, or a graph goes to another backend.
    """
    graphs = 0

    def body(*args: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():  # Dynamo drops this branch; who runs it is Python
            raise not_compiled("Python runs the function", switches())
        return fn(*args)

    def counted(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return lookup_backend(backend)(graph, inputs)

    # Dynamo counts compilations by the code of a function, and gives up after a few: each function has a code of its own.
    own = FunctionType(body.__code__.replace(), body.__globals__, closure=body.__closure__)
    # No graph break: what is between two graphs would run eager.
    program = torch.compile(own, fullgraph=True, dynamic=False, backend=counted)

    def call(*args: Any) -> Any:
        before = graphs, counters["stats"]["unique_graphs"]
        given = program(*args)
        # A function without operations has no graph at all.
        if graphs - before[0] < counters["stats"]["unique_graphs"] - before[1]:
            raise not_compiled("the graph goes to another backend", switches())
        return given

    return call


def why_not_compiled() -> str | None:
    """Why nothing is compiled in this process, found by trying, without a C++ compiler; None if Dynamo does its part."""
    try:
        compiled(lambda x: x + 1, "eager")(torch.zeros(()))
    except NotCompiledError as error:
        return str(error)
    return None


def switches() -> list[str]:
    """The switches that are on and keep `torch.compile` from compiling, as whoever set them wrote them."""
    found = [f"{name}={os.environ[name]}" for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE") if os.environ.get(name)]
    stance = eval_frame._stance
    if (stance.stance, stance.backend) != ("default", None):
        backend = "" if stance.backend is None else f", force_backend={stance.backend!r}"
        found.append(f'torch.compiler.set_stance("{stance.stance}"{backend})')
    # Those of the environment too, unless a program has set them since.
    values = {name: getattr(config, name) for name in ("disable", "suppress_errors", "debug_backend_override")}
    return found + [f"torch._dynamo.config.{name}={value!r}" for name, value in values.items() if value]
