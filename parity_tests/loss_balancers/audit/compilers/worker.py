"""The process that compiles: one target, all cases. XLA and libtpu read their flags once, so each target has a process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from loss_balancers.audit.prescribed.cases import all_cases
from loss_balancers.audit.prescribed.planted import planted_cases


def main() -> None:
    """Reads a request from standard input; leaves for each case a folder with the dump and ``optimised.hlo``; prints the device."""
    import jax
    import numpy as np

    request = json.load(sys.stdin)
    device, sharding = _device(request["options"])
    dump, folder = Path(request["dump"]), Path(request["folder"])
    cases = {case.slug: case for case in (*all_cases(), *planted_cases())}
    for slug in request["cases"]:
        case = cases[slug]
        assert case.function is not None  # the target takes no others
        function = case.function()

        def compiled(*arguments: Any, function: Any = function) -> Any:
            return function(*arguments)

        compiled.__name__ = slug
        shapes = [*[()] * case.arguments, *((length,) for length in case.vectors.values())]
        structs = [jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding) for shape in shapes]
        text = jax.jit(compiled, keep_unused=True).lower(*structs).compile().as_text()
        if not dump.is_dir():
            raise SystemExit(f"the compiler wrote no dump of {slug}")
        (dump / "optimised.hlo").write_text(text or "", "utf-8")
        dump.rename(folder / slug)
    print(json.dumps({"device": device}))


def _device(options: dict[str, Any]) -> tuple[str, Any]:
    """The first device of the described topology, by kind and as a sharding; this host's CPU without a description."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    if not options:
        return jax.devices()[0].device_kind, None
    device = topologies.get_topology_desc(**options).devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    return device.device_kind, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


if __name__ == "__main__":
    main()
