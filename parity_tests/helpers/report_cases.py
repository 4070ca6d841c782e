"""Matrices that the tests of the report are about, here and in the browser."""

from __future__ import annotations

from typing import Any

LABELS = ["bf16", "f16", "f32", "f64", "mixed"]
VECTORS = {"bf16": 114, "f16": 114, "f32": 209, "f64": 133, "mixed": 171}
BALANCERS = [
    "StaticLossBalancer",
    "DynamicWeightAverageLossBalancer",
    "UncertaintyLossBalancer",
    "GradNormLossBalancer",
    "RunningMeanLossBalancer",
    "RandomLossWeightingBalancer",
]
DEVICES = [
    ("torch", "cpu", "AMD EPYC 7763 64-Core Processor", ["eager", "compiled", "vmap", "step"]),
    ("torch", "cuda", "NVIDIA H200", ["eager", "compiled", "vmap", "step"]),
    ("jax", "cpu", "AMD EPYC 7763 64-Core Processor", ["eager", "jit", "vmap", "scan", "remat", "step"]),
    ("jax", "tpu", "TPU v6e", ["jit", "vmap", "scan", "remat", "step", "sharded"]),
]
#: A name that would be markup, and that would end the element of the JSON, were it not escaped.
FORGED = "</script><script>document.title = 'forged'</script><img src=x onerror=\"document.title='forged'\">'&amp;"


