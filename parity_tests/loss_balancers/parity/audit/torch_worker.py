"""The process that compiles PyTorch balancers for a GPU that is not there: Inductor writes Triton, that PTX and machine code.

Nobody provides for this, so it goes by the inside of both: a device that is described and not asked, and graphs that are made by
hand what `torch.compile` makes of them. The versions are pinned; where they move, cases are "not established".
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Reads a request from standard input; leaves for each case a folder with its kernels and a plan; prints the device."""
    import torch

    from loss_balancers.parity.audit.torch_cases import torch_cases
    from loss_balancers.torch import portable

    warnings.simplefilter("ignore")
    request = json.load(sys.stdin)
    options = request["options"]
    _describe(options)
    cases = {case.slug: case for case in torch_cases()}
    for slug in request["cases"]:
        case, folder = cases[slug], Path(request["folder"]) / slug
        folder.mkdir()
        torch.compiler.reset()
        portable._divides = lambda a: False  # as it is when compiled for a GPU
        plans = []
        for number, (graph, inputs, mode) in enumerate(_captured(case.function(), case.losses, case.gradient)):
            code = _generated(graph, inputs, mode)
            for name, source in KERNEL.findall(code):
                _compile(name, source, options["major"], folder / f"{number}_{name}")
            plans.append({"code": code[code.index("    def call(") : code.index("\nrunner = ")], **_ends(graph)})
        (folder / "plan.json").write_text(json.dumps(plans), "utf-8")
    print(json.dumps({"device": options["device"]}))


def _describe(options: dict[str, Any]) -> None:
    """Puts a description where Inductor and Triton ask for the device."""
    import torch
    from torch._dynamo.device_interface import CudaInterface
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.runtime.driver import driver  # pyright: ignore[reportMissingImports]

    major = options["major"]
    properties = SimpleNamespace(**options["properties"], name=options["device"], major=major, minor=0)

    def always(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    answers = {"get_device_properties": properties, "current_device": 0, "device_count": 1, "get_device_capability": (major, 0)}
    for name, value in answers.items():
        setattr(torch.cuda, name, always(value))
    more = {"get_compute_capability": 10 * major, "is_available": True, "is_triton_capable": True}
    more |= {"raise_if_triton_unavailable": None}
    for name, value in (answers | more).items():
        setattr(CudaInterface, name, staticmethod(always(value)))
        setattr(CudaInterface.Worker, name, staticmethod(always(value)))
    target = GPUTarget("cuda", 10 * major, 32)
    cuda = torch.device("cuda", 0)
    driver.set_active(
        SimpleNamespace(get_current_target=always(target), get_current_device=always(0), get_active_torch_device=always(cuda))
    )


def _captured(function: Callable[..., Any], arguments: int, gradient: bool) -> list[tuple[Any, Sequence[Any], Any]]:
    """The graphs that `torch.compile` makes of a function on a GPU: of the forward, and for a gradient of the backward.

    Traced on fake tensors of that device, as far as PyTorch can where it is built without CUDA: it cannot differentiate them, nor
    index. Else traced on the CPU, `div` as it is on a GPU, and moved there.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if gradient:
        compiled, graphs = _compiled(function, moved=True)
        compiled(*(torch.ones((), requires_grad=True) for _ in range(arguments))).backward()
        return graphs
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
    return graphs


def _compiled(function: Callable[..., Any], moved: bool) -> tuple[Callable[..., Any], list[tuple[Any, Sequence[Any], Any]]]:
    """The function with a compiler that keeps the graphs, and those."""
    import torch
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor.decomposition import select_decomp_table

    graphs: list[tuple[Any, Sequence[Any], Any]] = []

    def captured(graph: Any, inputs: Sequence[Any]) -> Any:
        mode = detect_fake_mode(inputs)
        graphs.append((*(_moved(graph, inputs, mode) if moved else (graph, inputs)), mode))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=captured, bw_compiler=captured, decompositions=select_decomp_table())
    return torch.compile(function, backend=backend, fullgraph=True), graphs


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


def _generated(graph: Any, inputs: Sequence[Any], mode: Any) -> str:
    """The Python that Inductor makes of a graph: its kernels, and the calls of them."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowering = GraphLowering(graph, shape_env=mode.shape_env, cpp_wrapper=False, aot_mode=False)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            return lowering.codegen()[0].value


def _ends(graph: Any) -> dict[str, list[str | None]]:
    """The names of a graph's inputs and results."""
    nodes = list(graph.graph.nodes)
    (results,) = nodes[-1].args
    return {
        "inputs": [node.name for node in nodes if node.op == "placeholder"],
        "results": [None if result is None else result.name for result in results],
    }


def _compile(name: str, source: str, major: int, stem: Path) -> None:
    """Leaves the PTX of a kernel and its machine code, as text."""
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    found: dict[str, Any] = {}

    def seen(**options: Any) -> Callable[[Any], Any]:
        found.update(options)
        return lambda kernel: found.setdefault("kernel", kernel)

    file = stem.with_suffix(".py")
    file.write_text(source.replace("triton_helpers.set_driver_to_gpu()", ""), "utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    decorator, heuristics.pointwise = heuristics.pointwise, seen
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        heuristics.pointwise = decorator
    meta, kernel = found["triton_meta"], found["kernel"]
    # One block that is large enough: a power of two.
    constants = {"XBLOCK": found["size_hints"]["x"], **meta.get("constants", {})}
    signature = {name: "constexpr" if name in constants else kind for name, kind in meta["signature"].items()}
    given = {(kernel.arg_names.index(name),): value for name, value in constants.items() if name in signature}
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=given, attrs=meta["configs"][0]),
        target=GPUTarget("cuda", 10 * major, 32),
        options={"num_warps": 1, "enable_fp_fusion": meta["enable_fp_fusion"]},
    )
    stem.with_suffix(".ptx").write_text(compiled.asm["ptx"], "utf-8")
    cubin = stem.with_suffix(".cubin")
    cubin.write_bytes(compiled.asm["cubin"])
    assert triton.__file__ is not None
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    done = subprocess.run([disassembler, "-c", cubin], text=True, capture_output=True, check=True)
    stem.with_suffix(".sass").write_text(done.stdout, "utf-8")
    stem.with_suffix(".json").write_text(json.dumps({"signature": signature}), "utf-8")


if __name__ == "__main__":
    main()
