"""Cases that are not compiled for some targets: the code that comes of them there is beyond the reader.

Each has its reason, which the audit prints and its page shows. Every balancer is audited on every target by its other cases.
"""

from __future__ import annotations

_MANY = "Inductor stacks so many losses by a kernel of its own kind, and asks by a reduction, over threads, whether all are finite"
#: By kind of target and name of the case: why.
LEFT_OUT: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {},
    "cuda-torch": {f"EMANormalizedLossBalancer K=12 {kind}": _MANY for kind in ("forward", "gradient")},
    "tpu": {},
}
