"""Which calls in the code that Inductor writes around its kernels launch a kernel, and which do nothing that an audit reads."""

from __future__ import annotations

import ast
from collections.abc import Container

from loss_balancers.audit.expressions.dag import NotEstablishedError

#: How a call begins that neither computes nor moves a value.
_IGNORED = ("assert_size_stride", "assert_alignment", "args.clear", "torch.cuda.set_device")


def launched(call: ast.Call, kernels: Container[str]) -> str | None:
    """The name of the kernel that a call launches; None if it does nothing that is read.

    Raises:
        NotEstablishedError: It is any other call, or there is no such kernel.
    """
    text = ast.unparse(call)
    if text.startswith(_IGNORED):
        return None
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "run" and isinstance(call.func.value, ast.Name)):
        raise NotEstablishedError(f"a call of Inductor's that cannot be read: {text}")
    name = call.func.value.id
    if name not in kernels:
        raise NotEstablishedError(f"there is no kernel {name}")
    return name
