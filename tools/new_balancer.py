"""`make new NAME=dwa`: the files of a new balancer, as one that works; what it computes is then yours to write.

It writes the settings with the reference step, both twins, and the draws of the golden vectors; it adds the balancer to the
registry, to the exports of `spec` and of both twins, and to the table of docs/balancers.md. `make golden` and
`make check BALANCER=dwa` come next.
"""

from __future__ import annotations

import argparse
import re
import sys
import zlib
from pathlib import Path
from string import Template

from loss_balancers.spec.registry import stem

ROOT = Path(__file__).parent.parent
SKELETON = Path(__file__).with_name("skeleton")
#: From the files of the skeleton to where each goes.
FILES = {
    "spec.py.txt": "spec/loss_balancers/spec/{}.py",
    "golden.py.txt": "spec/loss_balancers/spec/golden/{}.py",
    "torch.py.txt": "torch_impl/loss_balancers/torch/{}.py",
    "jax.py.txt": "jax_impl/loss_balancers/jax/{}.py",
}
REGISTRY = "spec/loss_balancers/spec/registry.py"
SETTINGS = "spec/loss_balancers/spec/__init__.py"
EXPORTS = {"torch": "torch_impl/loss_balancers/torch/__init__.py", "jax": "jax_impl/loss_balancers/jax/__init__.py"}
DOCS = "docs/balancers.md"


def class_name(name: str) -> str:
    """The class of a name: ``SoftAdaptLossBalancer`` of ``soft_adapt`` or ``SoftAdapt``, ``DWALossBalancer`` of ``DWA``."""
    words = name.removesuffix("LossBalancer")
    return ("".join(map(str.capitalize, words.split("_"))) if words == words.lower() else words) + "LossBalancer"


def written(name: str, root: Path) -> dict[Path, str]:
    """The text of every file that is new or changed.

    Raises:
        ValueError: The name cannot be one of a balancer, or there is such a balancer.
    """
    balancer = class_name(name)
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*LossBalancer", balancer) or balancer == "LossBalancer":
        raise ValueError(f"NAME must be a name such as dwa, soft_adapt or SoftAdapt. Received {name!r}.")
    module = stem(balancer)
    seed = f"{zlib.crc32(module.encode()) % 10**8:_}"  # of its own, so that no two balancers meet the same draws
    words = {"Class": balancer, "name": module, "example": module.replace("_", "-"), "seed": seed}
    found: dict[Path, str] = {}
    for source, target in FILES.items():
        path = root / target.format(module)
        if path.exists():
            raise ValueError(f"{path} is there already. Choose another NAME, or remove the balancer first.")
        found[path] = Template((SKELETON / source).read_text("utf-8")).substitute(words)
    found[root / REGISTRY] = _registered((root / REGISTRY).read_text("utf-8"), balancer, module)
    found[root / SETTINGS] = _exported((root / SETTINGS).read_text("utf-8"), "spec", f"{balancer}Settings", module)
    for framework, path in EXPORTS.items():
        found[root / path] = _exported((root / path).read_text("utf-8"), framework, balancer, module)
    found[root / DOCS] = _with_row((root / DOCS).read_text("utf-8"), balancer)
    return found


def _registered(text: str, balancer: str, module: str) -> str:
    text = _with_import(text, f"from loss_balancers.spec.{module} import {balancer}Settings", "from loss_balancers.spec.")
    return _before(text, "    )\n}\n", f"        {balancer}Settings,\n")


def _exported(text: str, part: str, name: str, module: str) -> str:
    text = _with_import(text, f"from loss_balancers.{part}.{module} import {name}", f"from loss_balancers.{part}.")
    start = text.index("__all__ = [\n") + len("__all__ = [\n")
    end = text.index("]\n", start)
    names = sorted([*text[start:end].splitlines(), f'    "{name}",'], key=_as_ruff_sorts)
    return text[:start] + "".join(f"{name}\n" for name in names) + text[end:]


def _as_ruff_sorts(line: str) -> tuple[int, str]:
    """Constants, classes, then the rest."""
    name = line.strip(' ",')
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _with_import(text: str, line: str, package: str) -> str:
    """The text with an import more, among those of the package at the left margin, by the name of the module."""
    lines = text.splitlines()
    there = [i for i, one in enumerate(lines) if one.startswith(package)]
    after = (i for i in there if lines[i].split(" ")[1] > line.split(" ")[1])
    lines.insert(next(after, there[-1] + 1), line)
    return "\n".join(lines) + "\n"


def _with_row(text: str, balancer: str) -> str:
    rows = [line for line in text.splitlines(keepends=True) if re.match(r"\| `\w+LossBalancer` \|", line)]
    return text.replace(rows[-1], f"{rows[-1]}| `{balancer}` | TODO | TODO | counters, `last` | TODO |\n", 1)


def _before(text: str, mark: str, more: str) -> str:
    head, found, tail = text.partition(mark)
    assert found, mark
    return head + more + mark + tail


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="such as dwa, soft_adapt or SoftAdapt")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    chosen = parser.parse_args()
    try:
        files = written(chosen.name, chosen.root)
    except ValueError as error:
        sys.exit(str(error))
    for path, text in files.items():
        path.write_text(text, "utf-8")
        print(path.relative_to(chosen.root))
    print(f"Next: make golden; make check BALANCER={stem(class_name(chosen.name))}. It says what is still missing.")


if __name__ == "__main__":
    main()
