"""The page `docs/evidence/elementary.md`, made of what `make exhaustive` has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAGE = "docs/evidence/elementary.md"

TOP = """\
# Elementary functions

Written by `make exhaustive`, from what it found: `exp`, `log` and `sqrt` ([A13](../spec/2-arithmetic.md)) of {part} float32
numbers, NaN, infinities and subnormals among them, on the lanes of a CPU. Results are compared as bits; any NaN is as good as
another.

"""
END = """
{made}

## Why this shows that each result is correctly rounded

A comparison is as good as what is compared with, and no library has a correctly rounded float64 `exp` or `log`. None is needed.

1. **How near a result can come to where the rounding changes.** That is the middle of two neighbouring float32 numbers, or the
   end of what `keep` makes zero. A search over every float32 number, with MPFR at 160 bits and a Taylor series of error below
   2⁻⁷⁵, has found all whose e^x or ln x is within 8 units in the last place (ulp) of float64 of it: 19 for `exp`, the nearest
   1.265 ulp, and 70 for `log`, the nearest 0.03 ulp. They are in `loss_balancers.spec.hard_inputs`, and a test computes the
   distance of each anew. For `sqrt` a proof takes the place of a search: the squares of a root and of a middle are different
   multiples of one unit, which keeps them 2⁻⁵¹ of the root apart.
2. **The results compared with.** At the 19 and the 70 they are those of the reference in `spec`, 60 digits rounded once. At every
   other number a float64 function that is off by less than 8 ulp rounds to the right float32 number, whatever its last bits are.
   They are NumPy's there, which calls the C library or vectorised code of its own. (glibc's functions, measured on every float32
   number against MPFR, are off by at most 0.52 ulp.)
3. **What is compared.** The float64 functions of PyTorch's eager mode, those that Inductor compiles, and the 64-bit integers of
   JAX. The integers share no code with the others, and rest neither on the list nor on a float function: the bounds beside their
   code are about four times smaller than the distances of 1 allow. So a mistake in the list, in NumPy or in a bound would show as
   a difference between the integers and the rest.
4. **What is left over.** A vectorised function may give a number another float64 result at another place of an array, or in an
   array of another length. By 1 it rounds alike as long as it is off by less than 1.26 ulp for `exp`, and by at most 1 ulp for
   `log`, whose 14 nearest numbers have their results from the list. MKL, Sleef, glibc and CUDA document errors of at most 1 ulp.
"""


def page(state: Mapping[str, Any], size: int, blocks: int) -> str:
    """The page as text."""
    tried = state["done"] * size
    part = "all 4,294,967,296" if state["done"] >= blocks else f"{tried:,} of all 4,294,967,296"
    names = list(next(iter(state["wrong"].values())))
    rows = [["lane", *(f"`{name}`, wrong" for name in names)], ["---", *["--:"] * len(names)]]
    rows += [[f"`{lane}`", *(_count(found[name]) for name in names)] for lane, found in state["wrong"].items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    host, versions = state["host"], state["frameworks"]
    made = (
        f"{host['processor']} ({state['cpu']}), Python {host['python']}, PyTorch {versions['torch']}, JAX {versions['jax']}, NumPy "
        f"{versions['numpy']}; {state['seconds'] / 60:.1f} minutes."
    )
    return f"{TOP.format(part=part)}{table}\n{END.format(made=made)}"


def _count(found: Mapping[str, Any]) -> str:
    return f"{found['wrong']:,}" + (f", the first at {found['first']}" if found["wrong"] else "")
