"""Cases that are not compiled for some targets: the code that comes of them there is beyond the reader.

Each has its reason, which the audit prints and its page shows. `exp`, `log` and `sqrt` are audited on every target.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

BOTH = ("forward", "gradient")
DWA = ("DWALossBalancer dwa", "DWALossBalancer dwa-bounded")
SOFT_ADAPT = ("SoftAdaptLossBalancer soft-adapt", "SoftAdaptLossBalancer soft-adapt-lagged")
GEOMETRIC = ("GeometricLossBalancer geometric", "GeometricLossBalancer geometric-weights")
STCH = tuple(f"STCHLossBalancer {form}" for form in ("stch", "stch-reference", "stch-log"))
RANDOM = ("RandomLossBalancer random", "RandomLossBalancer random-weights")
RELOBRALO = ("ReLoBRaLoLossBalancer relobralo",)
FAMO = ("FAMOLossBalancer famo", "FAMOLossBalancer famo-all")
REGULARIZED = ("UncertaintyLossBalancer uncertainty-regularized",)
UNCERTAINTY = ("UncertaintyLossBalancer uncertainty", "UncertaintyLossBalancer uncertainty-initial", *REGULARIZED)
IMTL = ("IMTLLossBalancer imtl", "IMTLLossBalancer imtl-initial")


def _cases(names: Sequence[str], reason: str, kinds: Sequence[str] = BOTH) -> dict[str, str]:
    return {f"{name} {kind}": reason for name in names for kind in kinds}


def _ema(which: str, reason: str, *kinds: str) -> dict[str, str]:
    return _cases([f"EMANormalizedLossBalancer {which}"], reason, kinds or BOTH)


_LANES = "libtpu moves elements across lanes in a fusion that computes integers too"
_LOOP = "LLVM computes the gradients in a loop"
_PARAMETER = "its graph takes the parameter as an input that the reader does not know"
_THREADS = "Inductor reduces over threads, or puts vectors together by addresses that depend on the thread"
#: By kind of target and name of the case: why.
LEFT_OUT: dict[str, dict[str, str]] = {
    "cpu": {
        **_ema("ema", "LLVM computes the gradients in a loop or as a vector, by the instruction set", "gradient"),
        **_ema("K=12", "XLA stacks so many losses by a function of another kind"),
        **_cases(SOFT_ADAPT, "LLVM keeps the means that are chosen without the flush of them that follows"),
        **_cases((*GEOMETRIC, *STCH, *FAMO), _LOOP, ("gradient",)),
        **_cases(RELOBRALO, "LLVM chooses among the means in a loop"),
    },
    "cuda": {
        **_ema("K=3", "XLA keeps truths as bytes, and chooses among addresses by the thread"),
        **_ema("K=12", "XLA chooses among addresses by the thread"),
        **_cases(SOFT_ADAPT[1:], "XLA sums up over threads, by a kernel of Triton"),
        **_cases(STCH, "XLA sums up over threads, by a kernel of Triton", ("gradient",)),
        **_cases(RELOBRALO, "XLA chooses among addresses by the thread"),
        **_cases(FAMO, "XLA cuts out a vector without a kernel"),
    },
    "cuda-torch": {
        **_ema("K=12", "Inductor stacks so many losses by a kernel of its own kind, and reduces over threads"),
        **_cases((*UNCERTAINTY, *IMTL), _PARAMETER),
        **_cases(GEOMETRIC, "LLVM multiplies the logarithms that are listed by the weight beforehand"),
        **_cases(STCH[1:2], "the reader does not recognise the numbers of which the greatest is taken"),
        **_cases(STCH[2:], _THREADS),
        **_cases((*DWA, *SOFT_ADAPT, *RANDOM, *RELOBRALO, *FAMO), _THREADS),
        "softmax forward": _THREADS,
        "planted: native exp": "its machine code saturates a sum, which the reader does not know",
        "ReLoBRaLoLossBalancer step()": "the disassembler shows no instructions of so long a kernel",
    },
    "tpu": {
        **_ema("ema-lagged", "libtpu divides and moves elements across lanes in one fusion", "forward"),
        **_ema("K=1", "libtpu divides and moves elements across lanes in one fusion, for the v5e"),
        **_ema("K=12", "libtpu divides and moves elements across lanes in one fusion"),
        "softmax forward": _LANES,
        "planted: softmax by a sum that is cut": _LANES,
        **_cases((*DWA, *SOFT_ADAPT, *GEOMETRIC, *STCH, *RANDOM, *RELOBRALO, *FAMO), _LANES),
        **_cases((*UNCERTAINTY, *IMTL), _LANES, ("forward",)),
    },
}


#: Where vectors are short, beyond those that are left out everywhere on the CPU.
SHORT_VECTORS = {
    "planted: native exp": "the object code rounds to an integer by an instruction that the reader does not know, without AVX2",
    "planted: native log": "the object code adds where the IR subtracts, without AVX2",
    **_cases((*DWA, *RANDOM), "LLVM computes the powers in a loop, without AVX2"),
    **_cases(FAMO, "LLVM computes the powers in a loop, without AVX2", ("forward",)),
    **dict.fromkeys(
        ("softmax forward", "planted: softmax by a sum that is cut"), "LLVM computes the powers in a loop, without AVX2"
    ),
}


def left_out(kind: str) -> dict[str, str]:
    """The cases that are not compiled for targets of this kind, each with the reason."""
    return LEFT_OUT[kind] | (SHORT_VECTORS if kind == "cpu" and _vectors_are_short() else {})


def _vectors_are_short() -> bool:
    """Whether the host's processor has no AVX2, or XLA is held to less."""
    described = Path("/proc/cpuinfo")
    has_avx2 = described.exists() and " avx2 " in described.read_text("utf-8")
    return not has_avx2 or bool(re.search(r"--xla_cpu_max_isa=(SSE4_2|AVX)(\s|$)", os.environ.get("XLA_FLAGS", "")))
