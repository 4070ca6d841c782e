"""One job in a process of its own: ``python -m gpu_kit.job JOB DEVICE OUT``."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from threading import Thread


def main() -> int:
    """Does the job; an error is a traceback and another exit status."""
    # The kit holds the other end: however it ends, this process does too.
    Thread(target=_end_with_the_kit, daemon=True).start()
    job, device, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    what, _, which = job.partition("-")
    if "jax" not in job or device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # a job of PyTorch reads JAX's switches, and must not take its memory
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if what == "host":
        from gpu_kit import machine

        machine.describe(which, device, folder)
        return 0
    if what == "quotients":
        from gpu_kit import quotients_drawn

        return quotients_drawn.run(which, device, folder)
    if what == "costs":
        from gpu_kit import costs

        return costs.run(which, device, folder)
    from gpu_kit import lanes

    return lanes.run(job, folder)


def _end_with_the_kit() -> None:
    os.read(0, 1)  # not through Python's own buffer, which a thread would hold when the process ends
    os._exit(1)


if __name__ == "__main__":
    try:
        status = main()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to write, and the teardown of frameworks takes seconds
