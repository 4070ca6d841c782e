"""The command line: exit statuses, what it prints, what it writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import loss_balancers.parity.golden.vectors
from loss_balancers.parity.bits import from_bits, to_bits
from loss_balancers.parity.cli import app
from loss_balancers.parity.golden.vectors import Vectors, installed_vectors
from loss_balancers.spec import load_golden

QUICK = ["parity", "--lane", "torch-cpu-eager"]


def _run(*arguments: str):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "140", "TERM": "dumb"})


def test_all_identical_is_exit_status_0_and_the_matrix(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    result = _run(*QUICK, "--json", str(file))
    assert result.exit_code == 0, result.output
    installed = installed_vectors()
    total = sum(len(group.vectors) for vectors in installed.values() for group in vectors.groups)
    assert f"1 lanes, {total}/{total} bit-identical" in result.output
    written = json.loads(file.read_text())
    assert written["vectors"] == {balancer: vectors.hash for balancer, vectors in installed.items()}
    assert {cell["lane"] for cell in written["cells"]} == {"1:torch-cpu-eager"}
    assert sum(cell["identical"] for cell in written["cells"]) == written["identical"] == total
    assert [f.name for f in tmp_path.iterdir()] == ["matrix.json"]  # nothing left beside it


def test_a_difference_is_exit_status_1_with_hex_and_ulp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = list(load_golden())
    index = next(i for i, group in enumerate(groups) if group.id == "sequence-2-f32")
    (vector,) = groups[index].sequences[12]
    doctored = vector._replace(aggregate=from_bits(to_bits(vector.aggregate, "f32") + 1, "f32"))
    sequences = [*groups[index].sequences[:12], (doctored,), *groups[index].sequences[13:]]
    groups[index] = groups[index]._replace(sequences=tuple(sequences))
    found = {"StaticLossBalancer": Vectors("0" * 64, tuple(groups))}
    monkeypatch.setattr(loss_balancers.parity.golden.vectors, "installed_vectors", lambda: found)
    file = tmp_path / "matrix.json"
    result = _run(*QUICK, "--json", str(file))
    assert result.exit_code == 1
    assert "torch-cpu-eager, f32: worst StaticLossBalancer, sequence-2-f32[12], the aggregate:" in result.output
    assert vector.aggregate.hex() in result.output
    assert doctored.aggregate.hex() in result.output
    assert "(f32, 1 ulp)" in result.output
    written = json.loads(file.read_text())
    assert [cell["worst"]["case"] for cell in written["cells"] if cell["worst"]] == ["sequence-2-f32[12]"]
    assert [found["case"] for found in written["disagreements"]] == ["sequence-2-f32[12]"]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    chosen = ["--balancer", "StaticLossBalancer", "--label", "bf16", "--label", "f32", "--json", str(file)]
    result = CliRunner().invoke(app, [*QUICK, *chosen], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert {cell["label"] for cell in json.loads(file.read_text())["cells"]} == {"bf16", "f32"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parity", "--lane", "torch-abacus-eager"], "there is no lane 'torch-abacus-eager' on this machine"),
        (["parity", "--mode", "abacus"], "no lane of this machine has the mode 'abacus'. The modes are eager"),
        (["parity", "--balancer", "Abacus"], "there are no vectors of 'Abacus'. The balancers are"),
        (["parity", "--balancer", "StaticLossBalancer", "--certificate", "a.json"], "a certificate is of all balancers"),
        (["parity", "--label", "f8"], "there is no column 'f8'. The columns are bf16, f16, f32, f64, mixed"),
        (["parity", "--label", "f32", "--certificate", "a.json"], "a certificate is of all columns"),
        (["parity", "--what"], "No such option"),
        (["parity", "--json", "/no/such/folder/matrix.json"], "does not exist"),
        (["frobnicate"], "No such command"),
    ],
    ids=[
        "unknown-lane",
        "unknown-mode",
        "unknown-balancer",
        "part-of-a-certificate",
        "unknown-column",
        "columns-of-a-certificate",
        "unknown-option",
        "no-folder",
        "unknown-command",
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], words: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_a_lane_that_is_absent_is_an_error_and_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    import loss_balancers.parity.lanes.known as module

    lanes = [lane._replace(why_absent=lambda: "no C++ compiler") for lane in module.find_lanes()]
    monkeypatch.setattr(module, "find_lanes", lambda: lanes)
    result = _run(*QUICK)
    assert result.exit_code == 2
    assert "torch-cpu-eager cannot run on this machine: no C++ compiler" in " ".join(result.output.split())
