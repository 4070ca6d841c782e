"""A run that is killed and goes on: `python resume_program.py torch|jax FOLDER STEPS KILLS SEED`.

The framework is imported once; each life of the run is a fork of this process, made before the framework has computed anything. A
life trains and saves after every step. All but the last are killed at a random moment, SIGKILL, wherever they are.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from loss_balancers.spec import read_state, save_state, schedules

NAMES = ("KL_0", "MSE_1", "student_loss")
SETTINGS: dict[str, Any] = {"names": NAMES, "weights": {"MSE_1": schedules.cosine(0.1, 2.0, 200)}, "beta": 0.9}


def drawn(step: int, micro: int) -> list[np.float32]:
    """The losses of a micro-batch, by its number alone: the run has no other state than the balancer's."""
    return list(np.random.Generator(np.random.Philox(key=step, counter=micro)).random(3, np.float32) * np.float32(4))


def torch_life() -> tuple[Any, Callable[[Any], Any]]:
    """A balancer, and what makes a loss of a number."""
    import torch

    from loss_balancers.torch import EMANormalizedLossBalancer

    torch.set_num_threads(1)
    return EMANormalizedLossBalancer(**SETTINGS), torch.tensor


def jax_life() -> tuple[Any, Callable[[Any], Any]]:
    """The same in JAX."""
    import jax.numpy as jnp

    from loss_balancers.jax import EMANormalizedLossBalancer

    return EMANormalizedLossBalancer(**SETTINGS), jnp.asarray


LIVES = {"torch": torch_life, "jax": jax_life}


def live(framework: str, folder: Path, steps: int) -> None:
    """Trains from the last state that was saved, if there is one, to the end. Notes each life's first step."""
    balancer, as_loss = LIVES[framework]()
    file = folder / "state.safetensors"
    if file.exists():
        balancer.load_state(read_state(file))
    first = int(np.asarray(balancer.steps[...]))
    with (folder / "lives").open("a") as lives:
        lives.write(f"{first}\n")
    for step in range(first, steps):
        calls = [{name: as_loss(x) for name, x in zip(NAMES, drawn(step, micro), strict=True)} for micro in range(2)]
        *_, aggregate = [balancer(losses) for losses in calls]
        balancer.step()
        value = np.float32(aggregate)
        with (folder / "aggregates").open("a") as aggregates:
            aggregates.write(f"{step} {float(value).hex()}\n")
        save_state(file, balancer.export_state())


def fork(framework: str, folder: Path, steps: int, *, ends: bool = True) -> int:
    """Starts a life. One that does not end waits to be killed: however fast it was, and however late the kill comes."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            live(framework, folder, steps)
            while not ends:
                signal.pause()
            status = 0
        finally:
            os._exit(status)
    return child


def main(framework: str, folder: Path, steps: int, kills: int, seed: int) -> None:
    """An uninterrupted run in FOLDER/whole, and one that is killed in FOLDER/killed."""
    __import__(f"loss_balancers.{framework}")  # without computing: a fork of a JAX that has started its backend would hang
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    _, status = os.waitpid(fork(framework, folder / "whole", steps), 0)
    assert status == 0
    moments = random.Random(seed)
    for kill in range(kills):
        # Every fourth life ends before its first step is saved, in the start or in a compilation; the others in some later step.
        seen = folder / "killed" / ("lives" if kill % 4 == 0 else "aggregates")
        before = seen.stat().st_size if seen.exists() else 0
        child = fork(framework, folder / "killed", steps * (kill + 1) // (kills + 1), ends=False)
        while not (seen.exists() and seen.stat().st_size > before):  # however slow the machine
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
    _, status = os.waitpid(fork(framework, folder / "killed", steps), 0)
    assert status == 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
