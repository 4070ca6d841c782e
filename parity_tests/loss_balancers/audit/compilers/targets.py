"""The targets: how each is compiled for in a process of its own, and how its dump is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loss_balancers.audit.dumps import cpu, ptx, races, torch_cuda, tpu
from loss_balancers.audit.expressions.comparison import FUSED_MULTIPLY_ADD, OTHER_OPERATION, Finding
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError
from loss_balancers.audit.prescribed.cases import Case
from loss_balancers.audit.prescribed.left_out import left_out
from loss_balancers.audit.prescribed.torch_cases import torch_cases
from loss_balancers.spec.errors import missing_package, with_extra

TIMEOUT = 1200
JAX = ("jax", "jaxlib")

#: From a case and the folder of its dump to its results, and findings that the DAG does not show.
Reader = Callable[[Case, Path, Dag], tuple[list[Node], list[Finding]]]


class UnavailableError(Exception):
    """The compiler for a target is not installed, or fails before it compiles anything."""


@dataclass(frozen=True)
class Target:
    """A device that need not be present.

    Args:
        name: ``platform:model``, or ``cpu``.
        options: For the compiling process: topology, target description.
        packages: The distributions it needs.
        extra: The extra that brings them.
        read: Reads a dump.
        environment: Variables for the compiling process; ``{dump}`` is the folder for dumps. To ``XLA_FLAGS`` it adds.
        worker: The module that is the compiling process.
        only: The names of the cases that it can compile; None for all that have a JAX function.
    """

    name: str
    options: dict[str, Any]
    packages: tuple[str, ...]
    extra: str
    read: Reader
    environment: dict[str, str] = field(default_factory=dict)
    worker: str = "worker"
    only: Callable[[], list[str]] | None = None

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """Those of the cases that it can compile and whose code can be read."""
        names, left_out = None if self.only is None else self.only(), self.left_out
        return [
            case
            for case in cases
            if (case.function is not None if names is None else case.name in names) and case.name not in left_out
        ]

    @property
    def left_out(self) -> dict[str, str]:
        """The cases whose code its reader cannot follow, each with the reason."""
        return left_out(self.name.partition(":")[0])

    def compile(self, cases: Sequence[Case], folder: Path) -> dict[str, str]:
        """Compiles all cases in a process of its own, dumps in ``folder``; returns the versions of what compiled them.

        Raises:
            UnavailableError: A package is missing, or the process fails.
        """
        versions = {package: self._version(package) for package in self.packages}
        dump = folder / "dump"
        request = {"options": self.options, "dump": str(dump), "folder": str(folder), "cases": [case.slug for case in cases]}
        variables = {name: value.replace("{dump}", str(dump)) for name, value in self.environment.items()}
        flags = os.environ.get("XLA_FLAGS", "") if "jax" in self.packages else ""
        if flags:
            variables["XLA_FLAGS"] = f"{flags} {variables.get('XLA_FLAGS', '')}".strip()
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"loss_balancers.audit.compilers.{self.worker}"],
                input=json.dumps(request),
                # What JAX takes from a cache it does not compile, and so it leaves no dump.
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"} | variables,
                text=True,
                capture_output=True,
                check=True,
                timeout=TIMEOUT,
            )
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
            hint = f". {with_extra(self.extra)}" if re.search("libdevice|ptxas|nvlink", last) else ""
            raise UnavailableError(f"{self.name}: the compiling process failed: {last}{hint}") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{self.name}: the compiling process took more than {TIMEOUT} s.") from None
        return versions | ({"XLA_FLAGS": flags} if flags else {}) | json.loads(done.stdout.splitlines()[-1])

    def _version(self, package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            raise UnavailableError(
                f"{missing_package(f'{self.name} needs', package, self.extra)} Use an environment of its own."
            ) from None


def _text(folder: Path, pattern: str) -> str:
    """All files whose name matches, as one text."""
    files = sorted(file for file in folder.iterdir() if re.search(pattern, file.name))
    if not files:
        raise NotEstablishedError(f"the compiler left no file that matches {pattern!r}")
    return "\n".join(file.read_text("utf-8") for file in files)


def _read_cuda(architecture: str) -> Reader:
    def read(case: Case, folder: Path, dag: Dag) -> tuple[list[Node], list[Finding]]:
        hlo = (folder / "optimised.hlo").read_text("utf-8")
        return ptx.read_module(hlo, _text(folder, rf"\.jit_{case.slug}\..*\.ptx$"), architecture, dag), []

    return read


def _read_tpu(case: Case, folder: Path, dag: Dag) -> tuple[list[Node], list[Finding]]:
    calls = {}
    for file in folder.iterdir():
        if (match := re.search(r"^\d+-(?!TLP-)([\w.\-]+)-\d+-final_bundles\.txt$", file.name)) and "analysis" not in file.name:
            calls[match[1]] = file.read_text("utf-8")
    hlo = (folder / "optimised.hlo").read_text("utf-8")
    return tpu.read_module(hlo, _text(folder, r"-TLP-\d+-final_bundles\.txt$"), calls, case.results, dag), []


def _read_cpu(case: Case, folder: Path, dag: Dag) -> tuple[list[Node], list[Finding]]:
    ir = _text(folder, rf"\.jit_{case.slug}\..*\.ir-with-opt\.ll$")
    objects = sorted(str(file) for file in folder.glob(f"*.jit_{case.slug}.*.o"))
    try:
        disassembly = subprocess.run(
            ["objdump", "-dr", "--no-show-raw-insn", *objects], text=True, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotEstablishedError(f"the object code cannot be disassembled; install binutils ({error})") from None
    module = cpu.read_module((folder / "optimised.hlo").read_text("utf-8"), ir, disassembly, dag)
    kinds = {"fma": FUSED_MULTIPLY_ADD, "rcp": OTHER_OPERATION}
    return module.results, [Finding(kinds[kind], "no such instruction", "object code", line) for kind, line in module.forbidden]


def _tpu(model: str, topology: str) -> Target:
    return Target(
        f"tpu:{model}",
        {"platform": "tpu", "topology_name": topology},
        (*JAX, "libtpu"),
        "audit-tpu",
        _read_tpu,
        {
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no device that two processes could contend for
            "LIBTPU_INIT_ARGS": "--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
        },
    )


#: The architecture for which PyTorch compiles what overwrites state: the H100, which ran it.
STATE_MAJOR = 9
#: What XLA wants to know of a GPU that is not there. None of it but the capability reaches the code of a scalar.
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 2000000000000
  l2_cache_size: 41943040
  clock_rate_ghz: 1.5
  device_memory_size: 84942979072
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{device}"
"""


