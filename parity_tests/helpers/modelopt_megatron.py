"""NVIDIA ModelOpt's balancer for Megatron, by the text of the installed file: its module needs Megatron to import."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

found = importlib.util.find_spec("modelopt")
if found is None:
    raise ImportError("expected nvidia-modelopt, found none: it comes with the extra `dev`", name="modelopt")
SOURCE = Path((found.submodule_search_locations or [""])[0]) / "torch" / "distill" / "plugins" / "megatron.py"
NAME = "LogitsAndIntermediatesLossBalancer"


def _their_class() -> Any:
    (node,) = [n for n in ast.parse(SOURCE.read_text("utf-8")).body if isinstance(n, ast.ClassDef) and n.name == NAME]
    stubs = SimpleNamespace(
        DistillationLossBalancer=torch.nn.Module, loss_balancers=SimpleNamespace(STUDENT_LOSS_KEY="student_loss")
    )
    names: dict[str, Any] = {"mtd": stubs, "Tensor": torch.Tensor}
    exec(compile(ast.Module([node], []), str(SOURCE), "exec"), names)
    return names[NAME]


#: Its `forward` takes the losses out of the dict that it gets, and gives a dict, in which the aggregate is "kd_loss".
Theirs = _their_class()
