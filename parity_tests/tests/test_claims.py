"""What the audit says and what a device gave stand side by side in `merge`, and a contradiction is an error in words."""

import json
from pathlib import Path
from typing import Any

import pytest
from certificates import BALANCER, doctored, few_vectors, jax_certificate, torch_certificate
from typer.testing import CliRunner, Result

from loss_balancers.parity.cli import app
from loss_balancers.parity.files import write_json
from loss_balancers.parity.golden import vectors

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
CASES = (f"{BALANCER} weights K=3 forward", f"{BALANCER} weights K=3 gradient")


@pytest.fixture(autouse=True)
def _few_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "installed_vectors", few_vectors)


def audit(**statuses: str) -> dict[str, Any]:
    """Of two GPUs, by both frameworks: all as specified, but the targets given, by `cuda_sm_80` and the like."""
    devices = {"sm_80": A100, "sm_90": H100}
    targets = {f"{kind}:{model}": device for kind in ("cuda", "cuda-torch") for model, device in devices.items()}
    targets["cpu"] = "cpu"
    given = {target: statuses.get(target.replace(":", "_").replace("-", "_"), "as specified") for target in targets}
    return {
        "schema": 2,
        "library": torch_certificate()["library"],
        "date": "2026-11-26",
        "versions": {target: {"device": device} for target, device in targets.items()},
        "matrix": {
            target: {
                CASES[0]: {"status": "as specified"},
                CASES[1]: {"status": given[target] if given[target] != "missed" else "as specified"},
                "planted: no barrier": {"status": "missed" if given[target] == "missed" else "found"},
            }
            for target in targets
        },
    }


def on_cuda(data: dict[str, Any], mode: str, kind: str = H100) -> dict[str, Any]:
    """The certificate as if its last lane had run on a GPU, in this mode."""
    data["lanes"] = data["lanes"][-1:]
    data["lanes"][0] |= {"device": "cuda", "mode": mode, "device_kind": kind}
    return data


def _run(folder: Path, certificate: dict[str, Any], said: Any) -> tuple[Result, dict[str, Any]]:
    write_json(folder / "a.json", certificate)
    write_json(folder / "audit.json", said)
    files = [word for kind in ("json", "markdown", "html") for word in (f"--{kind}", str(folder / f"m.{kind}"))]
    words = ["merge", str(folder / "a.json"), "--audit", str(folder / "audit.json"), *files]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})
    return result, json.loads((folder / "m.json").read_text()) if (folder / "m.json").exists() else {}


@pytest.mark.parametrize(
    ("framework", "mode", "target"),
    [("jax", "vmap", "cuda:sm_90"), ("torch", "compiled", "cuda-torch:sm_90")],
    ids=["jax", "torch"],
)
@pytest.mark.parametrize("differs", [False, True], ids=["identical", "differs"])
@pytest.mark.parametrize(
    ("status", "together"),
    [
        ("as specified", ("agree", "contradiction")),
        ("findings", ("note", "agree")),
        ("not established", ("note", "note")),
        ("missed", ("note", "note")),
    ],
    ids=["as-specified", "findings", "not-established", "missed"],
)
def test_each_claim_beside_what_the_device_gave(
    framework: str, mode: str, target: str, differs: bool, status: str, together: tuple[str, str], tmp_path: Path
) -> None:
    own = torch_certificate() if framework == "torch" else jax_certificate()
    data = on_cuda(doctored(own) if differs else own, mode)
    result, matrix = _run(tmp_path, data, audit(**{target.replace(":", "_").replace("-", "_"): status}))
    assert result.exit_code == int(differs), result.output
    said = "not established" if status == "missed" else status
    (claim,) = matrix["audit"]["claims"]
    assert claim == {
        "lane": f"1:{framework}-cuda-{mode}",
        "balancer": BALANCER,
        "targets": {target: said},
        "identical": not differs,
        "together": together[differs],
    }
    agrees = together[differs] == "agree"
    assert f"audit of 2026-11-26: {int(agrees)} of 1 claims agree with what a device gave" in result.output
    words = f"{BALANCER} on {framework}-cuda-{mode}: the audit says {target}: {said}; the device gave "
    assert (words in result.output) is not agrees
    assert ("A CONTRADICTION" in result.output) is (together[differs] == "contradiction")
    row = f"| `1:{framework}-cuda-{mode}` | `{BALANCER}` | `{target}`: {said} | {'differs' if differs else 'identical'} | "
    assert row in (tmp_path / "m.markdown").read_text()
    assert 'id="audit"' in (tmp_path / "m.html").read_text()


@pytest.mark.parametrize(("what", "label"), [("the aggregate", "bf16"), ("the aggregate", "f64")], ids=["bf16", "f64"])
def test_what_the_audit_does_not_read_contradicts_nothing(what: str, label: str, tmp_path: Path) -> None:
    result, matrix = _run(tmp_path, on_cuda(doctored(jax_certificate(), label, 4, 3, what), "jit"), audit())
    assert result.exit_code == 1
    assert [claim["together"] for claim in matrix["audit"]["claims"]] == ["agree"]


