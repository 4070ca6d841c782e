"""The process that compiles PyTorch balancers for a GPU that is not there: Inductor writes Triton, that PTX and machine code.

Nobody provides for this, so it goes by the inside of both: a device that is described and not asked, and graphs that are traced
without it (`torch_graphs`). The versions are pinned; where they move, cases are "not established".
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

#: How the name of a kernel begins that Inductor makes of an operation on many tensors. Only a planted fault has one.
FUSED_WRITE = "triton_for_"
KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Reads a request from standard input; leaves for each case a folder with its kernels and a plan; prints the device."""
    import torch

    from loss_balancers.audit.compilers.torch_graphs import captured, ends, writing
    from loss_balancers.audit.prescribed.torch_cases import torch_cases
    from loss_balancers.torch.portable import division

    warnings.simplefilter("ignore")
    request = json.load(sys.stdin)
    options = request["options"]
    _describe(options)
    cases = {case.slug: case for case in torch_cases()}
    for slug in request["cases"]:
        case, folder = cases[slug], Path(request["folder"]) / slug
        folder.mkdir()
        torch.compiler.reset()
        division._divides = lambda a: False  # as it is when compiled for a GPU
        plans = []
        with case.fault():
            function = case.function()
            graphs = (
                writing(function, case.losses, case.gradient)
                if case.writes
                else captured(function, case.losses, case.gradient, bool(case.buffers))
            )
        for number, (graph, code) in enumerate(graphs):
            for name, source in KERNEL.findall(code):
                stem = folder / f"{number}_{name}"
                stem.with_suffix(".py").write_text(source.replace("triton_helpers.set_driver_to_gpu()", ""), "utf-8")
                if not name.startswith(FUSED_WRITE):
                    _compile(name, options["major"], stem)
            plans.append({"code": code[code.index("    def call(") : code.index("\nrunner = ")], **ends(graph)})
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


def _compile(name: str, major: int, stem: Path) -> None:
    """Leaves the PTX of a kernel, whose source is there, and its machine code, as text."""
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    found: dict[str, Any] = {}

    def seen(**options: Any) -> Callable[[Any], Any]:
        found.update(options)
        return lambda kernel: found.setdefault("kernel", kernel)

    spec = importlib.util.spec_from_file_location(name, stem.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    with patch.multiple(heuristics, pointwise=seen, persistent_reduction=seen):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
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
