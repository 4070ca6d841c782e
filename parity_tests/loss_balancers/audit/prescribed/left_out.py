"""Cases that are not compiled for some targets: the code that comes of them there is beyond the reader.

Each has its reason, which the audit prints and its page shows. Every balancer that takes no exponential, logarithm or root is
audited on every target by its other cases.
"""

from __future__ import annotations

from functools import cache

from loss_balancers.audit.expressions.dag import Dag, walk
from loss_balancers.audit.expressions.steps import IN_64_BITS, STEP
from loss_balancers.audit.prescribed.cases import Case, all_cases


def _ema(which: str, reason: str, *kinds: str) -> dict[str, str]:
    return {f"EMANormalizedLossBalancer {which} {kind}": reason for kind in kinds or ("forward", "gradient")}


def _learned(reason: str) -> dict[str, str]:
    """The gradient that has no exponential and no logarithm; that of the other forms is left out for one."""
    return {"UncertaintyLossBalancer uncertainty-regularized gradient": reason}


_PADDED = "XLA puts its gradient together by padding with zeros and adding, which the reader does not take for moving"
#: By kind of target and name of the case: why.
LEFT_OUT: dict[str, dict[str, str]] = {
    "cpu": {
        **_ema("ema", "LLVM computes the gradients in a loop or as a vector, by the instruction set", "gradient"),
        **_ema("K=12", "XLA stacks so many losses by a function of another kind"),
        **_learned("LLVM fills memory at once, by an instruction that the reader does not know"),
    },
    "cuda": {
        **_ema("K=3", "XLA keeps truths as bytes, and chooses among addresses by the thread"),
        **_ema("K=12", "XLA chooses among addresses by the thread"),
        **_learned(_PADDED),
    },
    "cuda-torch": {
        **_ema("K=12", "Inductor stacks so many losses by a kernel of its own kind, and reduces over threads"),
        **_learned("its graph takes the parameter as an input that the reader does not know"),
        "ReLoBRaLoLossBalancer step()": "the disassembler shows no instructions of so long a kernel",
    },
    "tpu": {
        **_ema("ema-lagged", "libtpu divides and moves elements across lanes in one fusion", "forward"),
        **_ema("K=1", "libtpu divides and moves elements across lanes in one fusion, for the v5e"),
        **_ema("K=12", "libtpu divides and moves elements across lanes in one fusion"),
        **_learned(_PADDED),
    },
}


def left_out(kind: str) -> dict[str, str]:
    """The cases that are not compiled for targets of this kind, each with the reason."""
    return LEFT_OUT[kind] | _in_64_bits()


@cache
def _in_64_bits() -> dict[str, str]:
    """The cases of balancers that take exponentials, logarithms or roots, for any target."""
    reason = "it takes {}, which code works out in 64 bits, and the reader has words of 32"
    found = {case.name: sorted(_steps(case) & set(IN_64_BITS)) for case in all_cases()}
    return {name: reason.format(" and ".join(steps)) for name, steps in found.items() if steps}


def _steps(case: Case) -> set[str]:
    return {str(node.value) for node in walk(case.expected(Dag())) if node.op == STEP}
