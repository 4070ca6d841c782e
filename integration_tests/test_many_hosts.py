"""Scripts as `torchrun` and a job on several hosts start them: one process is killed, all start again from the checkpoint."""

import os
import re
import socket
import subprocess
import sys
import time

import psutil
import pytest
from hosts import ROOT

from loss_balancers.spec import registry

STEPS = 200


def started(command, folder, **variables):
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-4000:]
    return out


def digests(text):
    """Of each process: where it began, and what it ended with."""
    return re.findall(r"from (\d+): \w+ and state ([0-9a-f]{16})", text)


def when_there(file, timeout=120):
    end = time.monotonic() + timeout
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def torchrun(folder, *words, **variables):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    return started([*run, ROOT / "examples/hosts/torchrun_ddp.py", f"--steps={STEPS}"], folder, **variables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a job of `torchrun` that nobody kills ends with."""
    wanted = digests(finished(torchrun(tmp_path_factory.mktemp("whole"))))
    assert len(wanted) == 2
    assert len(set(wanted)) == 1
    return wanted


def killed(folder, rank, *words, **variables):
    """A job of `torchrun`, of which a rank is killed once there is a checkpoint."""
    run = torchrun(folder, *words, **variables)
    when_there(folder / "checkpoint.pt")
    ranks = [child for child in psutil.Process(run.pid).children() if "torchrun_ddp.py" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    ranks[rank].kill()
    return run


def test_a_job_of_torchrun_is_started_again_when_a_rank_is_killed(whole, tmp_path):
    run = killed(tmp_path, 1)
    out, _ = run.communicate(timeout=120)  # `torchrun` ends the other one
    assert run.returncode != 0, out
    given = digests(finished(torchrun(tmp_path)))
    assert {begin != "0" for begin, _ in given} == {True}
    assert {end for _, end in given} == {end for _, end in whole}


def test_torchrun_starts_its_ranks_again_when_one_is_killed(whole, tmp_path):
    """With a new store for each attempt: in the one that PyTorch 2.13 shares, a rank finds the addresses of the attempt before."""
    given = digests(finished(killed(tmp_path, 0, "--max-restarts=1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")))
    assert len(given) == 2
    assert {begin != "0" for begin, _ in given} == {True}
    assert {end for _, end in given} == {end for _, end in whole}


def processes_of_jax(folder):
    with socket.socket() as held:
        held.bind(("localhost", 0))
        port = held.getsockname()[1]
    script = [sys.executable, ROOT / "examples/hosts/jax_distributed.py", f"--steps={STEPS}", "--processes=2"]
    return [started([*script, f"--coordinator=localhost:{port}", f"--process={i}"], folder) for i in range(2)]


def test_a_job_of_jax_is_started_again_when_a_process_is_killed(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    wanted = [digests(finished(process))[0] for process in processes_of_jax(whole)]
    assert len(set(wanted)) == 1
    first = processes_of_jax(killed)
    when_there(killed / "checkpoint.npz")
    for process in reversed(first):  # one dies, and then the scheduler ends the job
        process.kill()
        process.communicate()
    given = [digests(finished(process))[0] for process in processes_of_jax(killed)]
    assert {begin != "0" for begin, _ in given} == {True}
    assert {end for _, end in given} == {end for _, end in wanted}


@pytest.mark.parametrize("name", registry.examples())
def test_the_page_says_how_many_bytes_a_step_reduces(name):
    settings = registry.examples()[name]
    pending = next((entry for entry in settings.state if entry.name == "pending"), None)
    table = (ROOT / "docs/hosts/many_hosts.md").read_text("utf-8")
    (said,) = re.findall(rf"^\| `{settings.balancer}` \| (.*) \|$", table, re.MULTILINE)
    assert said == ("0" if pending is None else f"{4 * pending.blocks} K + 8" if pending.named else "8")


@pytest.mark.parametrize("host", ["torchrun_ddp", "jax_distributed"])
def test_the_examples_run_alone_too(run_example, host):
    assert "step 100 from 0" in run_example(host)
