"""The audit: what a compiler emits for a balancer, against what the spec prescribes, with no such device present.

Each balancer is compiled ahead of time for a named target, the float operations are read back from the machine code (TPU: final
bundles; CUDA: PTX; CPU: LLVM IR and the object code), and their expression DAG is compared with the spec's. Run
``python -m loss_balancers.audit --target cuda:sm_90``. What cannot be read is "not established", never "as specified".
"""

from loss_balancers.audit.compilers.targets import TARGETS, Target, UnavailableError
from loss_balancers.audit.expressions.comparison import Finding, compare
from loss_balancers.audit.expressions.dag import Dag, Node, NotEstablishedError
from loss_balancers.audit.run import Verdict, audit

__all__ = [
    "TARGETS",
    "Dag",
    "Finding",
    "Node",
    "NotEstablishedError",
    "Target",
    "UnavailableError",
    "Verdict",
    "audit",
    "compare",
]