def certificate(number: int) -> dict[str, Any]:
    return {
        "file": f"certificates/host-{number}.json",
        "library": "0.1.0",
        "created": f"2026-10-0{number % 9 + 1}T09:30:00Z",
        "host": {"python": "3.11.9", "machine": "x86_64", "system": "Linux", "processor": f"Processor {number}"},
        "frameworks": {"torch": "2.13.0", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        "flags": {"env.XLA_FLAGS": None, "env.LIBTPU_INIT_ARGS": "", "jax.jax_enable_x64": False, "inductor.use_fast_math": False},
    }


def matrix(balancers: int = 6, lanes: int = 20) -> dict[str, Any]:
    """All identical. Lanes come from one certificate a device; past the first twenty they come again from further hosts."""
    table, certificates = [], []
    while len(table) < lanes:
        for framework, device, kind, modes in DEVICES:
            certificates.append(certificate(len(certificates) + 1))
            for mode in modes:
                table.append(
                    {
                        "id": f"{len(certificates)}:{framework}-{device}-{mode}",
                        "certificate": len(certificates) - 1,
                        "framework": framework,
                        "device": device,
                        "device_kind": kind,
                        "mode": mode,
                        "flags": {},
                    }
                )
    table = table[:lanes]
    names = BALANCERS[:balancers]
    cells = [
        {"balancer": name, "lane": lane["id"], "label": label, "vectors": count, "identical": count, "worst": None}
        for name in names
        for lane in table
        for label, count in VECTORS.items()
    ]
    total = sum(cell["vectors"] for cell in cells)
    return {
        "schema": "loss-balancers-matrix/1",
        "vectors": {name: f"{index:x}" * 64 for index, name in enumerate(names, 10)},
        "certificates": certificates[: table[-1]["certificate"] + 1],
        "lanes": table,
        "balancers": names,
        "labels": LABELS,
        "cells": cells,
        "absent": [],
        "disagreements": [],
        "results": total,
        "identical": total,
    }


def doctored(**size: int) -> dict[str, Any]:
    """With differences: an ulp on torch cuda, a NaN and 17 ulp on jax tpu; and a format that the TPU and one more lane lack."""
    made = matrix(**size)
    inputs = {"MSELoss_0": "0x1.8000000000000p+0", "KLDivLoss_1": "-0x1.91eb860000000p+1", "student_loss": "0x1.0000000000000p-126"}

    def spoil(balancer: str, lane: str, label: str, wrong: int, expected: str, actual: str, ulp: int | None) -> None:
        cell = find(made, balancer, lane, label)
        cell["identical"] -= wrong
        made["identical"] -= wrong
        what, cotangent = "the gradient to MSELoss_0", "0x1.0000000000000p+10"
        case = {"case": f"sequence-2-{label}[12]", "what": what, "format": label}
        cell["worst"] = case | {"inputs": inputs, "cotangent": cotangent, "expected": expected, "actual": actual, "ulp": ulp}
        others = [one["lane"] for one in made["cells"] if (one["balancer"], one["label"]) == (balancer, label)]
        values = [{"lane": one, "value": actual if one == lane else expected} for one in others]
        made["disagreements"].append({"balancer": balancer, **case, "values": values, "expected": expected, "ulp": ulp})

    def drop(balancer: str, lane: str, label: str, reason: str) -> None:
        cell = find(made, balancer, lane, label)
        made["results"] -= cell["vectors"]
        made["identical"] -= cell["vectors"]
        made["cells"].remove(cell)
        made["absent"].append({"balancer": balancer, "lane": lane, "label": label, "reason": reason})

    tpu = [lane["id"] for lane in made["lanes"] if lane["device"] == "tpu"]
    for lane in tpu:
        for balancer in made["balancers"]:
            drop(balancer, lane, "f64", "float64 on tpu is an emulation: 0x1.0p+0 + 0x1.0p-52 is 0x1.0p+0")
    drop("StaticLossBalancer", "2:torch-cuda-step", "mixed", "cuda has no bfloat16")

    spoil("StaticLossBalancer", "2:torch-cuda-compiled", "f32", 3, "0x1.3333340000000p-2", "0x1.3333360000000p-2", 1)
    spoil("DynamicWeightAverageLossBalancer", "4:jax-tpu-scan", "bf16", 1, "0x1.3400000000000p-2", "0x1.5600000000000p-2", 17)
    spoil("DynamicWeightAverageLossBalancer", "4:jax-tpu-scan", "f16", 114, "0x1.3340000000000p-2", "nan", None)
    return made


def forged() -> dict[str, Any]:
    """Every text that a certificate brings is markup."""
    made = doctored()
    lane = made["lanes"][0]
    old, lane["id"] = lane["id"], f"1:{FORGED}"
    for key in ("framework", "device", "device_kind", "mode"):
        lane[key] = FORGED
    for cell in made["cells"]:
        cell["lane"] = lane["id"] if cell["lane"] == old else cell["lane"]
    for absent in made["absent"]:
        absent["reason"] = FORGED
    for found in made["disagreements"]:
        for entry in found["values"]:
            entry["lane"] = lane["id"] if entry["lane"] == old else entry["lane"]
    for text in ("what", "case", "format", "expected"):
        made["disagreements"][0][text] = FORGED
    worst = next(cell["worst"] for cell in made["cells"] if cell["worst"])
    worst.update(dict.fromkeys(("case", "what", "format", "cotangent", "expected", "actual"), FORGED), inputs={FORGED: FORGED})
    shown = made["certificates"][0]
    shown.update(file=FORGED, library=FORGED, created=FORGED, host={FORGED: FORGED}, frameworks={FORGED: FORGED})
    shown["flags"] = {FORGED: [FORGED]}
    made["vectors"] = {FORGED: FORGED}
    claim = {"balancer": FORGED, "targets": {FORGED: FORGED}, "identical": False, "together": "contradiction"}
    # Beside one of a lane that the filter may hide.
    others = {"balancer": "StaticLossBalancer", "targets": {"cuda:sm_90": "as specified"}, "identical": True, "together": "agree"}
    made["audit"] = {"date": FORGED, "claims": [{"lane": lane["id"], **claim}, {"lane": made["lanes"][-1]["id"], **others}]}
    balancer = made["balancers"][-1]
    made["balancers"][-1] = FORGED
    for cell in made["cells"]:
        cell["balancer"] = FORGED if cell["balancer"] == balancer else cell["balancer"]
    for absent in made["absent"]:
        absent["balancer"] = FORGED if absent["balancer"] == balancer else absent["balancer"]
    return made


def find(made: dict[str, Any], balancer: str, lane: str, label: str) -> dict[str, Any]:
    """One cell of a matrix."""
    return next(cell for cell in made["cells"] if (cell["balancer"], cell["lane"], cell["label"]) == (balancer, lane, label))
