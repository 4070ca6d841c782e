"""The graphs that `torch.compile` makes of a function on a GPU that is not there, and the Python that Inductor makes of each."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

Graphs = list[tuple[Any, str]]
#: How Dynamo calls the buffer of a module that a graph takes.
BUFFER = re.compile(r"\._buffers\['(\w+)'\]$")


def captured(function: Callable[..., Any], arguments: int, gradient: bool, buffers: bool) -> Graphs:
    """The graphs of a function that writes nothing, and their code: of the forward, and for a gradient of the backward.

    Traced on fake tensors of that device, as far as PyTorch can where it is built without CUDA: it cannot differentiate them, nor
    index, nor move the ``buffers`` that a balancer has. Else traced on the CPU, `div` as it is on a GPU, and moved there.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if gradient or buffers:
        compiled, graphs = _compiled(function, moved=True)
        result = compiled(*(torch.ones((), requires_grad=gradient) for _ in range(arguments)))
        if gradient:
            result.backward()
        return [(graph, _generated(graph, inputs, mode)) for graph, inputs, mode in graphs]
    compiled, graphs = _compiled(function, moved=False)
    try:
        with FakeTensorMode(), torch.no_grad():
            compiled(*(torch.empty((), device="cuda") for _ in range(arguments)))
    except RuntimeError as error:
        if "not linked with support for cuda" not in str(error):
            raise
        torch.compiler.reset()
        compiled, graphs = _compiled(function, moved=True)
        compiled(*(torch.ones(()) for _ in range(arguments)))
    return [(graph, _generated(graph, inputs, mode)) for graph, inputs, mode in graphs]


def writing(function: Callable[..., Any], arguments: int, gradient: bool) -> Graphs:
    """The graphs of a function that overwrites state, and their code, by all passes of Inductor's own.

    Those decide what is written in place, what is fused, and what a backward computes again. Traced on the CPU, and moved.
    """
    import torch
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor import compile_fx
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.virtualized import V

    graphs: Graphs = []

    def inner(graph: Any, inputs: Sequence[Any], *, is_inference: bool = False, is_backward: bool = False, **_: Any) -> Any:
        copied, moved = _moved(graph, inputs, detect_fake_mode(inputs))
        view_to_reshape(copied)
        with torch.no_grad():
            mode = compile_fx.fake_tensor_prop(copied, moved)
        compile_fx._recursive_record_original_output_strides(copied)
        with V.set_fake_mode(mode):
            compile_fx._recursive_post_grad_passes(copied, is_inference=is_inference)
        graphs.append((copied, _generated(copied, moved, mode, is_inference=is_inference, is_backward=is_backward)))
        return make_boxed_func(graph.forward)

    def backend(graph: Any, inputs: Sequence[Any]) -> Any:
        return compile_fx.compile_fx(graph, inputs, inner_compile=inner)

    result = torch.compile(function, backend=backend, fullgraph=True)(
        *(torch.ones((), requires_grad=gradient) for _ in range(arguments))
    )
    if gradient:
        result.backward()
    return graphs


def _compiled(function: Callable[..., Any], moved: bool) -> tuple[Callable[..., Any], list[tuple[Any, Sequence[Any], Any]]]:
    """The function with a compiler that keeps the graphs, and those."""
    import torch
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor.decomposition import select_decomp_table

    graphs: list[tuple[Any, Sequence[Any], Any]] = []
    held: list[tuple[str, Any] | None] = []

    def captured(graph: Any, inputs: Sequence[Any]) -> Any:
        mode = detect_fake_mode(inputs)
        copied, given = _moved(graph, inputs, mode) if moved else (graph, inputs)
        copied.meta["held"] = [] if graphs else held  # those of the backward come from the forward
        graphs.append((copied, given, mode))
        return make_boxed_func(graph.forward)

    functional = aot_autograd(fw_compiler=captured, bw_compiler=captured, decompositions=select_decomp_table())

    def backend(graph: Any, inputs: Sequence[Any]) -> Any:
        held.extend(_buffer(node) for node in graph.graph.nodes if node.op == "placeholder")
        return functional(graph, inputs)

    return torch.compile(function, backend=backend, fullgraph=True), graphs


def _buffer(node: Any) -> tuple[str, Any] | None:
    """The name of the buffer that an input of Dynamo's graph is, and what it holds; None if it is none."""
    match = BUFFER.search(node._dynamo_source.name)
    return (match[1], node.meta["grapharg"].example) if match else None


def _moved(graph: Any, inputs: Sequence[Any], mode: Any) -> tuple[Any, Sequence[Any]]:
    """A copy of the graph and its inputs, with every value on the GPU."""
    import torch
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    cuda, copied = torch.device("cuda", 0), copy.deepcopy(graph)
    for node in copied.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": cuda}
    with mode:
        moved = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=cuda) for x in inputs]
    copied.recompile()
    FakeTensorProp(copied, mode).propagate_dont_convert_inputs(*moved)
    return copied, moved


def _generated(graph: Any, inputs: Sequence[Any], mode: Any, **kind: Any) -> str:
    """The Python that Inductor makes of a graph: its kernels, and the calls of them."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowering = GraphLowering(graph, shape_env=mode.shape_env, cpp_wrapper=False, aot_mode=False, **kind)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            return lowering.codegen()[0].value


def ends(graph: Any) -> dict[str, Any]:
    """The names of a graph's inputs and results, and of the inputs that are buffers: their names, and the words that they hold."""
    import torch

    nodes = list(graph.graph.nodes)
    (results,) = nodes[-1].args
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    return {
        "inputs": inputs,
        "results": [None if result is None else result.name for result in results],
        "buffers": {
            name: [buffer[0], [word & 0xFFFFFFFF for word in buffer[1].view(torch.int32).flatten().tolist()]]
            for name, buffer in zip(inputs, graph.meta.get("held", ()), strict=False)
            if buffer is not None
        },
    }
