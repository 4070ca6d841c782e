"""The page `docs/evidence/versions.md`, made of what `make versions` has found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loss_balancers.parity.certificates.measured import PAGE
from loss_balancers.parity.golden.vectors import LABELS
from loss_balancers.parity.lanes.known import MODES
from loss_balancers.spec.versions import OLDEST, release

FILE = Path(__file__).parent.parent / PAGE
TITLES = {"python": "Python", "torch": "PyTorch", "jax": "JAX", "flax": "Flax", "numpy": "NumPy"}

TOP = """\
# Versions

Written by `make versions`, from what it measured. Each row of the first table is an environment of its own, in which the golden
vectors ran on every lane of a CPU, in all formats ({labels}), and, where the table says so, the unit tests of the spec and of both
twins.

Supported are {supported}, and all later versions: nothing is pinned from above. A version that is not in
the table was not measured. `loss-balancers lanes` says whether yours was, and `loss-balancers parity` measures it.

"""
END = """

What older versions lack, in every function and every module:

- **Flax 0.10**: `jax.jit` and `jax.grad` take no module as an argument; `nnx.jit` and `nnx.grad` do. In a Linen model a balancer
  has [the call alone](../linen.md). NNX has a tree mode since Flax 0.12.4, and its `nnx.view` knows
  balancers since 0.12.5.
- **PyTorch 2.8 to 2.11**, in compiled functions: `jacfwd` and `hessian` take one argument to differentiate by, not several. Stack
  the losses and differentiate by the one tensor.
- **PyTorch 2.8 and 2.9**, in compiled functions: no `torch.autograd.grad`.
- **PyTorch 2.8**, in compiled functions: Dynamo shows the class and the line of an error, without its words. Run the function
  uncompiled to read them. The process crashes where a program calls `torch.compiler.set_stance("eager_then_compile")` and has
  called `torch.compiler.reset()` before.

A cell shows how many results had the bits of the exact reference, and how many results there were: vectors that were added since a
pair was measured are not among them. In the unit tests the warnings of the frameworks are ignored, since each version has its own;
`make test` takes none. What the command costs stands in [decision 0017](../decisions/0017-what-the-versions-cost.md).

`make versions` takes whichever interpreters are on `PATH` as `python3.11`, `python3.12` and `python3.13`, and installs each pair
with pip into `.venv-versions`, which is kept: remove it to find a newer "newest". The registry's PyTorch for Linux x86-64 is built
for CUDA and does not import without NVIDIA's libraries, so pip installs these too: 3 GB to download, 5 to 7 GB on disk and about
three minutes for a pair (`--discard` removes each after use). Where pip finds a build for the CPU, it takes that. Only the lanes of
the CPU ran, whatever the build.
"""


def page(measured: Sequence[dict[str, Any]]) -> str:
    """The page as text."""
    supported = ", ".join(f"{TITLES[name]} {version}" for name, version in OLDEST.items())
    text = TOP.format(labels=", ".join(LABELS), supported=f"{supported}, Python 3.11")
    rows = [[*(_version(pair, name) for name in TITLES), _vectors(pair), _tests(pair), _date(pair)] for pair in measured]
    text += table([*TITLES.values(), "golden vectors, bit-identical", "unit tests", "measured on"], rows)
    for framework, modes in MODES.items():
        ordered = sorted(measured, key=lambda pair: release(_version(pair, framework)))
        cells = [[_version(pair, framework), *(_cell(pair, f"{framework}-cpu-{mode}") for mode in modes)] for pair in ordered]
        text += "\n" + table([TITLES[framework], *modes], cells)
    hosts = dict.fromkeys(f"{pair['processor']}, {pair['system']}" for pair in measured if pair["results"])
    made = f"\nMeasured on {'; '.join(hosts)}.\n" if hosts else ""
    return text + made + END


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _version(pair: dict[str, Any], name: str) -> str:
    return pair["versions"].get(name) or next((asked for asked in pair["asked"] if asked.startswith(name)), "")


def _vectors(pair: dict[str, Any]) -> str:
    missing = f"not measured: {pair['why']}" if pair["why"] else ""
    if not pair["results"]:
        return missing
    return f"{pair['identical']:,} of {pair['results']:,}" + (f"; since then {missing}" if missing else "")


def _tests(pair: dict[str, Any]) -> str:
    return pair["tests"] or "not run"


def _date(pair: dict[str, Any]) -> str:
    return pair.get("created", "")[:10]


def _cell(pair: dict[str, Any], lane: str) -> str:
    if lane in pair["absent"]:
        return f"not run: {pair['absent'][lane]}"
    identical, results = pair["lanes"].get(lane, (0, 0))
    return f"{identical}/{results}" if results else "not measured"
