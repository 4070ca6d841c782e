"""Cases that are not compiled for some targets: the code that comes of them there is beyond the reader.

Each has its reason, which the audit prints and its page shows. Every balancer is audited on every target by its other cases.
"""

from __future__ import annotations


def _ema(which: str, reason: str, *kinds: str) -> dict[str, str]:
    return {f"EMANormalizedLossBalancer {which} {kind}": reason for kind in kinds or ("forward", "gradient")}


#: By kind of target and name of the case: why.
LEFT_OUT: dict[str, dict[str, str]] = {
    "cpu": {
        **_ema("ema", "LLVM computes the gradients in a loop or as a vector, by the instruction set", "gradient"),
        **_ema("K=12", "XLA stacks so many losses by a function of another kind"),
    },
    "cuda": {
        **_ema("K=3", "XLA keeps truths as bytes, and chooses among addresses by the thread"),
        **_ema("K=12", "XLA chooses among addresses by the thread"),
    },
    "cuda-torch": _ema("K=12", "Inductor stacks so many losses by a kernel of its own kind, and reduces over threads"),
    "tpu": {
        **_ema("ema-lagged", "libtpu divides and moves elements across lanes in one fusion", "forward"),
        **_ema("K=1", "libtpu divides and moves elements across lanes in one fusion, for the v5e"),
        **_ema("K=12", "libtpu divides and moves elements across lanes in one fusion"),
    },
}
