"""Portable functions: quotient, product, `exp`, `log`, `sqrt` and `softmax` as the spec rounds them, on any backend.

Use them where a balancer of your own divides, multiplies two arrays, or needs one of these functions: frameworks, compilers and
devices differ in the bits of each.
"""

from loss_balancers.jax.portable.division import div, rmul
from loss_balancers.jax.portable.division import div_of_kept as div_of_kept
from loss_balancers.jax.portable.division import flushed as flushed
from loss_balancers.jax.portable.division import rmul_of_kept as rmul_of_kept
from loss_balancers.jax.portable.elementary import exp, log, sqrt
from loss_balancers.jax.portable.sums import logsumexp, softmax

__all__ = ["div", "exp", "log", "logsumexp", "rmul", "softmax", "sqrt"]
