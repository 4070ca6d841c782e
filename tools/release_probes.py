"""What the wheel can do with each extra, and what it says where it cannot: commands, their exit status and their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from environments import Environment
from evidence import CERTIFICATE, README

from loss_balancers.spec import errors


class Probe(NamedTuple):
    """A program of an environment, and how it must end."""

    words: Sequence[str]
    status: int = 0
    said: str = ""


def _python(code: str, status: int = 0, said: str = "") -> Probe:
    return Probe(["python", "-I", "-W", "error", "-c", code], status, said)


def _readme(part: str) -> Probe:
    """The README's example of one framework."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if f"from loss_balancers.{part} import" in block)
    return _python(block)


SPEC = _python("import loss_balancers.spec")
NO_TORCH = _python("import loss_balancers.torch", 1, errors.missing_framework("torch", "PyTorch", "torch"))
NO_JAX = _python("import loss_balancers.jax", 1, errors.missing_framework("jax", "JAX and Flax", "jax"))
NO_COMMANDS = Probe(["loss-balancers", "--help"], 70, errors.missing_package("the command line needs", "typer", "parity"))
NO_HYPOTHESIS = _python(
    "from loss_balancers.parity import loss_dicts; loss_dicts()",
    1,
    errors.missing_package("`loss_dicts` needs", "hypothesis", "test"),
)
MERGE = Probe(["loss-balancers", "merge", str(CERTIFICATE), "--html", "parity.html"], 0, "bit-identical")
MODES = [word for mode in ("eager", "jit") for word in ("--mode", mode)]
PARITY = Probe(["loss-balancers", "parity", "--balancer", "StaticLossBalancer", *MODES], 0, "bit-identical")

PROBES = {
    "": [SPEC, NO_TORCH, NO_JAX, NO_COMMANDS],
    "merge": [SPEC, MERGE, NO_TORCH, NO_JAX],
    "torch": [SPEC, _readme("torch"), NO_JAX, NO_COMMANDS],
    "jax": [SPEC, _readme("jax"), NO_TORCH, NO_COMMANDS],
    "parity": [_readme("torch"), _readme("jax"), PARITY, MERGE, NO_HYPOTHESIS],
}


def faults_of_probes(environment: Environment, folder: Path, probes: Sequence[Probe]) -> list[str]:
    """The output of the probes that did not end as they must."""
    faults = []
    for probe in probes:
        done = environment.run(*probe.words, cwd=folder)
        output = done.stdout + done.stderr
        # A terminal that is not there has 80 columns: the words may stand on two lines.
        if done.returncode != probe.status or "".join(probe.said.split()) not in "".join(output.split()):
            faults += [
                f"{' '.join(probe.words)}: expected exit status {probe.status} and {probe.said!r}, received {done.returncode} and",
                *output.strip().splitlines(),
            ]
    return faults