@pytest.mark.parametrize(
    ("framework", "mode", "device"),
    [
        ("jax", "eager", "cuda"),
        ("torch", "eager", "cuda"),
        ("torch", "vmap", "cuda"),
        ("jax", "jit", "cpu"),
        ("jax", "jit", "metal"),
    ],
)
def test_lanes_that_the_audit_does_not_speak_of_have_no_claim(framework: str, mode: str, device: str, tmp_path: Path) -> None:
    data = on_cuda(torch_certificate() if framework == "torch" else jax_certificate(), mode)
    data["lanes"][0]["device"] = device
    result, matrix = _run(tmp_path, data, audit())
    assert result.exit_code == 0
    assert matrix["audit"]["claims"] == []


def test_a_device_of_no_target_is_laid_beside_all_of_its_kind(tmp_path: Path) -> None:
    """One that is as specified for one GPU and not for another claims nothing of a third."""
    unknown = on_cuda(doctored(jax_certificate()), "jit", "NVIDIA H200")
    _, matrix = _run(tmp_path, unknown, audit())
    assert matrix["audit"]["claims"][0]["targets"] == {"cuda:sm_80": "as specified", "cuda:sm_90": "as specified"}
    assert matrix["audit"]["claims"][0]["together"] == "contradiction"
    _, matrix = _run(tmp_path, unknown, audit(cuda_sm_80="not established"))
    assert matrix["audit"]["claims"][0]["together"] == "note"


def test_without_an_audit_nothing_is_said_of_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", torch_certificate())
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "a.json"), "--html", str(tmp_path / "m.html")])
    assert result.exit_code == 0
    assert "audit" not in result.output
    assert 'id="audit"' not in (tmp_path / "m.html").read_text()


@pytest.mark.parametrize(
    "said",
    [
        [],
        {},
        "text",
        audit() | {"schema": 3},
        audit() | {"versions": {}},
        audit() | {"matrix": {"cuda:sm_90": {CASES[0]: {"status": "fine"}}}},
        audit() | {"matrix": {"cuda:sm_90\n": {}}, "versions": {"cuda:sm_90\n": {"device": "x"}}},
    ],
    ids=["list", "empty", "text", "schema", "versions", "status", "target"],
)
def test_what_is_not_an_audit_is_refused(said: Any, tmp_path: Path) -> None:
    result, matrix = _run(tmp_path, on_cuda(jax_certificate(), "jit"), said)
    assert result.exit_code == 2
    assert "audit.json: is not an audit of this version. Name the file that `loss-balancers audit --json` wrote." in result.stderr
    assert matrix == {}


def test_an_audit_of_another_version_is_refused(tmp_path: Path) -> None:
    result, _ = _run(tmp_path, on_cuda(jax_certificate(), "jit"), audit() | {"library": "9.9.9"})
    assert result.exit_code == 2
    assert "the audit is of loss-balancers 9.9.9" in result.stderr
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "a.json"), "--audit", str(tmp_path / "none.json")])
    assert result.exit_code == 2
    assert "none.json: cannot be read: No such file or directory." in result.stderr
    words = ["merge", str(tmp_path / "a.json"), "--audit", str(tmp_path / "audit.json"), "--json", str(tmp_path / "audit.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "audit.json is the audit already. Name another file." in result.stderr


@pytest.mark.parametrize(("status", "said"), [("as specified", "not established"), ("findings", "findings")])
def test_no_race_says_nothing_of_results_and_a_race_says_it_all(tmp_path: Path, status: str, said: str) -> None:
    """Of a balancer whose arithmetic is not read: a device that differs then contradicts nothing."""
    of_audit = audit()
    for row in of_audit["matrix"].values():
        row[f"{BALANCER} training"] = {"status": status}
        del row[CASES[0]], row[CASES[1]]
    _, matrix = _run(tmp_path, on_cuda(torch_certificate(), "compiled"), of_audit)
    assert matrix["audit"]["claims"][0]["targets"] == {"cuda-torch:sm_90": said}


@pytest.mark.parametrize(
    ("status", "said"), [("as specified", "as specified"), ("not established", "not established"), ("findings",) * 2]
)
def test_a_race_counts_beside_the_arithmetic(tmp_path: Path, status: str, said: str) -> None:
    of_audit = audit()
    for row in of_audit["matrix"].values():
        row[f"{BALANCER} training"] = {"status": status}
    _, matrix = _run(tmp_path, on_cuda(torch_certificate(), "compiled"), of_audit)
    assert matrix["audit"]["claims"][0]["targets"] == {"cuda-torch:sm_90": said}


def test_the_command_of_the_audit_writes_what_is_read(tmp_path: Path) -> None:
    """By the function that makes its JSON."""
    from loss_balancers.audit.__main__ import _as_json
    from loss_balancers.audit.prescribed.cases import all_cases
    from loss_balancers.audit.run import Verdict

    cases = all_cases()
    row = {case.name: Verdict("as specified") for case in cases}
    data = _as_json({"cuda:sm_90": row}, {"cuda:sm_90": {"device": H100}}, cases)
    result, matrix = _run(tmp_path, on_cuda(jax_certificate(), "jit"), data)
    assert result.exit_code == 0, result.output
    assert matrix["audit"]["claims"][0]["targets"] == {"cuda:sm_90": "as specified"}
