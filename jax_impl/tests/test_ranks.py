"""State over devices and processes has the bits of one process. Processes of their own: JAX fixes its devices at the start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(program, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(HERE / program), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return out.split("\n")


def test_eight_devices():
    shown = finish(start("sharded_program.py", XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    tests = [line.split("(")[0][4:] for line in (HERE / "sharded_program.py").read_text("utf-8").split("\n") if "def test_" in line]
    assert len(tests) == 6
    assert [line for line in shown if line] == tests


def test_two_processes():
    with socket.socket() as held:  # so that no other test is given the port; the coordinator shares it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("localhost", 0))
        port = held.getsockname()[1]
        processes = [start("processes_program.py", port, i, XLA_FLAGS="") for i in range(2)]
        try:
            assert [finish(process)[-2:] for process in processes] == [["same bits", ""]] * 2
        finally:
            for process in processes:
                process.kill()


@pytest.mark.parametrize("given", [True, 1, (), ("i", 2), ["i"]])
def test_an_axis_name_is_one(make, given):
    with pytest.raises(TypeError, match="`axis_name` must be None, the name of an axis or a tuple of names"):
        make(axis_name=given)
