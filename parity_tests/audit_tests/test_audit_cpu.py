"""The audit of the CPU does not depend on the host: on its processor, and on what an earlier run has left there."""

import re
import shutil
from pathlib import Path

import pytest

from loss_balancers.audit import TARGETS, audit
from loss_balancers.audit.prescribed.cases import all_cases
from loss_balancers.audit.prescribed.planted import planted_cases
from loss_balancers.audit.run import judge

#: What XLA can be held to on x86-64, and the flag by which Linux says that a processor has it.
ISAS = {
    "SSE4_2": "sse4_2",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX": "amx_tile",
    "AMX_FP16": "amx_fp16",
}


#: With these every case is audited: without fused multiply-add and with it. With each of the other six, one case in six.
WHOLE = ("SSE4_2", "AVX2")


def lacks(isa):
    """What keeps this host from standing for a processor with no more than ``isa``; None if nothing does."""
    described = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*: (.*)$", described.read_text("utf-8"), re.MULTILINE) if described.exists() else None
    if flags is None:
        return "the processor is not an x86-64 that Linux describes"
    if shutil.which("objdump") is None:
        return "objdump is not installed: install binutils"
    return None if ISAS[isa] in flags[1].split() else f"the processor has no {isa}"


@pytest.mark.parametrize("isa", ISAS)
def test_the_cpu_is_as_specified_with_each_instruction_set_and_its_planted_faults_are_found(isa, monkeypatch, tmp_path):
    reason = lacks(isa)
    if reason:
        pytest.skip(reason)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_max_isa={isa}")  # read by the process that compiles, a fresh one
    target = TARGETS["cpu"]
    ours = all_cases()
    chosen = ours if isa in WHOLE else ours[list(ISAS).index(isa) :: 6]
    cases = target.cases([*chosen, *planted_cases()])
    target.compile(cases, tmp_path)
    options = [file.read_text("utf-8") for file in tmp_path.glob("*/*.debug_options")]
    assert [f'xla_cpu_max_isa: "{isa}"' in text for text in options] == [True] * len(cases)
    verdicts = {case.name: judge(target, case, tmp_path / case.slug) for case in cases}
    assert {name: verdict for name, verdict in verdicts.items() if not verdict.passed} == {}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed: install binutils")
def test_a_cache_of_compiled_code_does_not_keep_it_from_being_audited(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    for _ in range(2):
        verdicts, _ = audit(TARGETS["cpu"], all_cases()[:1])
        assert [verdict.status for verdict in verdicts.values()] == ["as specified"]