def _cuda(major: int, device: str, cores: int, fpus: int, shared: int, optin: int) -> Target:
    config = DESCRIPTION.format(major=major, device=device, cores=cores, fpus=fpus, shared=shared, optin=optin)
    return Target(
        f"cuda:sm_{major}0",
        {"platform": "cuda", "topology_name": f"sm_{major}0", "target_config": config, "topology": "1x1x1"},
        (*JAX, "jax-cuda13-plugin", "jax-cuda13-pjrt"),
        "audit-cuda",
        _read_cuda(f"sm_{major}0"),
        {"XLA_FLAGS": "--xla_dump_to={dump}"},
    )


def _torch(major: int, device: str, cores: int, optin: int) -> Target:
    """PyTorch on CUDA. What overwrites state is compiled for one architecture: races are read in Triton's source, alike for all."""
    properties = {
        "multi_processor_count": cores,
        "max_threads_per_multi_processor": 2048,
        "max_threads_per_block": 1024,
        "regs_per_multiprocessor": 65536,
        "shared_memory_per_block": 49152,
        "shared_memory_per_block_optin": optin,
        "warp_size": 32,
        "L2_cache_size": 41943040,
        "total_memory": 84942979072,
    }

    def read(case: Case, folder: Path, dag: Dag) -> tuple[list[Node], list[Finding]]:
        found = races.read_races(folder)
        if case.function is None:  # its arithmetic is not read; but a race, or whatever is fused, is a finding
            return [], found or torch_cuda.fused(folder)
        losses = case.arguments - case.name.endswith(" gradient")
        results, more = torch_cuda.read_case(folder, losses, case.state_inputs(), f"sm_{major}0", dag)
        return results, [*found, *more]

    return Target(
        f"cuda-torch:sm_{major}0",
        {"major": major, "device": device, "properties": properties},
        ("torch", "triton"),
        "audit-torch",
        read,
        {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        "torch_worker",
        lambda: [case.case.name for case in torch_cases() if major == STATE_MAJOR or not case.writes],
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _tpu("v4", "v4:2x2x1"),
        _tpu("v5e", "v5e:2x2"),
        _tpu("v5p", "v5p:2x2x1"),
        _tpu("v6e", "v6e:2x2"),
        _tpu("tpu7x", "tpu7x:2x2x1"),
        _cuda(8, "NVIDIA A100-SXM4-80GB", 108, 64, 167936, 166912),
        _cuda(9, "NVIDIA H100 80GB HBM3", 132, 128, 233472, 232448),
        _cuda(10, "NVIDIA B200", 148, 128, 233472, 232448),
        _torch(8, "NVIDIA A100-SXM4-80GB", 108, 166912),
        _torch(9, "NVIDIA H100 80GB HBM3", 132, 232448),
        _torch(10, "NVIDIA B200", 148, 232448),
        Target("cpu", {}, JAX, "jax", _read_cpu, {"XLA_FLAGS": "--xla_dump_to={dump}"}),
    )
}
